"""The status of jobs that run, were killed, or never reached Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Cli, PipelineFiles, contents, output_ids, until
from tests.kit.runs import EVERYTHING, SLURM, counts, launches, status


def test_status_is_true_at_each_moment_and_a_second_launch_refuses(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    steps = ({"my_steps:hold": {"flag": str(flag)}},)
    file = pipeline_file(steps=steps, executor={**SLURM, "workers": 2}, randomize_start_duration=0)
    slurm_cli("launch", file, check=0)
    until(lambda: counts(status(slurm_cli, tmp_path / "run")) == (0, 0, 2, 2), "the throttle to let two jobs run")
    (launch,) = launches(tmp_path / "run")
    second = slurm_cli("launch", file, check=2)
    assert f"is already running: Slurm job {launch['arrays'][0]['job_id']} (launch 1)" in second.err
    slurm_cli("retry", tmp_path / "run", check=0)  # Every rank is active, so there is nothing to launch.
    elsewhere = slurm_cli("status", tmp_path / "run", "--json", check=3, PATH="/nonexistent")
    assert counts(elsewhere.json["stages"][0]) == (0, 0, 0, 4)  # Without squeue, no rank is shown as failed.
    assert "no squeue on this machine" in elsewhere.err
    assert len(launches(tmp_path / "run")) == 1
    flag.touch()
    until(lambda: counts(status(slurm_cli, tmp_path / "run")) == (4, 0, 0, 0), "all ranks to be done")
    assert output_ids(tmp_path / "run-output") == EVERYTHING


@pytest.mark.each_version
def test_a_killed_task_is_found_and_only_it_is_run_again(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    slurm_cli("launch", pipeline_file("undisturbed"), check=0)
    flag = tmp_path / "flag"
    steps = ({"my_steps:kill_on": {"ranks": [1], "flag": str(flag)}},)
    file = pipeline_file(steps=steps, executor=SLURM, randomize_start_duration=0)
    ran = slurm_cli("launch", file, "--wait", check=1)
    assert "1 rank of" in ran.err
    visible = [name for name in contents(tmp_path / "run-output") if not name.startswith(".")]
    assert visible == ["00000.jsonl.zst", "00002.jsonl.zst", "00003.jsonl.zst"]
    stage = status(slurm_cli, tmp_path / "run")
    assert (counts(stage), stage["failed_ranks"]) == ((3, 1, 0, 0), [1])
    until(lambda: status(slurm_cli, tmp_path / "run")["reasons"] == {"killed by SIGKILL": 1}, "accounting to know")
    assert json.loads((tmp_path / "run" / "stats.json").read_text())["missing_ranks"] == "1"
    assert "rank 1: " in slurm_cli("logs", tmp_path / "run", "--failed", check=0).out
    assert "rank 1, attempt 1" in slurm_cli("logs", tmp_path / "run", "--rank", 1, "--follow", check=0).out
    flag.touch()
    before = contents(tmp_path / "run" / "completions")
    slurm_cli("retry", tmp_path / "run", "--wait", check=0)
    assert launches(tmp_path / "run")[1]["ranks"] == "1"
    after = contents(tmp_path / "run" / "completions")
    assert {name: after[name] for name in before} == before
    assert contents(tmp_path / "run-output") == contents(tmp_path / "undisturbed-output")
    assert json.loads((tmp_path / "run" / "stats.json").read_text())["missing_ranks"] == ""


@pytest.mark.each_version
def test_a_job_that_never_reaches_python_is_failed_not_done(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    executor = {**SLURM, "env": {"setup": ["echo this node is broken", "exit 0"]}}
    file = pipeline_file(executor=executor, randomize_start_duration=0)
    slurm_cli("launch", file, "--wait", check=1)
    stage = status(slurm_cli, tmp_path / "run")
    assert counts(stage) == (0, 4, 0, 0)
    # Exit status 0 does not make a rank done. A moment later, accounting knows how the jobs ended.
    until(lambda: status(slurm_cli, tmp_path / "run")["reasons"] == {"lost (COMPLETED)": 4}, "accounting to know")
    assert "this node is broken" in slurm_cli("logs", tmp_path / "run", "--failed").out
    assert "this node is broken" in slurm_cli("logs", tmp_path / "run", "--rank", "2").out
