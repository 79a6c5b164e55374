"""How large a model is, block by block: from config.json and the headers of its safetensors files. No weights are read.

Names of tensors number their block: `model.layers.12.self_attn.q_proj.weight`, `transformer.h.3.mlp.c_fc.weight`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stagger.errors import StaggerError, counted
from stagger.models.config_facts import (
    EXPERT,
    EXPERTS_PER_TOKEN,
    FEED_FORWARD,
    HIDDEN,
    VOCABULARY,
    number_of,
    own_dtype,
    read_config,
)
from stagger.models.dtypes import COMPUTING, NUMBER_TYPES
from stagger.models.memory import FEED_FORWARD_STATES, HIDDEN_STATES
from stagger.models.model_folder import header
from stagger.models.model_json import damaged, parsed
from stagger.spec.blocks import DEPTH_KEYS, depth
from stagger.storage import Entry
from stagger.storage.storage import Storage, absolute, join

#: The number of a block in a tensor's name, and what is in front of it.
NUMBERED = re.compile(r"^(?P<before>(?:[^.]+\.)*?)(?P<block>\d+)\.")

#: Keys of config.json for the number of all experts.
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class ModelSize:
    """A model's size. Bytes are those in memory, in the dtype that computes.

    block_bytes: of each block. ends_bytes: of what is outside the blocks: embedding, norm, head. block_flop: operations
    of one token in the mean block: two for each parameter that the token passes; attention over long texts comes on
    top. head_flop: the same for the head. activations: bytes that a microbatch takes on a device, roughly.
    estimated: whether the folder has no weights, so that config.json alone tells.
    """

    path: str
    block_bytes: tuple[int, ...]
    ends_bytes: int
    hidden: int
    item_bytes: int
    block_flop: float
    head_flop: float
    activations: int
    estimated: bool = False

    @property
    def total_blocks(self) -> int:
        return len(self.block_bytes)

    @property
    def largest(self) -> int:
        return max(self.block_bytes)

    @property
    def bytes(self) -> int:
        return sum(self.block_bytes) + self.ends_bytes


def read_model(storage: Storage, model: str, *, dtype: str | None, tokens: int) -> ModelSize:
    """The size of the model in a folder, for microbatches of `tokens` tokens. `dtype`: what computes; None or
    auto: that of config.json.

    Raises StaggerError when config.json or a header cannot be read, or does not say what is needed.
    """
    if dtype not in (None, "auto", *COMPUTING):
        raise StaggerError(f"dtype {dtype} is not one of auto, {', '.join(COMPUTING)}.")
    folder = absolute(model).removesuffix("config.json").rstrip("/")
    config = read_config(storage, folder)
    total, hidden = depth(config), number_of(config, HIDDEN)
    if total is None or hidden is None:
        what, names = ("number of blocks", DEPTH_KEYS) if total is None else ("width", HIDDEN)
        raise StaggerError(f"{join(folder, 'config.json')} has no {what}: none of {', '.join(names)}.")
    files = [entry for entry in storage.list(folder) if entry.name.endswith(".safetensors")]
    tensors = _merged(_header(storage, folder, entry) for entry in files)
    sizes = _Sizes.of(folder, tensors, total, config) if tensors else _Sizes.guessed(config, total, hidden)
    own = own_dtype(config) if dtype in (None, "auto") else dtype
    item_bytes = NUMBER_TYPES[own].bytes if own in NUMBER_TYPES else 2
    width = number_of(config, FEED_FORWARD) or 4 * hidden
    return ModelSize(
        path=folder,
        block_bytes=tuple(count * item_bytes for count in sizes.blocks),
        ends_bytes=sizes.ends * item_bytes,
        hidden=hidden,
        item_bytes=item_bytes,
        block_flop=2 * sizes.passed,
        head_flop=2.0 * hidden * (number_of(config, VOCABULARY) or 0),
        activations=tokens * (HIDDEN_STATES * hidden + FEED_FORWARD_STATES * width) * item_bytes,
        estimated=not tensors,
    )


@dataclass(frozen=True)
class _Sizes:
    """Numbers of parameters: of each block, of the ends, and those of the mean block that a token passes."""

    blocks: tuple[int, ...]
    ends: int
    passed: float

    @classmethod
    def of(cls, folder: str, tensors: Mapping[str, int], total: int, config: Mapping[str, Any]) -> _Sizes:
        """From the tensors: name -> number of values."""
        numbered = {name: match for name in tensors if (match := NUMBERED.match(name))}
        stacks = Counter(match["before"] for match in numbered.values() if int(match["block"]) < total)
        if not stacks:
            raise StaggerError(f"{folder}: no name of a tensor numbers a block, such as model.layers.0.mlp.weight.")
        (stack, _), *_ = stacks.most_common(1)
        counts, experts = [0] * total, 0
        for name, match in numbered.items():
            if match["before"] == stack and int(match["block"]) < total:
                counts[int(match["block"])] += tensors[name]
                experts += tensors[name] if "experts." in name and "shared" not in name else 0
        if 0 in counts:
            raise StaggerError(
                f"{folder}: no tensor of block {counts.index(0)} is there, of {counted(total, 'block')}."
            )
        passed = _share_of_experts(config)
        return cls(
            blocks=tuple(counts),
            ends=sum(tensors.values()) - sum(counts),
            passed=(sum(counts) - experts * (1 - passed)) / total,
        )

    @classmethod
    def guessed(cls, config: Mapping[str, Any], total: int, hidden: int) -> _Sizes:
        """From config.json alone, for a decoder with gated feed-forward layers, as Llama's."""
        heads = number_of(config, ("num_attention_heads", "n_head")) or 1
        shared = number_of(config, ("num_key_value_heads",)) or heads
        attention = 2 * hidden * hidden + 2 * hidden * hidden * shared // heads
        width = number_of(config, EXPERT) or number_of(config, FEED_FORWARD) or 4 * hidden
        feed_forward = 3 * hidden * width * (number_of(config, EXPERTS) or 1)
        ends = (number_of(config, VOCABULARY) or 0) * hidden * (1 if config.get("tie_word_embeddings") else 2)
        passed = attention + feed_forward * _share_of_experts(config)
        return cls((attention + feed_forward,) * total, ends, passed)


def _share_of_experts(config: Mapping[str, Any]) -> float:
    experts, passed = number_of(config, EXPERTS), number_of(config, EXPERTS_PER_TOKEN)
    return passed / experts if experts and passed else 1.0


def _header(storage: Storage, folder: str, entry: Entry) -> dict[str, int]:
    """The tensors of a safetensors file: name -> number of values."""
    path = join(folder, entry.name)
    tensors = parsed(path, header(storage, folder, entry)[0])
    try:
        return {name: math.prod(tensor["shape"]) for name, tensor in tensors.items() if name != "__metadata__"}
    except (KeyError, TypeError):
        raise damaged(path, "its header gives a tensor without a shape") from None


def _merged(headers: Iterable[dict[str, int]]) -> dict[str, int]:
    return {name: tensor for header in headers for name, tensor in header.items()}
