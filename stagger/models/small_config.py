"""A small configuration of the same architecture: few blocks of all kinds, narrow, with a small vocabulary."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

#: At least this many blocks: a first, a last, and two between them.
FEWEST_BLOCKS = 4

#: Upper limits of values that nothing else depends on.
LIMITS = {
    "vocab_size": 512,
    "vocab_size_per_layer_input": 512,
    "sliding_window": 8,
    "attention_chunk_size": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 2,
    "topk_group": 1,
    "mamba_chunk_size": 16,
    "chunk_size": 16,
    "mamba_d_state": 16,
    "ssm_state_size": 16,
    "state_size": 16,
}

#: Values that are proportional to the width. Widths of a head are kept, since rotary tables depend on them.
WIDTHS = (
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "intermediate_size_mlp",
    "ffn_dim",
    "ffn_hidden_size",
    "n_inner",
    "word_embed_proj_dim",
    "embedding_size",
    "lru_width",
    "attention_hidden_size",
    "mamba_d_ssm",
    "mamba_n_heads",
    "mamba_num_heads",
    "num_heads",
)

#: What a width becomes that is no multiple of the factor.
NARROW = 128

#: The least width of a model without heads.
WIDTH_WITHOUT_HEADS = 64

#: Widths are multiples of this, since kernels for experts take no others.
WIDTH_STEP = 16

#: Tokens with a special meaning lie within the vocabulary.
SPECIAL_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def small(config: Any, blocks: int) -> Any:
    """A copy of `config` with the first `blocks` blocks only, and narrow ones."""
    made = few_blocks(config, blocks)
    text = made.get_text_config()
    factor = narrowing(text)
    for key in WIDTHS:
        value = getattr(text, key, None)
        if type(value) is int and value > 1:
            setattr(text, key, narrowed(value, factor, heads="heads" in key))
    limit(text, LIMITS)
    return made


def few_blocks(config: Any, blocks: int) -> Any:
    """A copy of `config` with the first `blocks` blocks only, and a small vocabulary."""
    made = copy.deepcopy(config)
    text = made.get_text_config()
    for key, values in per_block(text, text.num_hidden_layers).items():
        setattr(text, key, values[:blocks])
    text.num_hidden_layers = blocks
    limit(text, {"vocab_size": LIMITS["vocab_size"]})
    limit(text, SPECIAL_TOKENS)
    return made


def limit(config: Any, limits: dict[str, int]) -> None:
    for key, most in limits.items():
        value = getattr(config, key, None)
        if type(value) is int and value > most:
            setattr(config, key, most)


def narrowing(config: Any) -> int:
    """The factor by which the model becomes narrower, so that two heads are left, or as many as the width asks for."""
    width = int(config.hidden_size)
    heads = getattr(config, "num_attention_heads", None)
    fewest = 2
    if type(heads) is not int or heads < 2:
        heads, fewest = width, WIDTH_WITHOUT_HEADS
    left = [*range(fewest, heads), 1]  # One head is the last choice.
    factors = [heads // few for few in left if heads % few == 0 and width % (heads // few) == 0]
    return next((one for one in factors if width // one % WIDTH_STEP == 0), 1)


def narrowed(value: int, factor: int, *, heads: bool) -> int:
    if value % factor == 0:
        return value // factor
    return 1 if heads else min(value, NARROW)


def blocks_of_all_kinds(kinds: Sequence[object]) -> int:
    """The number of first blocks among which there is one of each kind.

    >>> blocks_of_all_kinds("aaaaaaaa"), blocks_of_all_kinds("aaaaab"), blocks_of_all_kinds("ab")
    (4, 6, 2)
    """
    return min(len(kinds), max(FEWEST_BLOCKS, 1 + max(kinds.index(kind) for kind in set(kinds))))


def kinds_of_blocks(config: Any, blocks: Sequence[Any]) -> list[object]:
    """What tells the blocks of a model apart: the names of their parameters, and their values in lists of `config`."""
    values = [tuple(map(repr, value)) for value in per_block(config.get_text_config(), len(blocks)).values()]
    kinds = [column for column in values if len(set(column)) < len(column)]  # Not the numbers of the blocks.
    names = [tuple(name for name, _ in block.named_parameters()) for block in blocks]
    return list(zip(names, *kinds, strict=True))


def per_block(config: Any, blocks: int) -> dict[str, list[Any]]:
    """The values of a configuration that are lists with one item for each block."""
    return {key: value for key, value in vars(config).items() if isinstance(value, list) and len(value) == blocks}
