"""Runs stopped by Ctrl-C, once and twice, by SIGTERM, and by `stagger cancel`."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests.conftest import Cli, PipelineFiles, contents, output_ids, until
from tests.kit.runs import EVERYTHING, counts, status


def test_status_is_true_while_it_runs_and_ctrl_c_leaves_a_run_that_goes_on(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    file = pipeline_file(steps=({"my_steps:hold": {"ranks": [2, 3], "flag": str(flag)}},), tasks=6)
    running = cli.start("launch", file)
    until(lambda: (tmp_path / "flag-2").exists() and (tmp_path / "flag-3").exists(), "both workers to hold")
    until(lambda: counts(status(cli, tmp_path / "run")) == (2, 0, 2, 2), "status to say 2 done, 2 running, 2 pending")
    os.kill(running.pid, signal.SIGINT)  # The holding step sleeps in its own loop, and is interrupted there.
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert err.splitlines()[-1] == (
        "stagger: stopped by SIGINT; completed work is kept, and the next launch continues from there"
    )
    assert "Fatal" not in err
    assert counts(status(cli, tmp_path / "run")) == (2, 0, 0, 4)
    assert not any(name.startswith(".") for name in contents(tmp_path / "run-output"))
    flag.touch()
    cli("launch", file, check=0)
    assert output_ids(tmp_path / "run-output") == EVERYTHING


def test_a_worker_that_ignores_ctrl_c_is_killed(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    file = pipeline_file(steps=({"my_steps:hold": {"ranks": [0], "flag": str(tmp_path / "flag")}},), tasks=1)
    running = cli.start("launch", file)
    until((tmp_path / "flag-0").exists, "the worker to hold")
    os.kill(running.pid, signal.SIGINT)
    running.communicate(timeout=60)
    assert running.returncode == 130
    assert subprocess.run(["pgrep", "-f", str(tmp_path / "run")], check=False).returncode == 1
    assert counts(status(cli, tmp_path / "run")) == (0, 0, 0, 1)


def test_cancel_stops_a_local_run(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    file = pipeline_file(steps=({"my_steps:hold": {"flag": str(flag)}},))
    running = cli.start("launch", file)
    until((tmp_path / "flag-0").exists, "the run to hold")
    assert f"stopped process {running.pid}" in cli("cancel", tmp_path / "run", check=0).out
    flag.touch()
    running.communicate(timeout=60)
    assert running.returncode == 143
    assert "nothing is queued or running" in cli("cancel", tmp_path / "run", check=0).out


def test_an_error_is_not_swallowed_by_a_step_that_goes_on_whatever_happens(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    """A step that catches every Exception must not turn a signal to stop into success."""
    flag = tmp_path / "flag"
    file = pipeline_file(steps=({"my_steps:hold": {"flag": str(flag)}}, "my_steps:swallow"), tasks=1)
    running = cli.start("launch", file)
    until((tmp_path / "flag-0").exists, "the rank to hold")
    os.kill(running.pid, signal.SIGTERM)
    flag.touch()
    running.communicate(timeout=60)
    assert running.returncode == 143
    assert counts(status(cli, tmp_path / "run")) == (0, 0, 0, 1)
    assert not (tmp_path / "run-output" / "00000.jsonl.zst").exists()


def test_a_second_ctrl_c_kills_the_workers_before_the_lock_is_gone(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    file = pipeline_file(steps=({"my_steps:hold": {"flag": str(tmp_path / "flag")}},), tasks=2)
    running = cli.start("launch", file)
    until(lambda: (tmp_path / "flag-0").exists() and (tmp_path / "flag-1").exists(), "both workers to hold")
    os.kill(running.pid, signal.SIGINT)
    os.kill(running.pid, signal.SIGINT)
    running.communicate(timeout=60)
    assert running.returncode == 130
    assert subprocess.run(["pgrep", "-f", f"stagger.task.*{tmp_path}"], check=False).returncode == 1
    assert not (tmp_path / "run" / "lock").exists()
