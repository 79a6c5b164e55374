"""How many blocks of a model fit into which memory. Pure, and imports no torch: `stagger blocks plan` counts alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stagger.models.config_facts import EXPERT, EXPERTS_PER_TOKEN, FEED_FORWARD, SHARED_EXPERT

#: A need is multiplied by this ratio: libraries allocate too, and there are gaps between allocations.
RESERVE = (11, 10)

#: Tensors of [rows, length, hidden], and of [rows, length, feed-forward width], that a block holds at its peak, and
#: bytes for each pair of tokens of a row in masks, and in the scores of a head without a fused kernel. Upper bounds of
#: what torch's profiler found in thirteen architectures of transformers (tests/models/test_memory.py repeats three).
HIDDEN_STATES, FEED_FORWARD_STATES = 6, 4
MASK_BYTES, SCORE_BYTES = 6, 18


@dataclass(frozen=True)
class Widths:
    """What decides how much memory a block takes for a microbatch.

    hidden: the width of the hidden state, or of all heads together, if that is more.
    feed_forward: the width of the feed-forward layer, or the sum over the experts that a token passes.
    copies: how often the hidden state of a token is copied for its experts.
    heads: attention heads whose scores are held, 0 where a fused kernel computes them.
    """

    hidden: int
    feed_forward: int
    copies: int = 0
    heads: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any], hidden_size: int, *, fused: bool) -> Widths:
        """The widths in a model's configuration, as in its config.json."""
        heads = _largest(config, ("num_attention_heads", "n_head"))
        hidden = max(hidden_size, heads * _largest(config, ("head_dim", "v_head_dim")))
        experts = _largest(config, EXPERTS_PER_TOKEN)
        width = _largest(config, FEED_FORWARD) or 4 * hidden_size
        expert = _largest(config, EXPERT) + _largest(config, SHARED_EXPERT) or width
        return cls(hidden, max(width, experts * expert), experts, 0 if fused else heads)


def _largest(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    return max((value for name in names if isinstance(value := config.get(name), int)), default=0)


def activations(widths: Widths, rows: int, length: int, item_bytes: int) -> int:
    """Bytes that a block takes beside its weights while `rows` rows of `length` tokens pass it, at most.

    rows * length * item_bytes * ((6 + 2 * experts) * hidden + 4 * feed_forward), and for each pair of tokens of a row
    6 bytes of masks, and 18 bytes for each head whose scores are held.
    """
    states = (HIDDEN_STATES + 2 * widths.copies) * widths.hidden + FEED_FORWARD_STATES * widths.feed_forward
    pairs = MASK_BYTES + SCORE_BYTES * widths.heads
    return rows * length * (states * item_bytes + length * pairs)


def with_reserve(need: int) -> int:
    """The need in bytes, and a tenth more."""
    return -(-need * RESERVE[0] // RESERVE[1])


def without_reserve(free: int) -> int:
    """The largest need that fits into `free` bytes with its reserve."""
    return free * RESERVE[1] // RESERVE[0]


def room(free: int, largest_block: int, activations: int, ends: int = 0) -> int:
    """How many blocks fit into `free` bytes beside the activations of the largest microbatch, and the ends if wanted:
    floor((free / 1.1 - activations - ends) / largest_block).
    """
    left = without_reserve(free) - activations - ends
    return max(0, left // largest_block)
