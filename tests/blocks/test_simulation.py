"""The simulation of block balancing: it counts correctly, and the policies differ as expected."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from stagger.blocks.placement.rules import Setting, Swarm
from stagger.blocks.simulation.policies import (
    COMPARED,
    IDEAL,
    PETALS_LEASE_S,
    POLICIES,
    REALISTIC,
    REGISTRY_LEASE_S,
    Checks,
    Conditions,
    Policy,
)
from stagger.blocks.simulation.report import Comparison, Experiment, compare, rows
from stagger.blocks.simulation.swarm import Outcome, simulate
from stagger.blocks.simulation.traces import SCENARIOS, Server, trace
from stagger.blocks.simulation.upper_bounds import bound_steps

#: Policies that run fast and cover all differences.
FEW = ("none", "new only", "0.99", "0.99 in step", "0.99 guard", "own gain", "recommended")


def run(servers: list[Server], policy: Policy, conditions: Conditions, *, seconds: float, blocks: int) -> Outcome:
    bound = bound_steps(servers, seconds, blocks)
    return simulate(servers, bound, policy, conditions, hours=seconds / 3600, total_blocks=blocks, seed=0)


def ordered(
    moves: dict[float, dict[str, range]], seen: list[Swarm] | None = None, *, delta: bool, lock: bool
) -> Policy:
    """A policy whose leader orders the given moves at its checks, every minute, and appends its views to `seen`."""
    checks = iter(range(60, 100_000, 60))

    def rule(local_id: str, view: Swarm, setting: Setting) -> dict[str, range]:
        if seen is not None:
            seen.append(view)
        return moves.get(next(checks), {})

    return Policy("ordered", "", rule, Checks.LEADER, lock=lock, delta=delta)


@pytest.fixture(scope="module")
def churn() -> Comparison:
    return compare(Experiment("churn", 24, hours=1, seeds=(0, 1), policies=FEW), processes=1)


def test_a_server_counts_from_when_it_has_loaded_until_it_leaves() -> None:
    servers = [Server("a", 4, 2.0, joins_s=10, leaves_s=100)]
    found = run(servers, POLICIES["recommended"], Conditions(seconds_per_block=3), seconds=200, blocks=4)
    assert found.throughput == pytest.approx(2 * (100 - 10 - 4 * 3) / 200)
    assert found.bound == pytest.approx(2 * (100 - 10) / 200)
    assert found.uncovered_s == pytest.approx(4 * 3)
    assert (found.moves, found.blocks_loaded) == (0, 4)
    assert found.server_hours == pytest.approx(90 / 3600)


def test_joining_servers_wait_a_moment_without_a_lock() -> None:
    """They wait U(0, 10 s) before they choose, as in Petals."""
    servers = [Server("a", 4, 1.0, joins_s=0)]
    found = run(servers, POLICIES["new only"], Conditions(seconds_per_block=1), seconds=100, blocks=4)
    assert 4 < found.uncovered_s < 14


@pytest.mark.parametrize(("delta", "loaded", "unserved_s"), [(True, 1, 0), (False, 3, 3 * 2)])
def test_a_move_loads_what_is_missing_and_serves_the_rest(delta: bool, loaded: int, unserved_s: float) -> None:
    """Server b alone serves block 2, and loads block 0 when it moves there; the others serve the rest."""
    servers = [Server("a", 1, 1.0, 0), Server("b", 3, 1.0, 1), Server("c", 1, 1.0, 2), Server("d", 1, 1.0, 3)]
    seen: list[Swarm] = []
    conditions = Conditions(seconds_per_block=2)
    quiet = run(servers, ordered({}, seen, delta=delta, lock=True), conditions, seconds=400, blocks=4)
    spans = {span.server_id: range(span.start, span.end) for span in seen[-1].spans}
    assert spans == {"a": range(1), "b": range(1, 4), "c": range(1), "d": range(1, 2)}
    where_it_is, elsewhere, back = {"b": range(1, 4)}, {"a": range(3, 4)}, {"b": range(3)}
    policy = ordered({60: where_it_is, 120: elsewhere, 180: back}, delta=delta, lock=True)
    moved = run(servers, policy, conditions, seconds=400, blocks=4)
    assert moved.moves == 2
    assert moved.blocks_loaded == quiet.blocks_loaded + 1 + loaded
    assert moved.uncovered_s == pytest.approx(quiet.uncovered_s + unserved_s)


@pytest.mark.parametrize(("crashes", "lock", "listed_s"), [(False, True, 0), (True, True, 45), (True, False, 240)])
def test_crashed_servers_stay_listed_for_the_lease(crashes: bool, lock: bool, listed_s: float) -> None:
    assert (REGISTRY_LEASE_S, PETALS_LEASE_S) == (45, 240)
    servers = [Server("a", 4, 1.0, 0), Server("b", 4, 1.0, 0, leaves_s=100, crashes=crashes)]
    seen: list[Swarm] = []
    run(servers, ordered({}, seen, delta=True, lock=lock), REALISTIC, seconds=600, blocks=4)
    both = [60 * number for number, view in enumerate(seen, 1) if len(view.spans) == 2]
    assert both == list(range(60, int(100 + listed_s) + 1, 60))


def test_nothing_is_seen_before_its_time() -> None:
    """The server chooses within 10 s, but its announcement becomes visible 100 s later."""
    seen: list[Swarm] = []
    policy = ordered({}, seen, delta=False, lock=False)
    run([Server("a", 4, 1.0, 0)], policy, Conditions(visibility_s=100), seconds=200, blocks=4)
    assert [len(view.spans) for view in seen] == [0, 1, 1]


def test_calm_is_since_a_server_was_last_seen_to_come_or_go() -> None:
    """Server b joins at 100 s and crashes at 200 s, which is seen 45 s later. The end of a load does not count."""
    seen: list[Swarm] = []
    servers = [Server("a", 4, 1.0, 0), Server("b", 4, 1.0, 100, leaves_s=200, crashes=True)]
    run(servers, ordered({}, seen, delta=True, lock=True), REALISTIC, seconds=330, blocks=4)
    assert [view.calm_s for view in seen] == [60, 20, 80, 140, 55]


def test_same_seed_same_answer_whatever_is_compared_beside_it(churn: Comparison) -> None:
    policies = ("recommended", "0.99")
    alone = compare(Experiment("churn", 24, hours=1, seeds=(0, 1), policies=policies), processes=2)
    for name in policies:
        assert alone.outcomes[name] == churn.outcomes[name]
    assert alone.bound == churn.bound
    other = compare(replace(alone.experiment, seeds=(2,)), processes=1)
    assert other.outcomes["0.99"][0].throughput != alone.outcomes["0.99"][0].throughput


def test_all_policies_meet_the_same_servers(churn: Comparison) -> None:
    for index in range(2):
        assert len({(found[index].bound, found[index].server_hours) for found in churn.outcomes.values()}) == 1
    assert all(0 <= found.share <= 1 for outcomes in churn.outcomes.values() for found in outcomes)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenarios_are_what_they_say(scenario: str) -> None:
    servers = [server for seed in range(20) for server in trace(scenario, 24, 3, seed, 80)]
    assert {server.length for server in servers} == {7, 9, 12, 20, 26, 40}
    assert all(0 <= server.joins_s < min(server.leaves_s, 3 * 3600) for server in servers)
    per_place = len(servers) / (20 * 24)
    leave = [server for server in servers if server.leaves_s < math.inf]
    crashed = sum(server.crashes for server in leave) / max(1, len(leave))
    places, crashes = {"join": (1, 0.0), "churn": (4, 0.3), "wave": (1, 1.0), "slurm": (4, 0.1)}[scenario]
    assert per_place == pytest.approx(places, rel=0.1)
    assert crashed == pytest.approx(crashes, abs=0.05)
    if scenario == "wave":
        assert [server.leaves_s for server in leave] == [3600] * (20 * 12)
    if scenario == "slurm":
        assert max(server.leaves_s - server.joins_s for server in servers) == pytest.approx(3600)


def test_policies_differ_as_they_should(churn: Comparison) -> None:
    found = {row.policy: row for row in rows(churn)}
    share = {name: row.percent_of_bound for name, row in found.items()}
    assert share["none"] < 20
    assert share["new only"] > share["none"] + 30
    assert share["recommended"] > share["0.99"] + 5
    assert share["0.99"] > share["0.99 in step"] + 10
    assert found["0.99 in step"].collisions > 5 * found["0.99"].collisions
    for name in ("0.99 guard", "own gain", "recommended"):
        assert found[name].collisions == 0
    assert found["recommended"].blocks_loaded < 0.5 * found["0.99"].blocks_loaded
    assert found["recommended"].moves_per_server_hour < 4


def test_full_balancing_is_near_the_bound_in_ideal_conditions() -> None:
    policies = ("none", "new only", "0.99", "recommended")
    comparison = compare(Experiment("churn", 32, 1.5, (0,), policies, IDEAL), processes=1)
    share = {row.policy: row.percent_of_bound for row in rows(comparison)}
    assert share["none"] < 20 < share["new only"] < share["0.99"]
    assert share["0.99"] > 85
    assert share["recommended"] > 80


def test_what_is_compared_is_what_does_not_take_minutes() -> None:
    assert set(POLICIES) - set(COMPARED) == {"planner each", "helix"}
    for policy in POLICIES.values():
        assert (policy.rule is None) == (policy.checks is Checks.NEVER)
