"""Single and planned moves: properties that hold for any swarm."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagger.blocks.placement.joint_moves import horizon, planned_moves
from stagger.blocks.placement.own_gain import own_move, uncovered_by
from stagger.blocks.placement.petals import compute_throughputs
from stagger.blocks.placement.spans import ServerState, Span

#: Throughputs of servers: a few values that tie, or any.
THROUGHPUTS = st.sampled_from([1.0, 2.0, 3.0, 0.1, 0.2, 0.3]) | st.floats(0.01, 100)

SCALES = st.sampled_from([1e-4, 1e4, 0.25, 1e-12])


@st.composite
def swarms(draw: st.DrawFn) -> tuple[list[Span], list[Span], int]:
    """Joining and online servers, the part of its span that each serves (or none), and the number of blocks."""
    total = draw(st.integers(1, 24))
    spans, online = [], []
    for index in range(draw(st.integers(1, 10))):
        length = draw(st.integers(1, total))
        start = draw(st.integers(0, total - length))
        span = Span(f"server-{index}", start, start + length, draw(THROUGHPUTS))
        if draw(st.booleans()):  # This server is still loading all or part of its span.
            span = replace(span, state=ServerState.JOINING)
            served = draw(st.none() | st.integers(1, length))
            if served:
                online.append(replace(span, end=start + served, state=ServerState.ONLINE))
        else:
            online.append(span)
        spans.append(span)
    return spans, online, total


def scaled(spans: list[Span], factor: float) -> list[Span]:
    return [replace(span, throughput=span.throughput * factor) for span in spans]


def plan(
    spans: list[Span], online: list[Span], total: int, *, delta: bool = True, seed: int = 0, block_s: float = 3
) -> dict[str, range]:
    rng = np.random.default_rng(seed)
    return planned_moves(spans, online, total, seconds_per_block=block_s, horizon_s=300, rng=rng, delta=delta, kicks=4)


def hosts(spans: list[Span], total: int) -> list[set[str]]:
    """The servers of each block."""
    return [{span.server_id for span in spans if span.start <= block < span.end} for block in range(total)]


def after_moves(served: list[Span], moves: dict[str, range], *, delta: bool) -> list[Span]:
    """Plain reference: the spans served once the moves have begun."""
    left = []
    for span in served:
        window = moves.get(span.server_id)
        if window is None:
            left.append(span)
        elif delta and (start := max(span.start, window.start)) < (end := min(span.end, window.stop)):
            left.append(replace(span, start=start, end=end))
    return left


def targets(spans: list[Span], moves: dict[str, range]) -> list[Span]:
    return [
        replace(span, start=moves[span.server_id].start, end=moves[span.server_id].stop)
        if span.server_id in moves
        else span
        for span in spans
    ]


@given(swarm=swarms(), delta=st.booleans())
@settings(max_examples=200, deadline=None)
def test_own_move_gains_what_it_promises_and_uncovers_nothing(
    swarm: tuple[list[Span], list[Span], int], delta: bool
) -> None:
    spans, online, total = swarm
    before = hosts(online, total)
    for span in spans:
        window = own_move(span.server_id, spans, online, total, min_gain=0.1, delta=delta)
        if window is None:
            continue
        moves = {span.server_id: window}
        now, then = (compute_throughputs(some, total).min() for some in (spans, targets(spans, moves)))
        assert then >= now * (1.1 - 1e-6)
        assert then > 0
        assert len(window) == span.length
        after = hosts(after_moves(online, moves, delta=delta), total)
        assert not [block for block in range(total) if before[block] and not after[block]]


@given(swarm=swarms(), delta=st.booleans(), seed=st.integers(0, 9), block_s=st.sampled_from([0, 3, 30]))
@settings(max_examples=200, deadline=None)
def test_plan_gains_and_uncovers_nothing_and_leaves_those_that_load(
    swarm: tuple[list[Span], list[Span], int], delta: bool, seed: int, block_s: float
) -> None:
    spans, online, total = swarm
    moves = plan(spans, online, total, delta=delta, seed=seed, block_s=block_s)
    if not moves:
        return
    gain = compute_throughputs(targets(spans, moves), total).min() - compute_throughputs(spans, total).min()
    assert gain > 0
    lengths = {span.server_id: span.length for span in spans if span.state == ServerState.ONLINE}
    assert all(0 <= window.start < window.stop <= total for window in moves.values())
    assert all(len(window) == lengths[name] for name, window in moves.items())
    during = after_moves(online, moves, delta=delta)
    before, after = hosts(online, total), hosts(during, total)
    assert not [block for block in range(total) if before[block] and not after[block]]
    served, kept = compute_throughputs(online, total), compute_throughputs(during, total)
    assert kept.min() >= served.min() * (0.5 - 1e-6)
    has = {span.server_id: range(span.start, span.end) if delta else range(0) for span in online}
    loading_s = block_s * max(len(set(window) - set(has[name])) for name, window in moves.items())
    assert gain * (300 - loading_s) > (served.min() - kept.min()) * loading_s


@given(swarm=swarms(), order=st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_order_of_servers_changes_nothing(swarm: tuple[list[Span], list[Span], int], order: random.Random) -> None:
    spans, online, total = swarm
    shuffled, served = order.sample(spans, len(spans)), order.sample(online, len(online))
    assert plan(spans, online, total) == plan(shuffled, served, total)
    assert own_move("server-0", spans, online, total) == own_move("server-0", shuffled, served, total)


@given(swarm=swarms(), factor=SCALES)
@settings(max_examples=100, deadline=None)
def test_unit_of_throughput_changes_nothing(swarm: tuple[list[Span], list[Span], int], factor: float) -> None:
    spans, online, total = swarm
    for span in spans:
        assert own_move(span.server_id, spans, online, total) == own_move(
            span.server_id, scaled(spans, factor), scaled(online, factor), total
        )
    assert plan(spans, online, total) == plan(scaled(spans, factor), scaled(online, factor), total)


@given(swarm=swarms())
@settings(max_examples=50, deadline=None)
def test_swarm_that_follows_comes_to_rest(swarm: tuple[list[Span], list[Span], int]) -> None:
    """Each move or plan raises the slowest block by a fixed share, so soon no server gains."""
    spans, _, total = swarm
    spans = [replace(span, state=ServerState.ONLINE) for span in spans]
    for _ in range(200):
        moves = plan(spans, spans, total)
        for span in spans:
            if not moves and (window := own_move(span.server_id, spans, spans, total)):
                moves = {span.server_id: window}
        if not moves:
            return
        spans = targets(spans, moves)
    pytest.fail("servers still move after 200 plans")


def test_server_stays_where_others_are_still_loading() -> None:
    """Petals' rule 2 would let the server go, since it counts a joining server as a host."""
    spans = [Span("a", 0, 2, 1.0), Span("b", 0, 2, 1.0, ServerState.JOINING), Span("c", 2, 4, 0.1)]
    assert own_move("a", spans, [spans[0], spans[2]], 4) is None
    assert plan(spans, [spans[0], spans[2]], 4) == {}
    assert own_move("a", spans, [spans[0], replace(spans[1], state=ServerState.ONLINE), spans[2]], 4) == range(2, 4)


def test_blocks_that_nobody_serves_are_no_loss() -> None:
    """A server that serves nothing yet may go anywhere."""
    spans = [Span("a", 0, 2, 1.0, ServerState.JOINING), Span("b", 0, 2, 1.0)]
    assert own_move("a", spans, [spans[1]], 4) == range(2, 4)


def test_two_servers_move_together_where_neither_gains_alone() -> None:
    """Blocks 1 to 3 are slow, and each crowd server has room for one block, so one move alone gains nothing."""
    spans = [*(Span(f"crowd-{index}", 0, 1, 1.0) for index in range(6)), Span("wide", 0, 4, 1.0)]
    assert all(own_move(span.server_id, spans, spans, 4) is None for span in spans)
    moves = plan(spans, spans, 4)
    assert compute_throughputs(targets(spans, moves), 4).min() == 2 * compute_throughputs(spans, 4).min()


def test_plan_that_loads_longer_than_its_gain_lasts_is_not_made() -> None:
    spans = [Span("a", 0, 2, 1.0), Span("b", 0, 2, 1.0), Span("c", 2, 4, 1.0), Span("d", 0, 4, 1.0)]
    crowd = [*spans, Span("e", 0, 2, 1.0)]
    rng = np.random.default_rng(0)
    fast, slow = (planned_moves(crowd, crowd, 4, seconds_per_block=s, rng=rng) for s in (3, 1000))
    assert fast
    assert not slow


def test_plan_counts_what_is_lost_while_it_loads() -> None:
    """Moving server a by one block gains 0.3, and costs block 1 0.4 while a loads two blocks: it pays up to 128 s."""
    spans = [Span("a", 0, 2, 0.7), Span("b", 0, 1, 2.3), Span("c", 1, 2, 0.6), Span("d", 2, 3, 1.0)]
    for block_s, expected in ((60.0, {"a": range(1, 3)}), (70.0, {})):
        rng = np.random.default_rng(0)
        moves = planned_moves(
            spans, spans, 3, seconds_per_block=block_s, horizon_s=300, rng=rng, delta=False, price_s=0
        )
        assert moves == expected


def test_loaded_blocks_have_their_price() -> None:
    """The move gains 0.3 (the mean is 5.3 / 3), and loads one of three blocks."""
    spans = [Span("a", 0, 2, 0.7), Span("b", 0, 1, 2.3), Span("c", 1, 2, 0.6), Span("d", 2, 3, 1.0)]
    for price_s, expected in ((45, {"a": range(1, 3)}), (55, {})):
        rng = np.random.default_rng(0)
        moves = planned_moves(spans, spans, 3, seconds_per_block=0, horizon_s=100, rng=rng, price_s=price_s)
        assert moves == expected


def test_a_swarm_at_rest_plans_further_ahead() -> None:
    assert horizon(0) == horizon(60) == 300
    assert horizon(3600) == 7200


def test_plan_of_no_servers_is_empty() -> None:
    assert plan([], [], 4) == {}


def test_unknown_server_is_told_to_announce_itself_again() -> None:
    with pytest.raises(LookupError, match=r"server b is not among the 1 .* announce it again"):
        own_move("b", [Span("a", 0, 4, 1.0)], [], 4)


def test_uncovered_is_what_no_other_online_server_has() -> None:
    joining = Span("b", 0, 4, 1.0, ServerState.JOINING)
    served = Span("a", 0, 2, 1.0)
    assert uncovered_by(served, range(1, 3), [served, joining], 4)
    assert not uncovered_by(served, range(2), [served], 4)
    assert not uncovered_by(served, range(1, 3), [served, replace(joining, state=ServerState.ONLINE)], 4)
