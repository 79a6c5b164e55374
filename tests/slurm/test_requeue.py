"""Jobs that are requeued by hand, on preemption or at their time limit: nothing is lost, nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import until
from tests.kit.runs import completions, counts, launches, status
from tests.slurm.conftest import Life, restarted, slurm, visible


@pytest.mark.each_version
def test_a_requeue_by_hand_loses_nothing(life: Life) -> None:
    life.launch({"my_steps:dawdle": {"ranks": [1]}})
    life.begun(1)
    slurm(life.cli, "scontrol", "requeue", f"{life.array}_1")
    life.finish()
    record = completions(life.run)[1]
    assert (record["attempt"], record["launch"]) == ("1r1", 1)
    assert len(launches(life.run)) == 1


def test_at_its_time_limit_a_job_goes_on_with_the_first_shard_that_is_not_committed(life: Life) -> None:
    life.launch(
        {"my_steps:linger": {"first": 250}},
        executor={"time": 1},
        tasks=2,
        commit="shard",
        writer={"filename": "{stem}.jsonl"},
    )
    begun = life.begun(1)
    until(lambda: restarted(life), "Slurm to warn it, and to start it again")
    life.flag.touch()
    begun.unlink()
    life.finish()
    record = completions(life.run)[1]
    assert record["attempt"] == "1r1"
    log = (life.run / "logs" / "00001" / "1r1.log").read_text()
    assert "resumes after 2 shards, committed by attempt 1" in log
    assert len(record["outputs"]) == record["shards"] == 6


@pytest.mark.each_version
def test_a_preempted_job_queues_itself_again(life: Life) -> None:
    """Preemption with a grace time: Slurm sends SIGTERM to the batch script, and the job keeps running for a while.
    The step works within one call, and never looks whether it should stop.
    """
    life.launch({"my_steps:oversleep": {"ranks": [1]}})
    life.begun(1)
    slurm(life.cli, "scancel", "--batch", "--signal=TERM", f"{life.array}_1")
    until(lambda: restarted(life), "it to begin again")
    life.finish()
    assert completions(life.run)[1]["attempt"] == "1r1"
    failure = json.loads((life.run / "failures" / "00001.1.json").read_text())
    assert (failure["kind"], failure["step"]) == ("interrupted", "my_steps:oversleep")


def test_a_job_that_was_queued_again_often_enough_is_failed(life: Life) -> None:
    life.launch({"my_steps:dawdle": {"ranks": [1]}}, executor={"max_requeues": 0})
    life.begun(1)
    slurm(life.cli, "scancel", "--batch", "--signal=TERM", f"{life.array}_1")
    until(lambda: counts(status(life.cli, life.run)) == (3, 1, 0, 0), "it to end")
    assert status(life.cli, life.run)["reasons"] == {"PREEMPTED": 1}
    output = (life.run / "launches" / "1" / "slurm" / f"{life.array}_1.out").read_text()
    assert "not requeued after 0 requeues (executor.max_requeues)" in output
    life.cli("retry", life.run, "--wait", check=0)
    life.compare()


def test_an_attempt_that_slurm_took_for_dead_commits_nothing_any_more(life: Life) -> None:
    """Two attempts at one rank: the older one wants to commit after the later one has begun."""
    life.launch({"my_steps:hold": {"ranks": [1]}})
    life.begun(1)
    # Announce a later attempt by its log, as an attempt on another node would.
    (life.run / "logs" / "00001" / "1r1.log").touch()
    life.flag.touch()
    until(lambda: (life.run / "failures" / "00001.1.json").exists(), "the old attempt to end")
    failure = json.loads((life.run / "failures" / "00001.1.json").read_text())
    assert failure["error"] == "Attempt 1r1 of this rank has started: attempt 1 commits nothing."
    assert "00001.jsonl.zst" not in visible(life.folder / "run-output")
    life.cli("retry", life.run, "--wait", check=0)
    life.compare()


def test_an_attempt_that_wakes_in_its_commit_after_slurm_ran_the_rank_again_changes_nothing(life: Life) -> None:
    """The older attempt runs on a node that is cut off, so that nobody ends it: it freezes at its first rename."""
    life.launch({"my_steps:fail_on": {"ranks": [1]}})
    until(lambda: counts(status(life.cli, life.run)) == (3, 1, 0, 0), "rank 1 to fail")
    settings = json.loads((life.run / "launches" / "1" / "launch.json").read_text())["settings"]
    life.flag.touch()
    trace = life.folder / "trace"
    stop = ["strace", "-f", "-o", str(trace), "-e", "trace=rename", "-e", "inject=rename:signal=STOP:when=1"]
    old = [sys.executable, "-I", "-m", "stagger.task", settings, "1"]
    env = {**life.cli.env, "SLURM_JOB_ID": "1", "STAGGER_SCRIPT_STARTED": "1000"}
    with subprocess.Popen([*stop, *old], env=env) as frozen:
        until(lambda: b"--- stopped by SIGSTOP" in trace.read_bytes() if trace.exists() else False, "it to freeze")
        life.cli("retry", life.run, "--wait", check=0)
        os.kill(int(trace.read_text().split()[0]), signal.SIGCONT)
        frozen.wait(timeout=60)
    life.compare()
    assert [record["attempt"] for record in completions(life.run)][1] == "2"


def test_what_a_packed_job_has_done_is_not_done_again(life: Life) -> None:
    life.launch({"my_steps:hold": {"ranks": [1]}}, executor={"ranks_per_job": 2})
    begun = life.begun(1)
    until(lambda: (life.run / "completions" / "00000.json").exists(), "the rank before it to be done")
    begun.unlink()
    slurm(life.cli, "scontrol", "requeue", f"{life.array}_0")
    life.begun(1)
    life.flag.touch()
    life.finish()
    assert [record["attempt"] for record in completions(life.run)] == ["1", "1r1", "1", "1"]
