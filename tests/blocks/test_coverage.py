"""What users of a swarm know about its blocks: which have no server, for how long, and when to give up."""

from __future__ import annotations

from typing import Any

import pytest

from stagger.blocks.coverage import PATIENCE_S, Coverage, missing_blocks
from stagger.blocks.server.records import Member, Placed, View
from stagger.blocks.swarm_jobs import FIRST_S, MEAN_S, SwarmJobs
from stagger.errors import StaggerError
from stagger.rundir.launch_records import ArrayRecord, EndJobRecord, LocalLaunch, SlurmLaunch, write_launch
from stagger.rundir.stage_folder import StageFolder
from stagger.storage.storage import Storage
from tests.kit.claimants import record


def view(**spans: tuple[int, int]) -> View:
    members = {
        name: Member(Placed(start, end, 1.0), 1, record(name, start, end, 1)) for name, (start, end) in spans.items()
    }
    return View(1, members)


def test_blocks_without_a_server_are_named_and_those_of_servers_that_a_user_gave_up() -> None:
    assert missing_blocks(view(a=(0, 4), b=(6, 8)), 8) == [4, 5]
    assert missing_blocks(view(a=(0, 4), b=(4, 8)), 8) == []
    assert missing_blocks(view(a=(0, 4), b=(4, 8)), 8, without={"b"}) == [4, 5, 6, 7]


def test_users_wait_while_jobs_are_queued_and_not_for_ever_when_none_is() -> None:
    coverage, whole, part = Coverage("swarm", 8), view(a=(0, 8)), view(a=(0, 5))
    assert coverage.see(whole, 0.0) is None
    gap = coverage.see(part, 10.0, lambda: True)
    assert gap is not None
    assert (gap.blocks, gap.seconds, gap.is_over) == ((5, 6, 7), 0.0, False)
    gap = coverage.see(part, 10.0 + 100 * PATIENCE_S, lambda: True)
    assert gap is not None
    assert not gap.is_over
    assert str(gap) == "blocks 5-7 of swarm have had no server for 180,000 s; jobs of it are queued or running"
    gap = coverage.see(part, 11.0 + 100 * PATIENCE_S, lambda: False)
    assert gap is not None
    assert gap.is_over
    assert "blocks 5-7 of swarm have had no server for 180,001 s; no job of it is queued or running, since" in str(
        gap.error(2e9)
    )
    assert coverage.see(whole, 12.0 + 100 * PATIENCE_S) is None
    gap = coverage.see(part, 13.0 + 100 * PATIENCE_S, lambda: False)
    assert gap is not None
    assert not gap.is_over, "a gap that was closed begins anew"


def test_patience_that_is_given_holds_whatever_is_queued() -> None:
    coverage = Coverage("swarm", 8, patience_s=60.0)
    coverage.see(view(), 0.0)
    assert not coverage.see(view(), 60.0, lambda: True).is_over  # type: ignore[union-attr]
    assert coverage.see(view(), 60.5, lambda: True).is_over  # type: ignore[union-attr]


def test_the_errors_of_two_tries_differ_since_the_same_error_twice_is_not_retried() -> None:
    coverage = Coverage("swarm", 8, patience_s=1.0)
    coverage.see(view(), 0.0)
    gap = coverage.see(view(), 5.0)
    assert gap is not None
    assert str(gap.error(2e9)) != str(gap.error(2e9 + 1))


@pytest.fixture
def folder(tmp_path: Any) -> StageFolder:
    return StageFolder(Storage(), str(tmp_path / "swarm"))


def test_slurm_is_asked_rarely_and_only_about_the_swarms_own_arrays(folder: StageFolder) -> None:
    common: dict[str, Any] = {"time": 1.0, "ranks": "0-1", "start_policy": "uniform", "window_s": 0, "settings": "{}"}
    arrays = (ArrayRecord("12", "swarm-a", 2, "0-1"),)
    launch = SlurmLaunch(
        launch=1, ranks_per_job=1, resources={}, log_dir="", arrays=arrays, finalize=EndJobRecord("13", "e"), **common
    )
    write_launch(folder, launch)
    asked: list[list[str]] = []
    now = [0.0]

    def ask(ids: list[str]) -> bool:
        asked.append(ids)
        if len(asked) == 3:
            raise StaggerError("Slurm is away.")
        return True

    jobs = SwarmJobs(folder.storage, folder.path, lambda: now[0], ask)
    assert (jobs(), asked) == (None, [])
    now[0] = FIRST_S
    assert (jobs(), jobs(), asked) == (True, True, [["12"]])
    now[0] += 2 * MEAN_S
    assert jobs()
    now[0] += 2 * MEAN_S
    assert (jobs(), len(asked)) == (None, 3)


def test_of_a_swarm_on_this_machine_nothing_is_known(folder: StageFolder) -> None:
    write_launch(folder, LocalLaunch(1, 1.0, "0-1", "uniform", 0, "{}", host="here", pid=1, user="me"))
    now = [0.0]
    jobs = SwarmJobs(folder.storage, folder.path, lambda: now[0], lambda ids: pytest.fail("asked"))
    now[0] = FIRST_S
    assert jobs() is None
