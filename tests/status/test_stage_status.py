"""The states of a stage's ranks, and the Slurm queries for them."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stagger.errors import StaggerError
from stagger.executor.slurm_queue import SlurmJobs
from stagger.rundir.completion_table import CompletionTable
from stagger.rundir.crew_notes import encode_note, note_path
from stagger.rundir.stage_folder import StageFolder
from stagger.slurm import cluster
from stagger.slurm.answers import QueuedJob
from stagger.status.stage_status import asleep, slowest
from stagger.storage.storage import Storage
from tests.conftest import Cli, PipelineFiles
from tests.kit.records import launch_record, table_of
from tests.kit.runs import SLURM
from tests.kit.slurm_front import front


def test_who_sleeps_runs_waits_or_was_requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two ranks per job, a rank is asleep until the first rank of its job has a log of this launch."""
    monkeypatch.setattr(cluster, "is_here", lambda: True)
    states = [("RUNNING", 61, "None"), ("RUNNING", 59, "None"), ("RUNNING", 60, "None")]
    states += [("PENDING", 0, "Priority"), ("PENDING", 0, "BeginTime"), ("COMPLETED", 9, "None")]
    jobs = [QueuedJob("7", i, state, "a-2", seconds, reason) for i, (state, seconds, reason) in enumerate(states)]
    slurm = SlurmJobs([])
    slurm.__dict__["known"] = defaultdict(list, {"a-2": jobs})
    folder = StageFolder(Storage(), str(tmp_path))
    stage: Any = None  # Unused: the launch records suffice to find Slurm's jobs.
    found = slurm.activity(stage, [launch_record(2, "0-11", ranks_per_job=2)])
    assert (found.running, found.pending, found.requeued) == ({0, 1}, {6, 7}, {8, 9})
    assert found.ranks == set(range(10))
    for log in ("00002/1.log", "00004/2.log"):
        (tmp_path / "logs" / log).parent.mkdir(parents=True)
        (tmp_path / "logs" / log).touch()
    assert asleep(folder, found.starting) == {2, 3}


def test_in_a_job_with_ranks_at_once_its_crews_tell_who_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job with four ranks on two nodes runs two of them; another one has not begun, and sleeps."""
    monkeypatch.setattr(cluster, "is_here", lambda: True)
    slurm = SlurmJobs([])
    states = [("RUNNING", 61), ("RUNNING", 59), ("RUNNING", 59)]
    jobs = [QueuedJob("7", index, state, "a-2", seconds) for index, (state, seconds) in enumerate(states)]
    slurm.__dict__["known"] = defaultdict(list, {"a-2": jobs})
    record = launch_record(2, "0-11", ranks_per_job=4)
    resources = {"ranks_at_once": 1, "nodes_per_job": 2}
    Path(note_path(str(tmp_path), "7_0", 0)).write_bytes(encode_note([1], [0]))
    Path(note_path(str(tmp_path), "7_0", 1)).write_bytes(encode_note([3], []))
    Path(note_path(str(tmp_path), "7_2", 1)).write_bytes(encode_note([9], []))  # Sooner than the other crew.
    stage: Any = None
    found = slurm.activity(stage, [replace(record, resources=resources, log_dir=str(tmp_path))])
    assert (found.running, found.failing, found.pending) == ({1, 3, 9}, {0}, {2, 8, 10, 11})
    assert found.starting.keys() == {4, 5, 6, 7}
    assert found.ranks == set(range(12))  # A retry leaves all of them alone.
    Path(note_path(str(tmp_path), "7_0", 0)).write_text('{"running": "x", "failed": ""}')
    with pytest.raises(StaggerError, match=r"7_0\.0\.running\.json is damaged"):
        slurm.activity(stage, [replace(record, resources=resources, log_dir=str(tmp_path))])


def test_only_what_takes_much_longer_than_most_is_called_slow() -> None:
    def took(*seconds: float) -> CompletionTable:
        return table_of([{"rank": rank, "ended": 100.0 + s} for rank, s in enumerate(seconds)])

    assert slowest(took(30, 31, 59, 29, 30, 300, 90, 70, 65, 30, 30, 30)) == [(5, 300.0), (6, 90.0), (7, 70.0)]
    assert slowest(took(1, 1, 1, 9)) == []  # Less than SLOW_S seconds.
    assert slowest(took()) == []


def test_slurm_is_asked_once_for_all_stages(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    calls = front(cli, tmp_path)
    source = {"read_jsonl": {"path": str(pipeline_file.shards)}}
    stages = [{"name": name, "tasks": 4, "pipeline": [source]} for name in "abc"]
    (tmp_path / "p.yaml").write_text(json.dumps({"name": "p", "run_dir": "run", "executor": SLURM, "stages": stages}))
    cli("launch", "p.yaml", check=0)  # None of its jobs is in the queue afterwards: all are lost.
    calls.write_text("")
    document = cli("status", tmp_path / "run", "--json", check=1).json
    assert [stage["reasons"] for stage in document["stages"]] == [{"lost": 4}] * 3
    asked = [line.partition(" ")[0] for line in calls.read_text().splitlines()]
    assert sorted(asked) == ["sacct", "squeue"]


def test_the_exit_status_is_0_only_when_all_ranks_are_done(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    file = pipeline_file(steps=({"my_steps:fail_on": {"ranks": [2], "flag": str(flag)}},))
    cli("launch", file, "--limit", 2, check=0)  # All that was asked for is done.
    cli("status", tmp_path / "run", check=3)
    cli("launch", file, check=1)
    cli("status", tmp_path / "run", check=1)
    flag.touch()
    cli("retry", tmp_path / "run", check=0)
    cli("status", tmp_path / "run", check=0)
