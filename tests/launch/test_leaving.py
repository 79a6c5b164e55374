"""A retry waits for ranks that were cancelled and still end, and a swarm never begins again without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stagger.blocks.swarm_place import END
from stagger.launch import leaving
from stagger.launch.leaving import StillLeaving, held_once_left, refuse_leaving
from stagger.rundir.run_folder import RunFolder
from stagger.status.look import look_at_run
from stagger.terminal import logger
from tests.conftest import Cli, PipelineFiles
from tests.kit.runs import SLURM, launches
from tests.kit.slurm_front import front

SWARM = {
    "name": "swarm",
    "blocks": {"total": 8, "servers": 3, "heartbeat": 0.1, "lease": 1, "drain": 0},
    "executor": {**SLURM, "gpus_per_task": 1},
}


class Run:
    """A launched run of a swarm of three servers and its user, or of a plain stage, and a stand-in for squeue."""

    def __init__(self, cli: Cli, files: PipelineFiles, folder: Path) -> None:
        self.cli = cli
        self.folder = folder
        self.files = files
        self.path = folder / "run"
        self.queue = folder / "queue"
        self.queue.touch()
        front(
            cli, folder, squeue=f"cat {self.queue}; mv {self.queue}.next {self.queue} 2>/dev/null; true", scancel="true"
        )

    def launch_swarm(self) -> None:
        steps = [{"read_jsonl": {"path": str(self.files.shards)}}, {"write_jsonl": {"path": str(self.folder / "out")}}]
        user = {"name": "score", "uses": ["swarm"], "tasks": 2, "pipeline": steps, "executor": SLURM}
        file = self.folder / "swarm.yaml"
        file.write_text(json.dumps({"name": "swarm", "run_dir": str(self.path), "stages": [SWARM, user]}))
        self.cli("launch", file, check=0)

    def lists(self, stage: str, *jobs: str, then: bool = False) -> None:
        """Let squeue list elements of a stage's first array, as `index|state`; with `then`, from its second call on."""
        (array,) = launches(self.path / stage)[0]["arrays"]
        rows = (line.split("|") for line in jobs)
        text = "".join(f"{array['job_id']}|{i}|{state}|9:59|N/A|None|{array['name']}|\n" for i, state in rows)
        Path(f"{self.queue}.next" if then else self.queue).write_text(text)

    def looks(self) -> tuple[RunFolder, Any, dict[str, Any]]:
        run, record = RunFolder.open(str(self.path))
        return run, record, look_at_run(run, record)

    def ranks(self, stage: str = "") -> list[str]:
        return [one["ranks"] for one in launches(self.path / stage)]

    def end(self) -> Path:
        """Tell the swarm to end."""
        path = self.path / "swarm" / "registry" / END
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"reason": "score ended without being done", "time": 1.0}))
        return path


@pytest.fixture
def run(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    made = Run(cli, pipeline_file, tmp_path)
    monkeypatch.setenv("PATH", cli.env["PATH"])
    return made


def test_a_retry_waits_until_cancelled_servers_have_ended_and_starts_all_of_them(run: Run) -> None:
    run.launch_swarm()
    run.lists("swarm", "0|RUNNING", "1|RUNNING", "2|RUNNING")
    run.cli("cancel", run.path, check=0)
    run.lists("swarm", "1|COMPLETING", "2|RUNNING")
    run.lists("swarm", then=True)
    said = run.cli("retry", run.path, check=0).err
    assert "swarm: ranks 1-2 are still ending (Slurm job " in said
    assert "waiting until they have ended" in said
    assert (run.ranks("swarm"), run.ranks("score")) == (["0-2", "0-2"], ["0-1", "0-1"])


def test_a_retry_waits_for_the_servers_of_a_swarm_that_has_ended_with_its_users(run: Run) -> None:
    run.launch_swarm()
    end = run.end()
    run.lists("swarm", "0|RUNNING")
    run.lists("swarm", then=True)
    assert "swarm: rank 0 is still ending" in run.cli("retry", run.path, "--stage", "score", check=0).err
    assert run.ranks("swarm") == ["0-2", "0-2"]
    assert not end.exists(), "the new servers would leave at once"


def test_queued_servers_of_a_swarm_that_has_ended_are_its_servers_again(run: Run) -> None:
    """They could not be cancelled."""
    run.launch_swarm()
    end = run.end()
    run.lists("swarm", "0|PENDING", "1|PENDING", "2|PENDING")
    run.cli("retry", run.path, check=0)
    assert (run.ranks("swarm"), end.exists()) == (["0-2"], False)


def test_a_retry_waits_for_cancelled_ranks_of_any_stage_but_not_for_ranks_that_it_does_not_start(run: Run) -> None:
    run.cli("launch", run.files(executor=SLURM), check=0)
    run.lists("", "0|RUNNING", "1|RUNNING", "2|RUNNING")
    run.cli("cancel", run.path, "--rank", "0,1", check=0)
    run.lists("", "0|COMPLETING", "1|COMPLETING", "2|RUNNING")
    assert "ending" not in run.cli("retry", run.path, "--rank", "3", check=0).err
    run.lists("", "0|COMPLETING", "1|COMPLETING", "2|RUNNING")
    run.lists("", "2|RUNNING", then=True)
    assert "run: ranks 0-1 are still ending" in run.cli("retry", run.path, "--rank", "0,1").err
    assert run.ranks() == ["0-3", "3", "0-1"]


def test_a_mistake_is_told_before_anything_is_waited_for(run: Run) -> None:
    run.cli("launch", run.files(executor=SLURM), check=0)
    run.lists("", "0|COMPLETING")
    for wrong, said in (
        (["--rank", "9"], "There is no rank 9"),
        (["--set", "tasks=9"], "cannot change tasks"),
        (["--time-factor", "0.5"], "must be from 1 to 100"),
    ):
        err = run.cli("retry", run.path, *wrong, check=2).err
        assert said in err
        assert "waiting" not in err


def test_a_launch_after_a_cancellation_says_what_still_ends(run: Run) -> None:
    file = run.files(executor=SLURM)
    run.cli("launch", file, check=0)
    run.lists("", "0|RUNNING")
    run.cli("cancel", run.path, check=0)
    run.lists("", "0|COMPLETING")
    said = run.cli("launch", file, check=2).err
    assert "run: rank 0 is still ending" in said
    assert f"let a command wait for them: stagger retry {run.path}" in said


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds for which `held_once_left` would have waited."""
    seconds: list[float] = []
    monkeypatch.setattr("stagger.launch.leaving.time.monotonic", lambda: sum(seconds))
    return seconds


def test_what_does_not_end_is_left_out_but_not_a_whole_swarm(
    run: Run, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job on a node that is down stays in COMPLETING until somebody acts."""
    run.launch_swarm()
    run.lists("swarm", "0|RUNNING", "1|RUNNING", "2|RUNNING")
    run.cli("cancel", run.path, check=0)
    lines: list[str] = []
    monkeypatch.setattr(logger, "warning", lines.append)
    folder, record, _ = run.looks()
    run.lists("swarm", "0|COMPLETING", "1|COMPLETING", "2|COMPLETING")
    with (
        pytest.raises(StillLeaving, match="none of swarm can start: type stagger retry"),
        held_once_left(folder, record, pause=pauses.append),
    ):
        pass
    assert leaving.LEAVING_S < sum(pauses) < leaving.LEAVING_S + 2 * leaving.LONGEST_S

    run.lists("swarm", "1|COMPLETING")
    with held_once_left(folder, record, pause=pauses.append) as (_, looks):
        assert looks["swarm"].activity.ranks == {1}
    assert len(lines) == 1
    assert lines[0].startswith("swarm: rank 1 is still ending")
    assert lines[0].endswith(f"and not started: type stagger retry {run.path} once they have ended")


def test_an_end_job_begins_no_swarm_again_whose_servers_are_leaving(run: Run) -> None:
    """It comes back later, as when somebody else holds the lock of the run."""
    run.launch_swarm()
    run.lists("swarm", "1|COMPLETING")
    _, record, looks = run.looks()
    refuse_leaving(record.spec, looks, ["score"])  # Others replace a server that ends for another reason.
    run.end()
    run.lists("swarm", "1|COMPLETING", "2|RUNNING")
    _, record, looks = run.looks()
    with pytest.raises(StillLeaving, match=r"swarm: ranks 1-2 are still ending .*; swarm begins again once"):
        refuse_leaving(record.spec, looks, ["score"])
    refuse_leaving(record.spec, looks, ["swarm"])
