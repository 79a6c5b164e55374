"""Recommendations for a herd: windows, throttles, and the line that a launch prints."""

from __future__ import annotations

from typing import Any

import pytest

from stagger.start.account import most_within
from stagger.start.forecast import limit_window, start_plan, summary
from stagger.start.herd import Herd, simulate


@pytest.mark.parametrize(
    ("herd", "recommended"),
    [
        (Herd(1, "uniform", 0, limit=5), {"randomize_start_duration": 0}),
        (Herd(8000, "uniform", 180), {"start_policy": "spread"}),
        (Herd(8000, "uniform", 180, limit=3500, dispatch_rate=500), {"randomize_start_duration": 0}),
    ],
)
def test_a_sleep_is_recommended_only_where_it_helps(herd: Herd, recommended: dict[str, Any]) -> None:
    assert start_plan(herd, herd.jobs).recommended == recommended


@pytest.mark.parametrize(("jobs", "limit"), [(100, 50), (1000, 50), (8000, 50), (8000, 3500), (100_000, 3500)])
@pytest.mark.parametrize("requests", [1, 4])
def test_the_window_for_a_limit_lets_nothing_be_refused(jobs: int, limit: float, requests: int) -> None:
    herd = Herd(jobs, "spread", 0, requests, limit)
    outcome = simulate(Herd(jobs, "spread", limit_window(herd), requests, limit))
    assert outcome.refused == 0
    assert most_within(outcome.requests, 1.0) <= limit


def test_a_launch_is_summed_up_in_a_line() -> None:
    assert summary(Herd(5, "uniform", 0), 1) == "5 jobs start at once"
    line = summary(Herd(8000, "spread", 180, throttle=500), 2)
    assert line.startswith("the first 500 of 8,000 jobs start over 180 s (spread), peak ")
    assert line.endswith(f"; {2 * (500 * 90 + 7500 * 15) / 3600:,.1f} core-hours asleep")


def test_a_limit_below_what_two_jobs_ask_for_cannot_be_kept_and_that_is_said() -> None:
    assert start_plan(Herd(100, "uniform", 30, 4, 8), 100).reason.endswith("use 0.8 of the limit")
    found = start_plan(Herd(100, "uniform", 30, 4, 2), 100)
    assert found.row("limit").refused > 0
    assert found.reason.endswith("two jobs that start close together still exceed it, and retry")
