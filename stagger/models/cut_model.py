"""A model whose blocks are loaded one by one from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from stagger.errors import StaggerError
from stagger.models.checkpoint import Checkpoint
from stagger.models.cut import Cut
from stagger.models.cut_check import checked
from stagger.models.microbatch import Microbatch
from stagger.models.transformers_loading import Conversion, config_of, put, skeleton

#: Parameters or buffers by their names in the model, on the host, in the dtypes that the model computes with.
Weights = Mapping[str, torch.Tensor]


class CutModel:
    """A causal language model of transformers, with those of its blocks that are loaded.

    It computes what the whole model computes, bit for bit, in one thread at a time; `weights` may run in another one.
    Block i of n lies on device i*k//n of the k `devices`; what is outside the blocks lies on the first.

    Raises StaggerError when the architecture cannot be cut, or when the checkpoint's tensors are not the model's: each
    one that is missing, or that the model has no place for, is named.
    """

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype, devices: Sequence[torch.device] = (torch.device("cpu"),)
    ) -> None:
        self.dtype = dtype
        self.devices = tuple(devices)
        self._checkpoint = checkpoint
        config = config_of(checkpoint.config)
        self._cut = Cut(skeleton(config, dtype), checked(config, dtype))
        self._model = self._cut.model
        self._conversion = Conversion(skeleton(config, dtype).to("meta"), dtype, checkpoint.tensors)
        self.total_blocks = len(self._cut.blocks)
        self.hidden_size = int(config.get_text_config().hidden_size)
        self.loaded: set[int] = set()
        self._ends_loaded = False
        self._small_loaded = False
        self._check_names()

    def _device(self, block: int) -> torch.device:
        return self.devices[block * len(self.devices) // self.total_blocks]

    @property
    def config(self) -> Any:
        """transformers' configuration of the decoder."""
        return self._model.config.get_text_config()

    # Which tensors make what.

    def _check_names(self) -> None:
        for name, target in self._conversion.target.items():
            if target is None and not self._conversion.ignored(name):
                raise StaggerError(f"{self._checkpoint.folder}: the tensor {name} has no place in the model.")

    def _block_of(self, target: str) -> int | None:
        """The block that a parameter belongs to; None for one outside the blocks."""
        start, _, rest = target.partition(f"{self._cut.prefix}.")
        number = rest.partition(".")[0]
        return int(number) if not start and number.isdigit() else None

    def _names(self, block: int | None) -> list[str]:
        """The checkpoint's tensors for a block; with None, for what is outside the blocks."""
        return [name for name, to in self._conversion.target.items() if to is not None and self._block_of(to) == block]

    def _parts(self, block: int | None) -> dict[str, Any]:
        """The parameters and persistent buffers of a block, or of what is outside the blocks."""
        return {name: one for name, one in self._model.state_dict().items() if self._block_of(name) == block}

    def block_bytes(self, block: int) -> int:
        """Bytes of a block's weights in memory."""
        return sum(part.numel() * part.element_size() for part in self._parts(block).values())

    @property
    def ends_bytes(self) -> int:
        """Bytes in memory of what is outside the blocks: embedding, norms, head."""
        unique = {id(part): part for part in dict(self._model.named_parameters()).values()}
        inside = {id(part) for block in self._cut.blocks for part in block.parameters()}
        return sum(part.numel() * part.element_size() for key, part in unique.items() if key not in inside)

    # Loading.

    def weights(self, block: int) -> Weights:
        """The weights of a block, read and converted on the host. May run in another thread while blocks compute."""
        return self._converted(self._names(block), self._parts(block))

    def _converted(self, names: list[str], parts: Mapping[str, Any]) -> Weights:
        made = self._conversion.convert(self._checkpoint.read(names))
        for name in parts:
            if name not in made:
                raise StaggerError(
                    f"{self._checkpoint.folder}: no tensor of the checkpoint makes the parameter {name}."
                )
        return made

    def load(self, block: int, weights: Weights | None = None) -> None:
        """Place the weights of a block on its device; they are read if they are not given."""
        self._load_small()
        self._place(self.weights(block) if weights is None else weights, self._device(block))
        module = self._cut.blocks[block]
        for name, buffer in module.named_buffers():
            put(module, name, buffer.to(self._device(block)))
        self.loaded.add(block)

    def unload(self, block: int) -> None:
        """Free the memory of a block's weights."""
        module = self._cut.blocks[block]
        for name, parameter in module.named_parameters():
            put(module, name, parameter.to("meta"))
        self.loaded.discard(block)

    def load_ends(self) -> None:
        """Load what is outside the blocks: embedding, norms, head."""
        if self._ends_loaded:
            return
        names = self._names(None)
        made = self._conversion.convert(self._checkpoint.read(names))
        self._place(made, self.devices[0])
        parts = self._parts(None)
        self._model.tie_weights(missing_keys=set(parts) - set(made), recompute_mapping=False)
        for name, part in self._parts(None).items():
            if part.is_meta:
                raise StaggerError(
                    f"{self._checkpoint.folder}: no tensor of the checkpoint makes the parameter {name}."
                )
        self._ends_loaded = self._small_loaded = True
        self._place_buffers()

    def _load_small(self) -> None:
        """Load what is outside the blocks, but for the embedding and the head: position embeddings, norms."""
        if self._small_loaded:
            return
        big = {
            id(module.weight)
            for module in (self._model.get_input_embeddings(), self._model.get_output_embeddings())
            if module is not None
        }
        wanted = {
            name
            for name, one in self._model.named_parameters(remove_duplicate=False)
            if self._block_of(name) is None and id(one) not in big
        }
        names = [name for name in self._names(None) if self._conversion.target[name] in wanted]
        self._place(self._conversion.convert(self._checkpoint.read(names)), self.devices[0])
        self._small_loaded = True
        self._place_buffers()

    def _place_buffers(self) -> None:
        for name, buffer in self._model.named_buffers(remove_duplicate=False):
            if self._block_of(name) is None:
                put(self._model, name, buffer.to(self.devices[0]))

    def _place(self, weights: Weights, device: torch.device) -> None:
        for name, tensor in weights.items():
            put(self._model, name, tensor.to(device, non_blocking=True))

    # Computing.

    @torch.no_grad()
    def embed(self, batch: Microbatch) -> torch.Tensor:
        """The hidden state that the first block takes: [rows, length, hidden]."""
        return self._cut.embed(batch.tokens.to(self.devices[0]), batch.mask.to(self.devices[0]))

    @torch.no_grad()
    def run(self, hidden: torch.Tensor, batch: Microbatch, blocks: range) -> torch.Tensor:
        """The hidden state [rows, length, hidden] behind the last of `blocks`, from the one ahead of the first."""
        for block in blocks:
            if block not in self.loaded:
                raise ValueError(f"block {block} is not loaded")
        return self._cut.run(hidden.to(self.devices[0]), batch.mask.to(self.devices[0]), blocks)

    @torch.no_grad()
    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """The last block's output behind the final norm: transformers' `last_hidden_state`."""
        return self._cut.normed(hidden.to(self.devices[0]))

    @torch.no_grad()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, places, hidden] behind the last block, before the final norm -> [rows, places, vocabulary]."""
        return self._cut.logits(hidden.to(self.devices[0]))
