"""A model whose blocks are loaded one by one from a checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from stagger.errors import StaggerError
from stagger.models.checkpoint import Checkpoint
from stagger.models.cut import Cut
from stagger.models.cut_check import checked
from stagger.models.devices import CPU
from stagger.models.microbatch import Microbatch
from stagger.models.tensor_plan import TensorPlan, some
from stagger.models.transformers_loading import Conversion, config_of, put, skeleton

#: Parameters and buffers by their names in the model, on the host, in the dtypes that the model computes with.
Weights = Mapping[str, torch.Tensor]


class CutModel:
    """A causal language model of transformers, with those of its blocks that are loaded.

    It computes what the whole model computes, bit for bit, in one thread at a time; `weights` may run in another one.
    Block i of n lies on device i*k//n of the k `devices`; what is outside the blocks lies on the first.

    Raises StaggerError when the architecture cannot be cut, or when the checkpoint's tensors are not the model's: each
    one that is missing, or that the model has no place for, is named.

    total_blocks: their number, loaded or not.
    hidden_size: elements of a token's hidden state.
    loaded: the blocks that `run` may pass.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, devices: Sequence[torch.device] = (CPU,)) -> None:
        config = config_of(checkpoint.config)
        self.dtype = dtype
        self.devices = tuple(devices)
        self._checkpoint = checkpoint
        self._cut = Cut(skeleton(config, dtype), checked(config, dtype))
        self._model = self._cut.model
        conversion = Conversion(skeleton(config, dtype).to("meta"), dtype, checkpoint.tensors)
        self._plan = TensorPlan(self._model, self._cut.prefix, conversion, checkpoint.folder)
        self.total_blocks = len(self._cut.blocks)
        self.hidden_size = int(config.get_text_config().hidden_size)
        self.loaded: set[int] = set()
        self._outside: set[str] = set()  # The parameters outside the blocks that are loaded.

    def device_of(self, block: int) -> torch.device:
        """The device that a block lies on."""
        return self.devices[block * len(self.devices) // self.total_blocks]

    @property
    def config(self) -> Any:
        """transformers' configuration of the decoder."""
        return self._model.config.get_text_config()

    def block_bytes(self, block: int) -> int:
        """Bytes of a block's weights in memory."""
        return sum(self._plan.parts[block].values())

    @property
    def ends_bytes(self) -> int:
        """Bytes in memory of what is outside the blocks: embedding, norms, head. A tied head counts once."""
        tied = self._model.all_tied_weights_keys
        return sum(size for name, size in self._plan.parts[None].items() if name not in tied)

    def weights(self, block: int) -> Weights:
        """The weights of a block, read and converted on the host. May run in another thread while blocks compute.

        Raises StaggerError when they cannot be read, or do not fit into the model.
        """
        made = self._converted(self._plan.names[block])
        if missing := self._plan.parts[block].keys() - made.keys():
            raise self._missing(missing)
        return made

    def _converted(self, names: Collection[str]) -> dict[str, torch.Tensor]:
        return self._plan.converted(self._checkpoint.read(names))

    def _missing(self, names: Collection[str]) -> StaggerError:
        return StaggerError(f"{self._checkpoint.folder}: no tensors make the parameters {some(names)} of the model.")

    def load(self, block: int, weights: Weights | None = None) -> None:
        """Place the weights of a block on its device; they are read if they are not given."""
        self._load_small()
        self._place(self.weights(block) if weights is None else weights, self.device_of(block))
        module = self._cut.blocks[block]
        for name, buffer in list(module.named_buffers()):
            put(module, name, buffer.to(self.device_of(block)))
        self.loaded.add(block)

    def unload(self, block: int) -> None:
        """Free the memory of a block's weights."""
        module = self._cut.blocks[block]
        for name, parameter in list(module.named_parameters()):
            put(module, name, parameter.to("meta"))
        self.loaded.discard(block)

    def load_ends(self) -> None:
        """Load what is outside the blocks, for `embed`, `normed` and `logits`: embedding, norms, head."""
        if self._outside == self._plan.parts[None].keys():
            return
        made = self._load_outside(self._plan.names[None])
        absent = self._plan.parts[None].keys() - made
        self._model.tie_weights(missing_keys=set(absent), recompute_mapping=False)
        state = self._model.state_dict()
        if missing := [name for name in self._plan.parts[None] if state[name].is_meta]:
            raise self._missing(missing)
        self._outside |= self._plan.parts[None].keys()

    def _load_small(self) -> None:
        """Load what is outside the blocks, but for the embedding and the head: position embeddings, norms."""
        if self._outside:
            return
        ends = (self._model.get_input_embeddings(), self._model.get_output_embeddings())
        large = {id(module.weight) for module in ends if module is not None}
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        wanted = {name for name in self._plan.parts[None] if id(parameters.get(name)) not in large}
        target = self._plan.target
        made = self._load_outside([name for name in self._plan.names[None] if target[name] in wanted])
        if missing := wanted - made:
            raise self._missing(missing)
        self._outside |= made

    def _load_outside(self, names: Collection[str]) -> set[str]:
        """Load parameters outside the blocks. Returns their names."""
        made = self._converted(names)
        self._place(made, self.devices[0])
        for name, buffer in list(self._model.named_buffers(remove_duplicate=False)):
            if self._plan.block_of(name) is None:
                put(self._model, name, buffer.to(self.devices[0]))
        return set(made)

    def _place(self, weights: Weights, device: torch.device) -> None:
        for name, tensor in weights.items():
            put(self._model, name, tensor.to(device, non_blocking=True))

    def embed(self, batch: Microbatch) -> torch.Tensor:
        """The hidden state that the first block takes: [rows, length, hidden]."""
        with torch.no_grad():
            return self._cut.embed(batch.tokens.to(self.devices[0]), batch.mask.to(self.devices[0]))

    def run(self, hidden: torch.Tensor, batch: Microbatch, blocks: range) -> torch.Tensor:
        """The hidden state [rows, length, hidden] behind the last of `blocks`, from the one ahead of the first.

        It is on the device of the last block. Raises ValueError when one of the blocks is not loaded.
        """
        if absent := set(blocks) - self.loaded:
            raise ValueError(f"not loaded: blocks {sorted(absent)}")
        with torch.no_grad():
            return self._cut.run(hidden, batch.mask.to(self.devices[0]), blocks)

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """The last block's output behind the final norm: transformers' `last_hidden_state`."""
        with torch.no_grad():
            return self._cut.normed(hidden.to(self.devices[0]))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, places, hidden] behind the last block, before the final norm -> [rows, places, vocabulary]."""
        with torch.no_grad():
            return self._cut.logits(hidden.to(self.devices[0]))
