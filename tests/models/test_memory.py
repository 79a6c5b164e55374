"""What blocks and microbatches take in memory, and how fast they are, is what torch really allocates and does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch.profiler import ProfilerActivity, profile

from stagger.models.cut import Cut
from stagger.models.cut_check import checked
from stagger.models.memory import Widths, activations, room
from stagger.models.pace import Pace
from tests.models.architectures import config_of

#: The estimate is at most this many times what is allocated.
MOST_TOO_MUCH = 3.0


def peak_bytes(function: Callable[[], Any]) -> int:
    """The most that torch has allocated at once on the CPU, beyond what it had before, as its allocator reports it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe", "gpt2", "bloom"])
def test_activations_are_what_torch_allocates_or_a_little_more(architecture: str, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    config = config_of(architecture)
    config.max_position_embeddings = config.n_positions = 1024
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    hidden_size = config.get_text_config().hidden_size
    fused = model.config._attn_implementation == "sdpa"
    widths = Widths.of(config.to_dict(), hidden_size, fused=fused)
    cut = Cut(model, checked(config, dtype))
    for rows, length in ((8, 64), (4, 256), (1, 1024)):
        mask = torch.ones((rows, length), dtype=torch.long)
        mask[0, -3:] = 0
        hidden = torch.zeros((rows, length, hidden_size), dtype=dtype)
        with torch.inference_mode():
            cut.run(hidden, mask, range(1, 2))
            found = peak_bytes(lambda: cut.run(hidden, mask, range(1, 2)))  # noqa: B023 # It is called at once.
        assert 1 <= activations(widths, rows, length, dtype.itemsize) / found <= MOST_TOO_MUCH


def test_widths_are_those_of_the_configuration() -> None:
    def widths(architecture: str, *, fused: bool = True) -> Widths:
        return Widths.of(config_of(architecture).to_dict(), 64, fused=fused)

    assert widths("llama") == Widths(hidden=64, feed_forward=128)
    assert widths("gpt2", fused=False) == Widths(hidden=64, feed_forward=256, heads=4)
    assert widths("mixtral") == Widths(hidden=64, feed_forward=256, copies=2)
    assert widths("opt") == Widths(hidden=64, feed_forward=128)


def test_room_is_the_blocks_that_fit_beside_activations_and_ends_with_a_tenth_in_reserve() -> None:
    assert room(free=1100, largest_block=100, activations=0) == 10
    assert room(free=1099, largest_block=100, activations=0) == 9
    assert room(free=1100, largest_block=100, activations=150, ends=250) == 6
    assert room(free=100, largest_block=100, activations=0) == 0
    assert room(free=0, largest_block=100, activations=500) == 0


def test_a_pace_is_tokens_through_one_block_in_a_second() -> None:
    assert Pace("NVIDIA H200", 0.02, 4096).tokens_per_s == 204_800
