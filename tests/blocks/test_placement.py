"""Block placement: results of Petals and of a plain reference, and properties that hold for any swarm."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagger.blocks.placement import petals
from stagger.blocks.placement.spans import ServerState, Span
from tests.conftest import DATA
from tests.kit import blocks_oracle

GOLDEN: dict[str, list[dict[str, Any]]] = json.loads((DATA / "placement_golden.json").read_text())


def spans_of(case: dict[str, Any]) -> list[Span]:
    return [Span(name, start, end, rate, ServerState[state]) for name, start, end, rate, state in case["servers"]]


#: Throughputs with exact ties, with sums that round, and of very different sizes.
THROUGHPUTS = st.sampled_from([1.0, 2.0, 3.0, 0.1, 0.2, 0.3, 1e-4, 1e-18, 1e6]) | st.floats(1e-6, 1e6)


@st.composite
def swarms(draw: st.DrawFn, min_servers: int = 0) -> tuple[list[Span], int]:
    """Servers of a model, at least `min_servers` of them joining or online, and its number of blocks."""
    total = draw(st.integers(1, 24))
    throughputs = THROUGHPUTS if draw(st.booleans()) else st.just(1.0)
    spans = []
    for index in range(draw(st.integers(min_servers, 10))):
        length = draw(st.integers(1, total))
        start = draw(st.integers(0, total - length))
        state = draw(st.sampled_from(list(ServerState)[index < min_servers :]))
        spans.append(Span(f"server-{index}", start, start + length, draw(throughputs), state))
    return spans, total


@pytest.mark.parametrize("case", GOLDEN["choose_best_blocks"], ids=lambda case: f"{case['kind']}-{case['id']}")
def test_new_server_chooses_the_blocks_that_petals_chooses(case: dict[str, Any]) -> None:
    spans, total = spans_of(case), case["total_blocks"]
    assert petals.compute_throughputs(spans, total).tolist() == case["block_throughputs"]
    assert list(petals.choose_best_blocks(case["num_blocks"], spans, total)) == case["expected"]
    assert list(blocks_oracle.choose_best_blocks(case["num_blocks"], spans, total)) == case["expected"]


@pytest.mark.parametrize(
    "case", GOLDEN["should_choose_other_blocks"], ids=lambda case: f"{case['branch']}-{case['id']}"
)
def test_server_moves_when_petals_would(case: dict[str, Any]) -> None:
    arguments = case["local_peer"], spans_of(case), case["total_blocks"], case["balance_quality"]
    for seed in range(10):
        for rule in (petals.should_choose_other_blocks, blocks_oracle.should_choose_other_blocks):
            assert rule(*arguments, rng=np.random.default_rng(seed)) is case["expected"]


@given(swarm=swarms(), room=st.integers(1, 24))
@settings(max_examples=500, deadline=None)
def test_choosing_fast_is_choosing_plainly(swarm: tuple[list[Span], int], room: int) -> None:
    spans, total = swarm
    room = min(room, total)
    assert petals.choose_best_blocks(room, spans, total) == blocks_oracle.choose_best_blocks(room, spans, total)


@given(throughputs=st.lists(st.integers(-1, 4) | st.floats(-1, 9), min_size=1, max_size=60), length=st.integers(1, 60))
@settings(max_examples=1000, deadline=None)
def test_worst_window_is_the_plain_one(throughputs: list[float], length: int) -> None:
    values, length = np.array(throughputs, dtype=float), min(length, len(throughputs))
    assert petals.best_start(values, length) == blocks_oracle.best_start(values, length)


@pytest.mark.parametrize("length", [1, 2, 63, 204, 999, 1000])
def test_worst_window_of_a_large_model_is_the_plain_one(length: int) -> None:
    """Ties of all kinds, and windows that differ only in the count of the twelfth value, beyond one machine word."""
    rng = np.random.default_rng(length)
    periodic = np.arange(1000.0) % 50
    late = np.arange(1000.0) % 12
    late[late == 11] += rng.integers(0, 3, np.count_nonzero(late == 11))
    few, many, distinct = rng.integers(0, 3, 1000), rng.integers(0, 40, 1000), rng.uniform(0, 9, 1000)
    mirrored = (late[::-1], periodic[::-1])
    for values in (np.zeros(1000), late, periodic, *mirrored, few * 0.1, many * 0.1, distinct):
        throughputs = np.array(values, dtype=np.float64)
        assert petals.best_start(throughputs, length) == blocks_oracle.best_start(throughputs, length)


@given(swarm=swarms(min_servers=1), quality=st.sampled_from([0.5, 0.75, 0.99, 1.0, 1.5]), seed=st.integers(0, 99))
@settings(max_examples=1000, deadline=None)
def test_deciding_fast_is_deciding_plainly(swarm: tuple[list[Span], int], quality: float, seed: int) -> None:
    spans, total = swarm
    fast, plain = (
        rule("server-0", spans, total, quality, rng=np.random.default_rng(seed))
        for rule in (petals.should_choose_other_blocks, blocks_oracle.should_choose_other_blocks)
    )
    assert fast is plain
    rng = np.random.default_rng(seed)
    assert petals.should_choose_other_blocks("server-0", spans, total, quality, rng=rng, stop_early=True) is plain


@pytest.mark.parametrize("seed", range(6))
def test_large_swarms_are_decided_as_plainly(seed: int) -> None:
    """Not only the answers are equal: both draw the same random numbers, so the same servers move in the same order."""
    draw = random.Random(seed)
    total = draw.choice([40, 80])
    spans = []
    for index in range(40):
        length = draw.choice([7, 13, 23])
        start = draw.randrange(total - length + 1)
        spans.append(Span(f"{index:02}", start, start + length, draw.choice([1.0, 2.5, draw.uniform(0.5, 9)])))
    for local in spans[::8]:
        fast, plain = np.random.default_rng(seed), np.random.default_rng(seed)
        assert petals.should_choose_other_blocks(local.server_id, spans, total, 0.99, rng=fast) is (
            blocks_oracle.should_choose_other_blocks(local.server_id, spans, total, 0.99, rng=plain)
        )
        assert fast.random() == plain.random()


@given(swarm=swarms(min_servers=1), seed=st.integers(0, 99), order=st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_order_of_servers_changes_nothing(swarm: tuple[list[Span], int], seed: int, order: random.Random) -> None:
    spans, total = swarm
    shuffled = order.sample(spans, len(spans))
    assert petals.compute_throughputs(spans, total).tobytes() == petals.compute_throughputs(shuffled, total).tobytes()
    room = spans[0].length
    assert petals.choose_best_blocks(room, spans, total) == petals.choose_best_blocks(room, shuffled, total)
    first, second = (
        petals.should_choose_other_blocks("server-0", some, total, 0.99, rng=np.random.default_rng(seed))
        for some in (spans, shuffled)
    )
    assert first is second


@given(swarm=swarms(min_servers=1), quality=st.sampled_from([0.75, 0.99, 1.0]), seed=st.integers(0, 99))
@settings(max_examples=1000, deadline=None)
def test_server_that_leaves_never_disconnects_a_connected_swarm(
    swarm: tuple[list[Span], int], quality: float, seed: int
) -> None:
    spans, total = swarm
    if petals.compute_throughputs(spans, total).min() <= petals.EPS:
        return
    if petals.should_choose_other_blocks("server-0", spans, total, quality, rng=np.random.default_rng(seed)):
        assert petals.compute_throughputs(spans[1:], total).min() > 0


@given(swarm=swarms(min_servers=1), seed=st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_swarm_that_follows_its_rules_comes_to_rest(swarm: tuple[list[Span], int], seed: int) -> None:
    """Each server in turn applies rule 2, and moves by rule 1: the swarm gets no slower, and soon no server moves."""
    spans, total = swarm
    spans = [replace(span, state=ServerState.ONLINE) for span in spans]
    rng = np.random.default_rng(seed)
    for _ in range(50):
        moves = 0
        for index, span in enumerate(spans):
            if not petals.should_choose_other_blocks(span.server_id, spans, total, 0.99, rng=rng):
                continue
            before = petals.compute_throughputs(spans, total).min()
            blocks = petals.choose_best_blocks(span.length, spans[:index] + spans[index + 1 :], total)
            spans[index] = replace(span, start=blocks.start, end=blocks.stop)
            after = petals.compute_throughputs(spans, total).min()
            assert after >= before * (1 - 2 * petals.EPS)
            moves += blocks.start != span.start
        if not moves:
            return
    pytest.fail("servers still move after 50 rounds")


def test_unknown_server_is_told_to_announce_itself_again() -> None:
    spans = [Span("a", 0, 4, 1.0), Span("b", 0, 4, 1.0, ServerState.OFFLINE)]
    for expired in ("b", "c"):
        with pytest.raises(LookupError, match=f"server {expired} is not among the 1 .* announce it again"):
            petals.should_choose_other_blocks(expired, spans, 4, rng=np.random.default_rng(0))


@pytest.mark.parametrize("num_blocks", [0, 5])
def test_room_for_no_block_or_more_than_all_is_refused(num_blocks: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 4 of 4 blocks, not {num_blocks}"):
        petals.choose_best_blocks(num_blocks, [], 4)


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (2, 2), (3, 5)])
def test_span_beyond_the_model_is_refused(start: int, end: int) -> None:
    with pytest.raises(ValueError, match=f"server a hosts blocks {start} to {end} of a model of 4"):
        petals.compute_throughputs([Span("a", start, end, 1.0)], 4)


def test_delays_are_uniform_around_their_means() -> None:
    rng = np.random.default_rng(0)
    for delay, mean in ((petals.balance_check_delay, 120), (petals.block_selection_delay, 5)):
        delays = [delay(rng) for _ in range(4000)]
        assert 0 <= min(delays) < 0.01 * mean
        assert 1.99 * mean < max(delays) <= 2 * mean
        assert sum(delays) / len(delays) == pytest.approx(mean, rel=0.05)
    assert petals.balance_check_delay(rng, mean_s=0) == 0


def test_throughput_is_that_of_the_slower_of_computing_and_network() -> None:
    assert petals.server_throughput(forward_rps=900, network_rps=1e6, num_blocks=1) == 900
    assert petals.server_throughput(forward_rps=900, network_rps=1e6, num_blocks=8) == 200
    assert petals.server_throughput(forward_rps=900, network_rps=100, num_blocks=8) == 100
    assert petals.server_throughput(forward_rps=900, network_rps=100, num_blocks=8, behind_relay=True) == 20
