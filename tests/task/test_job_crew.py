"""The crew of a job that runs ranks beside one another. Stand-ins answer for Slurm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stagger.slurm import job_memory as memory
from stagger.slurm.job_memory import (
    SHARE_VARIABLE,
    free_bytes,
    granted_mib,
    killed_for_memory,
    limit_mib,
    used_mib,
)
from tests.conftest import Cli, PipelineFiles, output_ids, until
from tests.kit.open_files import open_files
from tests.kit.runs import EVERYTHING, completions

STEPS = """
import json, os, subprocess, sys, time
import stagger
def note(data, rank, world_size, folder):
    seen = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "STAGGER_CREW", "WORLD_SIZE")}
    seen["processors"] = sorted(os.sched_getaffinity(0))
    with open(f"{folder}/seen-{rank}", "w") as file:
        json.dump(seen, file)
    yield from data
def child_with_memory(data, rank, world_size):
    if rank == 1:
        held = "held = bytearray(b'x') * (400 * 2**20); import time; time.sleep(1000)"
        subprocess.run([sys.executable, "-c", held])
    yield from data
def grow(data, rank, world_size):
    held = bytearray(b"x") * (200 * 2**20) if rank == 0 else None
    yield from data
LEFT = []
class Loads:
    model = None
    def __call__(self, data, rank, world_size):
        if self.model is None:
            self.model = bytearray(b"x") * (200 * 2**20)
            LEFT.append(self.model)
        yield from data
@stagger.kept("model")
class LoadsOnce(Loads):
    pass
"""


class CrewJob:
    """A job with a crew, run by hand, of a run of four ranks that nobody has launched."""

    def __init__(self, cli: Cli, files: PipelineFiles, folder: Path) -> None:
        self.cli = cli
        self.files = files
        self.folder = folder
        self.run = folder / "run"
        self.settings = ""
        (folder / "crew_steps.py").write_text(STEPS)
        stand_ins = folder / "bin"
        stand_ins.mkdir()
        answer = 'case "$*" in *%L*) echo "RUNNING|0:01";; esac'
        for name, script in (("squeue", answer), ("scontrol", f'echo "$*" >> {folder}/scontrol')):
            (stand_ins / name).write_text(f"#!/bin/sh\n{script}\n")
            (stand_ins / name).chmod(0o755)

    def plan(self, *steps: Any, **more: Any) -> None:
        """Write the plan and the settings, by a launch for Slurm that is rejected."""
        sbatch = self.folder / "bin" / "sbatch"
        sbatch.write_text("#!/bin/sh\necho 'sbatch: error: Batch job submission failed: Invalid qos' >&2; exit 1\n")
        sbatch.chmod(0o755)
        executor = {"type": "slurm", "ranks_per_job": 4, "ranks_at_once": 2}
        file = self.files(steps=steps, executor=executor, randomize_start_duration=0, **more)
        self.cli("launch", file, check=2, PATH=f"{self.folder}/bin:{os.environ['PATH']}")
        self.settings = str(self.run / "launches" / "1" / "settings.json")

    def start(self, ranks: str = "0-3", order: str = "", **env: str) -> subprocess.Popen[str]:
        wanted = {"at_once": "2", "cpus": "1", "gpus": "0", "mib": "0", "requested": "0"}
        wanted |= dict(word.split("=") for word in order.split())
        crew = " ".join(f"{key}={value}" for key, value in wanted.items())
        variables = {"SLURM_JOB_ID": "7", "STAGGER_CREW": f"{crew} notes={self.folder}", **env}
        return subprocess.Popen(
            [sys.executable, "-I", "-m", "stagger.task", self.settings, ranks],
            env={**self.cli.env, "PATH": f"{self.folder}/bin:{os.environ['PATH']}", **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def failure(self, rank: int) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.run / "failures" / f"{rank:05d}.1.json").read_text())
        return record


@pytest.fixture
def job(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> CrewJob:
    return CrewJob(cli, pipeline_file, tmp_path)


def test_each_worker_has_gpus_and_processors_of_its_own(job: CrewJob, tmp_path: Path) -> None:
    job.plan({"crew_steps:note": {"folder": str(tmp_path)}})
    crew = job.start(order="gpus=2", CUDA_VISIBLE_DEVICES="4,5,6,7")
    output, _ = crew.communicate(timeout=60)
    assert crew.returncode == 0, output
    seen = [json.loads((tmp_path / f"seen-{rank}").read_text()) for rank in range(4)]
    by_pid = {record["pid"]: one for record, one in zip(completions(job.run), seen, strict=True)}
    assert sorted(one["CUDA_VISIBLE_DEVICES"] for one in by_pid.values()) == ["4,5", "6,7"]
    assert all(one["STAGGER_CREW"] is None for one in seen)  # A launch within a task submits jobs of its own.
    first, second = (set(one["processors"]) for one in by_pid.values())
    assert len(os.sched_getaffinity(0)) < 2 or first.isdisjoint(second)
    assert output_ids(tmp_path / "run-output") == EVERYTHING
    note = json.loads((tmp_path / "7.0.running.json").read_text())
    assert note == {"running": "", "failed": ""}


def test_memory_counts_with_that_of_children_and_a_rank_above_its_share_ends_alone(job: CrewJob) -> None:
    job.plan("crew_steps:child_with_memory")
    crew = job.start(order="requested=1", SLURM_MEM_PER_NODE="500")
    output, _ = crew.communicate(timeout=60)
    assert crew.returncode == 1
    assert "all ranks have ended: 3 done, 1 failed (1)" in output
    failure = job.failure(1)
    assert (failure["kind"], failure["job"], failure["attempt"]) == ("OUT_OF_MEMORY", "7", "1")
    assert "its share of the job's is 250 MiB" in failure["error"]
    assert subprocess.run(["pgrep", "-f", "held = bytearray"], check=False).returncode == 1


@pytest.mark.parametrize(("step", "workers"), [("Loads", 4), ("LoadsOnce", 1)])
def test_a_worker_stays_with_what_its_steps_keep_and_is_replaced_with_what_they_leave(
    job: CrewJob, step: str, workers: int
) -> None:
    """A quarter of its share is left, in which each rank has room."""
    job.plan(f"crew_steps:{step}")
    crew = job.start(order="at_once=1 requested=1", SLURM_MEM_PER_NODE="280")
    output, _ = crew.communicate(timeout=60)
    assert "all ranks have ended: 4 done" in output
    assert len({record["pid"] for record in completions(job.run)}) == workers


def test_a_record_has_the_peak_memory_of_its_own_rank(job: CrewJob) -> None:
    job.plan("crew_steps:grow")
    crew = job.start(order="at_once=1")
    crew.communicate(timeout=60)
    records = completions(job.run)
    assert records[0]["pid"] == records[1]["pid"]
    assert records[0]["peak_rss_mb"] > 200 > records[1]["peak_rss_mb"]


def test_workers_that_do_not_stop_in_time_are_killed_and_the_job_is_requeued(job: CrewJob, tmp_path: Path) -> None:
    """One worker stops between two records; the other is in a step that never ends."""
    job.plan({"my_steps:hold": {"ranks": [3], "flag": str(tmp_path / "flag")}}, {"my_steps:dawdle": {"ranks": [2]}})
    crew = job.start()
    until((tmp_path / "flag-3").exists, "rank 3 to hang")
    until((tmp_path / "-2").exists, "rank 2 to work")
    crew.send_signal(signal.SIGUSR2)
    output, _ = crew.communicate(timeout=60)
    assert crew.returncode == 128 + signal.SIGUSR2
    assert [job.failure(rank)["kind"] for rank in (2, 3)] == ["interrupted"] * 2
    assert [job.failure(rank)["signal"] for rank in (2, 3)] == ["SIGUSR2"] * 2
    assert "stopped by SIGUSR2: 2 done, 2 stopped (2-3), 0 not begun" in output
    assert (tmp_path / "scontrol").read_text().splitlines().count("requeue 7") == 1


def test_after_a_requeue_only_ranks_that_are_not_done_run(job: CrewJob) -> None:
    job.plan()
    job.start("0-1").communicate(timeout=60)
    output, _ = job.start("0-3", SLURM_RESTART_COUNT="1").communicate(timeout=60)
    assert "ranks to run: 2, 2 at once" in output
    assert [record["attempt"] for record in completions(job.run)] == ["1", "1", "1r1", "1r1"]


def test_workers_end_when_their_crew_is_killed(job: CrewJob, tmp_path: Path) -> None:
    job.plan({"my_steps:hold": {"flag": str(tmp_path / "flag")}})
    crew = job.start()
    until(lambda: (tmp_path / "flag-0").exists() and (tmp_path / "flag-1").exists(), "both workers to hold")
    crew.kill()
    crew.communicate(timeout=60)  # Returns when the workers, which have its output, have ended, too.
    assert subprocess.run(["pgrep", "-f", f"stagger.task.*{tmp_path}"], check=False).returncode == 1
    assert not (job.run / "completions").exists()


def test_a_node_without_ranks_has_nothing_to_do(job: CrewJob) -> None:
    """The last job of an array can have fewer ranks than nodes."""
    job.plan()
    crew = job.start("0", SLURM_STEP_NUM_TASKS="2", SLURM_PROCID="1")
    output, _ = crew.communicate(timeout=60)
    assert crew.returncode == 0
    assert "ranks to run: 0" in output
    assert not (job.run / "completions").exists()


def test_a_crew_runs_its_nodes_share_of_the_ranks(job: CrewJob, tmp_path: Path) -> None:
    job.plan({"crew_steps:note": {"folder": str(tmp_path)}})
    crew = job.start(SLURM_STEP_NUM_TASKS="2", SLURM_PROCID="1")
    output, _ = crew.communicate(timeout=60)
    assert crew.returncode == 0, output
    assert [record["rank"] for record in completions(job.run)] == [1, 3]
    seen = json.loads((tmp_path / "seen-3").read_text())
    assert seen["WORLD_SIZE"] is None  # A rank is no part of a distributed task, as it is with nodes_per_task.


def test_a_jobs_memory_is_what_it_was_granted_unless_the_node_has_less() -> None:
    assert granted_mib({"SLURM_MEM_PER_NODE": "0"}) == 0  # --mem=0: all of the node's.
    node = limit_mib({}, requested=False)
    assert limit_mib({"SLURM_MEM_PER_CPU": "1", "SLURM_CPUS_ON_NODE": "4"}, requested=False) == node
    assert limit_mib({"SLURM_MEM_PER_CPU": "1", "SLURM_CPUS_ON_NODE": "4"}, requested=True) == 4
    assert limit_mib({"SLURM_MEM_PER_NODE": str(10**9)}, requested=True) == node
    assert 0 < used_mib(os.getpid(), above_mib=0) < node
    assert used_mib(2**22 + 1, above_mib=0) == 0  # No such process.


def test_what_a_process_may_still_take_is_what_its_limit_or_its_share_leaves() -> None:
    used = used_mib(os.getpid(), above_mib=0)
    granted = {"SLURM_MEM_PER_NODE": str(used + 300)}
    assert 250 <= free_bytes(granted) / 2**20 <= 310
    assert 50 <= free_bytes({**granted, SHARE_VARIABLE: str(used + 100)}) / 2**20 <= 110
    assert free_bytes({"SLURM_MEM_PER_NODE": "1"}) == 0
    assert 0 < free_bytes({}) < limit_mib({}, requested=True) * 2**20


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        (
            "0::/system.slice/slurmstepd.scope/job_7/step_batch/user/task_0",
            {
                "system.slice/slurmstepd.scope/job_7/step_batch/user/task_0/memory.max": "max",
                "system.slice/slurmstepd.scope/job_7/memory.max": "5242880",
                "system.slice/slurmstepd.scope/job_7/step_batch/user/task_0/memory.events": "oom 2\noom_kill 2\n",
            },
        ),
        (
            "5:cpuset:/slurm/uid_0/job_7\n4:memory:/slurm/uid_0/job_7/step_batch\n0::/",
            {
                "memory/slurm/uid_0/job_7/step_batch/memory.limit_in_bytes": "9223372036854771712",
                "memory/slurm/uid_0/job_7/memory.limit_in_bytes": "5242880",
                "memory/slurm/uid_0/job_7/step_batch/memory.oom_control": "under_oom 0\noom_kill 2\n",
            },
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_a_jobs_cgroups_limit_its_memory_and_count_kills(
    groups: str, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = {"/proc/self/cgroup": groups, **{f"/sys/fs/cgroup/{name}": text for name, text in files.items()}}
    monkeypatch.setattr(memory, "_read", lambda path: kernel.get(path, ""))
    assert limit_mib({}, requested=False) == 5
    assert killed_for_memory() == 2


def test_a_worker_that_somebody_stopped_has_stopped_its_rank_only(job: CrewJob, tmp_path: Path) -> None:
    job.plan({"my_steps:hold": {"ranks": [0], "flag": str(tmp_path / "flag")}})
    crew = job.start()
    until((tmp_path / "flag-0").exists, "rank 0 to hold")
    (worker,) = (pid for pid in children(crew.pid) if "/logs/00000/" in " ".join(open_files(pid)))
    os.kill(worker, signal.SIGTERM)
    (tmp_path / "flag").touch()
    output, _ = crew.communicate(timeout=60)
    assert crew.returncode == 1
    assert (job.failure(0)["kind"], job.failure(0)["signal"]) == ("interrupted", "SIGTERM")
    assert [record["rank"] for record in completions(job.run)] == [1, 2, 3]
    assert "all ranks have ended: 3 done, 1 stopped (0)" in output


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
