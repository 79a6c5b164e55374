"""The simulation of a herd obeys the rules that it models."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from stagger.start.account import described, most_within
from stagger.start.delays import SCHEDULER_CYCLE_S, Slots, slot_ms
from stagger.start.forecast import limit_window
from stagger.start.herd import Herd, delays, simulate

UNIFORM = Herd(jobs=8000, policy="uniform", window_s=180)


def test_the_delays_are_those_of_the_job_scripts() -> None:
    spread = Herd(jobs=1000, policy="spread", window_s=180, throttle=300)
    salt = Random(7).getrandbits(32)
    slots = Slots(180, 0, 300, SCHEDULER_CYCLE_S, salt)
    assert delays(spread, Random(7)) == [slot_ms(slots, index) / 1000 for index in range(1000)]
    drawn = delays(UNIFORM, Random(7))
    assert set(drawn) <= {float(second) for second in range(181)}
    assert {0.0, 180.0} <= set(drawn)


@pytest.mark.parametrize("window", [0, 30, 180])
@pytest.mark.parametrize("policy", ["uniform", "spread"])
def test_every_request_is_made_and_refused_ones_again(policy: Any, window: int) -> None:
    """No request is lost or invented, and the storage accepts no more than its limit."""
    herd = Herd(jobs=2000, policy=policy, window_s=window, requests=3, limit=100)
    outcome = simulate(herd, seed=3)
    assert outcome.complete
    assert outcome.failed == 0
    assert len(outcome.requests) - outcome.refused == 6000
    # The bucket holds 100 requests at first, then gains 100 per second.
    assert outcome.last_start_s >= (6000 - 100) / 100
    assert outcome == simulate(herd, seed=3)
    assert outcome != simulate(herd, seed=4)


def test_a_request_that_is_refused_for_too_long_is_given_up() -> None:
    outcome = simulate(Herd(jobs=2000, policy="uniform", window_s=0, requests=1, limit=10, retry_s=20))
    assert 1500 < outcome.failed < 2000
    assert outcome.last_start_s < 60


def test_a_hopeless_herd_is_not_simulated_to_its_end() -> None:
    outcome = simulate(Herd(jobs=100_000, policy="uniform", window_s=0, limit=50))
    assert not outcome.complete


def test_a_throttle_lets_later_jobs_begin_when_earlier_ones_end() -> None:
    herd = Herd(jobs=900, policy="spread", window_s=60, throttle=300, task_s=100, cycle_s=1)
    starts = simulate(herd).starts
    assert starts[299] < 60
    assert 100 <= starts[300] <= 160 + SCHEDULER_CYCLE_S
    assert len(starts) == 900
    crowded = Herd(jobs=900, policy="spread", window_s=60, slots=300, task_s=0, cycle_s=1)
    # Every job has its slot in the window of all 900, however many jobs the cluster has room for.
    assert most_within(simulate(crowded).starts, 1.0) <= 900 / 60 * 2


def test_short_tasks_that_take_turns_stay_below_a_limit_only_by_keeping_their_place() -> None:
    herd = Herd(jobs=3000, policy="spread", window_s=0, requests=6, limit=100, throttle=300, task_s=0, cycle_s=1)
    window = limit_window(herd)
    assert window == 23
    base = {**vars(herd), "window_s": window}
    assert simulate(Herd(**base)).refused > 100
    assert simulate(Herd(**{**base, "hold_s": window})).refused == 0


def test_slurm_that_begins_jobs_slowly_is_a_stagger_of_its_own() -> None:
    starts = simulate(Herd(jobs=1000, policy="uniform", window_s=0, dispatch_rate=50)).starts
    assert described(starts)["peak_1s"] in (50, 51)
    assert starts[-1] == pytest.approx(20, abs=0.1)


def test_a_simulation_of_too_many_requests_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagger.start.herd.MOST_REQUESTS", 1000)
    outcome = simulate(Herd(jobs=1000, policy="spread", window_s=60, requests=50))
    assert not outcome.complete
    assert 1000 < len(outcome.requests) < 2000


def test_a_job_with_several_connections_makes_its_requests_at_once() -> None:
    """Without a limit of its own it has all connections of all its ranks in flight; with one it keeps to its share."""
    free = simulate(Herd(jobs=1, policy="spread", window_s=0, requests=20, connections=4, workers=2))
    assert sorted(set(free.requests)) == pytest.approx([0.0, 0.05, 0.1])
    assert [free.requests.count(time) for time in sorted(set(free.requests))] == [8, 8, 4]
    slow, fast = (simulate(Herd(1, "spread", 0, 10, connections=4, share=share)) for share in (5.0, 100.0))
    assert slow.requests == pytest.approx([number * 0.05 for number in range(10)])  # One is always in flight.
    assert fast.requests == pytest.approx([number * 0.01 for number in range(10)])


def test_refused_requests_of_several_at_once_are_made_again() -> None:
    outcome = simulate(Herd(jobs=30, policy="uniform", window_s=0, requests=50, limit=100, connections=8), seed=1)
    assert outcome.refused > 0
    assert outcome.failed == 0
    assert len(outcome.requests) - outcome.refused == 30 * 50
