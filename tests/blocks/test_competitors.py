"""The competitors' allocations of the simulation: pipelines that hold the whole model, and the largest flow."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagger.blocks.placement.bound import routing_capacity
from stagger.blocks.placement.spans import Span
from stagger.blocks.simulation.allocation import Resource, throughputs
from stagger.blocks.simulation.helix import flow, flows_searched, optimal, searched
from stagger.blocks.simulation.parallax import allocations, filled, pipelines, pipelines_balanced
from stagger.blocks.simulation.policies import POLICIES
from stagger.blocks.simulation.report import Experiment, compare, rows

TOTAL = 12

RESOURCES = st.lists(
    st.tuples(st.integers(1, TOTAL), st.floats(1, 100), st.integers(0, TOTAL)), min_size=1, max_size=7
).map(
    lambda found: [
        Resource(f"{number}", room, passes, range(min(start, TOTAL - room), min(start, TOTAL - room) + room))
        for number, (room, passes, start) in enumerate(found)
    ]
)


def windows(servers: list[Resource]) -> dict[str, range]:
    return {server.server_id: server.span for server in servers}


@given(rooms=st.lists(st.integers(1, 9), max_size=7), number=st.integers(1, 3))
def test_pipelines_use_the_fewest_servers(rooms: list[int], number: int) -> None:
    ordered = tuple(sorted(rooms, reverse=True))
    found = pipelines(ordered, number, 10)

    def filled_by(groups: tuple[int, ...]) -> bool:
        placed = list(zip(ordered, groups, strict=False))
        return all(sum(room for room, of in placed if of == group) >= 10 for group in range(number))

    def fills(count: int) -> bool:
        return any(map(filled_by, itertools.product(range(number), repeat=count)))

    fewest = next((count for count in range(len(rooms) + 1) if fills(count)), None)
    assert (None if found is None else len(found)) == fewest


@given(servers=RESOURCES)
def test_a_pipeline_holds_each_block_once_and_no_server_more_than_its_room(servers: list[Resource]) -> None:
    if sum(server.room for server in servers) < TOTAL:
        return
    spans = filled(servers, TOTAL)
    assert sorted(block for span in spans.values() for block in span) == list(range(TOTAL))
    assert all(len(spans.get(server.server_id, ())) <= server.room for server in servers)


def test_water_goes_where_speed_is() -> None:
    servers = [Resource("a", 12, 1.0, range(12)), Resource("b", 12, 2.0, range(12)), Resource("c", 3, 9.0, range(3))]
    assert {name: len(span) for name, span in filled(servers, TOTAL).items()} == {"a": 3, "b": 6, "c": 3}


@given(servers=RESOURCES)
def test_allocations_are_of_all_servers(servers: list[Resource]) -> None:
    for spans in allocations(servers, TOTAL):
        assert spans.keys() == {server.server_id for server in servers}
        assert all(0 <= span.start < span.stop <= TOTAL for span in spans.values())
        assert throughputs(servers, spans, TOTAL).min() > 0


def test_what_is_in_balance_stays() -> None:
    servers = [Resource("a", 6, 6.0, range(6)), Resource("b", 6, 6.0, range(6, 12))]
    assert pipelines_balanced(servers, TOTAL, True, np.random.default_rng(0)) == {}
    crowd = [Resource("a", 6, 6.0, range(6)), Resource("b", 6, 6.0, range(6))]
    moved = pipelines_balanced(crowd, TOTAL, True, np.random.default_rng(0))
    assert throughputs(crowd, {**windows(crowd), **moved}, TOTAL).min() > 0


@given(servers=RESOURCES)
@settings(deadline=None)
def test_no_flow_exceeds_the_slowest_block_or_the_routing_capacity(servers: list[Resource]) -> None:
    """All hosts of a block are a cut. Helix counts whole spans, so its flow is at most what routing can carry."""
    spans = windows(servers)
    found = flow(servers, spans, TOTAL)
    assert found <= throughputs(servers, spans, TOTAL).min() * (1 + 1e-4) + 1e-3
    budgets = [Span(one.server_id, one.span.start, one.span.stop, one.passes) for one in servers]
    assert found <= routing_capacity(budgets, TOTAL) * (1 + 1e-4) + 1e-3


def test_the_programme_finds_the_best_placement() -> None:
    servers = [Resource(f"{n}", room, 12.0 * room, range(room)) for n, room in enumerate((4, 4, 4, 6))]
    solved = optimal(servers, TOTAL, 20)
    assert solved is not None
    spans, proven = solved
    assert proven
    assert flow(servers, spans, TOTAL) == pytest.approx(12.0, rel=1e-3)


def test_the_search_enlarges_the_flow() -> None:
    servers = [Resource(f"{n}", 4, 4.0, range(4)) for n in range(3)]
    spans, found = searched(servers, TOTAL, np.random.default_rng(0), 300)
    assert found == pytest.approx(1.0, rel=1e-3)
    assert flow(servers, spans, TOTAL) == found
    assert flows_searched(servers, TOTAL, False, np.random.default_rng(0)) == {}


def test_both_take_part_in_the_simulation() -> None:
    names = ("new only", "parallax", "helix")
    found = {row.policy: row for row in rows(compare(Experiment("churn", 12, 0.5, (0,), names), processes=1))}
    assert all(found[name].percent_of_capacity > 0 for name in names)
    assert POLICIES["helix"].lease_s == POLICIES["recommended"].lease_s
