"""The bound of all placements and the capacity of one, compared with slower computations of the same numbers."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from stagger.blocks.placement.bound import routing_capacity, throughput_bound
from stagger.blocks.placement.petals import choose_best_blocks, compute_throughputs
from stagger.blocks.placement.spans import ServerState, Span


@st.composite
def swarms(draw: st.DrawFn) -> tuple[list[Span], int]:
    total = draw(st.integers(1, 7))
    spans = []
    for index in range(draw(st.integers(1, 5))):
        length = draw(st.integers(1, total))
        start = draw(st.integers(0, total - length))
        throughput = draw(st.sampled_from([1.0, 2.0, 5.0]) | st.floats(0.1, 10))
        spans.append(Span(f"server-{index}", start, start + length, throughput))
    return spans, total


@given(swarm=swarms())
@settings(max_examples=200, deadline=None)
def test_no_placement_beats_the_bound(swarm: tuple[list[Span], int]) -> None:
    spans, total = swarm
    bound = throughput_bound(spans, total)
    places = [range(total - span.length + 1) for span in spans]
    assume(math.prod(map(len, places)) <= 2000)
    best = max(
        compute_throughputs(
            [replace(span, start=s, end=s + span.length) for span, s in zip(spans, starts, strict=True)], total
        ).min()
        for starts in itertools.product(*places)
    )
    assert best <= bound * (1 + 1e-6)
    assert bound <= sum(span.throughput * span.length for span in spans) / total * (1 + 1e-6)


@given(swarm=swarms())
@settings(max_examples=200, deadline=None)
def test_servers_of_one_length_are_as_good_as_one(swarm: tuple[list[Span], int]) -> None:
    """Reference: the same programme, one variable per server and window, then the slowest block's throughput."""
    spans, total = swarm
    windows = [(i, s) for i, span in enumerate(spans) for s in range(total - span.length + 1)]
    served = np.zeros((total, len(windows) + 1))
    shares = np.zeros((len(spans), len(windows) + 1))
    for column, (i, start) in enumerate(windows):
        served[start : start + spans[i].length, column] = -spans[i].throughput
        shares[i, column] = 1
    served[:, -1] = 1
    goal = np.eye(len(windows) + 1)[-1]
    ones = np.ones(len(spans))
    solution = linprog(-goal, A_ub=served, b_ub=np.zeros(total), A_eq=shares, b_eq=ones, method="highs")
    assert throughput_bound(spans, total) == pytest.approx(-solution.fun, rel=1e-6)


@pytest.mark.parametrize(("total", "length"), [(80, 7), (80, 20), (80, 80), (1, 1), (256, 64)])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_bound_of_equal_lengths_is_what_full_chains_reach(total: int, length: int, scale: float) -> None:
    """Blocks 0, n, 2n, ... lie in different spans in every placement, and each needs its share."""
    spans = [Span(f"{index}", 0, length, scale * (1 + index)) for index in range(9)]
    assert throughput_bound(spans, total) == pytest.approx(45 * scale / math.ceil(total / length), rel=1e-6)


def test_joining_one_after_another_stays_below_the_bound_and_near() -> None:
    spans: list[Span] = []
    for index in range(32):
        blocks = choose_best_blocks((7, 13, 20, 40)[index % 4], spans, 80)
        spans.append(Span(f"{index:02}", blocks.start, blocks.stop, 1.0 + index % 3))
    assert 0.8 < compute_throughputs(spans, 80).min() / throughput_bound(spans, 80) <= 1 + 1e-6


@given(swarm=swarms())
@settings(max_examples=200, deadline=None)
def test_capacity_is_that_of_the_blocks_with_least_hosts_for_them(swarm: tuple[list[Span], int]) -> None:
    """Hall's condition: any set of blocks gets at most the throughput of the servers that host one of its blocks."""
    spans, total = swarm
    sets = (set(some) for size in range(1, total + 1) for some in itertools.combinations(range(total), size))
    capacity = min(
        sum(span.throughput for span in spans if some & set(range(span.start, span.end))) / len(some) for some in sets
    )
    assert routing_capacity(spans, total) == pytest.approx(capacity, rel=1e-6, abs=1e-9)


def test_capacity_is_of_servers_that_are_online() -> None:
    spans = [Span("a", 0, 4, 8.0), Span("b", 0, 4, 8.0, ServerState.JOINING)]
    assert routing_capacity(spans, 4) == pytest.approx(2)
    assert throughput_bound(spans, 4) == pytest.approx(16)


def test_no_server_carries_nothing() -> None:
    assert throughput_bound([], 4) == routing_capacity([], 4) == 0
    assert routing_capacity([Span("a", 0, 3, 1.0)], 4) == pytest.approx(0)
