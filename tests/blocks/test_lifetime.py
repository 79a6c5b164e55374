"""When servers leave: those that come back, at different times."""

from __future__ import annotations

from random import Random
from statistics import mean

import pytest

from stagger.blocks.server.lifetime import Lifetime, share_of_time

HOUR = 3600.0


def test_servers_that_come_back_leave_at_uniform_times_of_the_last_part_of_their_jobs() -> None:
    draws = Random(0)
    leaves = [
        Lifetime(0.0, 4 * HOUR, 30.0, has_users=True, share=share_of_time(draws)).leaves / (4 * HOUR)
        for _ in range(2000)
    ]
    assert min(leaves) >= 0.6
    assert max(leaves) <= 1 - 35 / (4 * HOUR), "each has time to drain"
    assert mean(leaves) == pytest.approx(0.8, abs=0.01)
    tenths = [sum(0.6 + step / 25 <= one < 0.64 + step / 25 for one in leaves) for step in range(10)]
    assert min(tenths) > 150
    assert max(tenths) < 250


def test_servers_that_do_not_come_back_use_all_of_their_time() -> None:
    """Nobody would take their place."""
    assert Lifetime(0.0, HOUR, 30.0, share=0.6).leaves == HOUR - 35
    assert Lifetime(0.0, HOUR, 30.0, swarm_ends=0.5 * HOUR, share=0.6).leaves == HOUR - 35
    assert Lifetime(0.0, None, 30.0, has_users=True, share=0.6).leaves == float("inf")


def test_a_swarm_comes_back_while_it_has_users_or_its_time_is_not_over() -> None:
    assert not Lifetime(0.0, HOUR, 30.0).comes_back
    assert Lifetime(0.0, HOUR, 30.0, has_users=True).comes_back
    assert Lifetime(0.0, HOUR, 30.0, swarm_ends=2 * HOUR).comes_back
    assert not Lifetime(0.0, HOUR, 30.0, swarm_ends=HOUR - 60).comes_back
    assert not Lifetime(0.0, None, 30.0, has_users=True).comes_back, "a process on this machine has no time limit"


def test_a_job_too_short_for_draining_is_told() -> None:
    assert Lifetime(0.0, 20.0, 30.0, has_users=True, share=0.6).is_too_short
    assert not Lifetime(0.0, 60.0, 30.0, has_users=True).is_too_short
    assert not Lifetime(0.0, None, 30.0).is_too_short
