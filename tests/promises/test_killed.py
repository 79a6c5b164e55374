"""Killed tasks, workers and launchers: no output is left, and the run ends or continues."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Cli, PipelineFiles, contents, output_ids, until
from tests.kit.runs import EVERYTHING, counts, status


def test_a_killed_task_leaves_no_output_and_costs_its_rank_only(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    cli("launch", pipeline_file("undisturbed"), check=0)
    flag = tmp_path / "flag"
    file = pipeline_file(steps=({"my_steps:kill_on": {"ranks": [0, 2], "flag": str(flag)}},))
    ran = cli("launch", file, check=1)
    assert "killed by SIGKILL" in ran.err
    visible = [name for name in contents(tmp_path / "run-output") if not name.startswith(".")]
    assert visible == ["00001.jsonl.zst", "00003.jsonl.zst"], ran.err
    stage = status(cli, tmp_path / "run")
    assert (counts(stage), stage["failed_ranks"], stage["reasons"]) == ((2, 2, 0, 0), [0, 2], {"killed": 2})
    flag.touch()
    before = contents(tmp_path / "run" / "completions")
    cli("retry", tmp_path / "run", check=0)
    assert contents(tmp_path / "run-output") == contents(tmp_path / "undisturbed-output")
    after = contents(tmp_path / "run" / "completions")
    assert {name: after[name] for name in before} == before


def test_a_worker_that_somebody_stopped_has_failed_its_rank(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    file = pipeline_file(steps=({"my_steps:hold": {"ranks": [1], "flag": str(flag)}},), tasks=3)
    running = cli.start("launch", file)
    until((tmp_path / "flag-1").exists, "rank 1 to hold")
    log = (tmp_path / "run" / "logs" / "00001" / "1.log").read_text()
    os.kill(int(log.partition("job local-")[2].split()[0]), signal.SIGTERM)
    flag.touch()
    _, err = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "ended with exit status 143" in err
    stage = status(cli, tmp_path / "run")
    assert (counts(stage), stage["failed_ranks"]) == ((2, 1, 0, 0), [1])


def test_workers_that_die_one_after_another_do_not_hang_the_run(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    file = pipeline_file(steps=({"my_steps:kill_on": {"ranks": list(range(12))}},), tasks=12)
    cli("launch", file, check=1)
    assert counts(status(cli, tmp_path / "run")) == (0, 12, 0, 0)


def test_workers_end_when_the_launcher_is_killed(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    file = pipeline_file(steps=({"my_steps:hold": {"flag": str(flag)}},), tasks=2)
    running = cli.start("launch", file)
    until(lambda: (tmp_path / "flag-0").exists() and (tmp_path / "flag-1").exists(), "both workers to hold")
    running.kill()
    running.wait(timeout=60)
    # The steps keep holding, and never check whether they should stop.
    until(
        lambda: subprocess.run(["pgrep", "-f", f"stagger.task.*{tmp_path}"], check=False).returncode,
        "the workers to end",
    )
    flag.touch()
    assert counts(status(cli, tmp_path / "run")) == (0, 0, 0, 2)
    cli("launch", file, check=0)  # The dead launcher's lock is taken over.
    assert output_ids(tmp_path / "run-output") == EVERYTHING


@pytest.mark.parametrize("left_behind", ["thread", "fork"])
def test_what_a_step_leaves_running_does_not_hang_the_run(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, left_behind: str
) -> None:
    (tmp_path / "leave.py").write_text(
        "import multiprocessing, os, signal, threading, time\n"
        "def thread(data, rank, world_size):\n"
        "    threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "    yield from data\n"
        "def fork(data, rank, world_size):\n"
        "    if rank == 1:\n"
        "        multiprocessing.get_context('fork').Process(target=time.sleep, args=(30,)).start()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    yield from data\n"
    )
    running = cli.start("launch", pipeline_file(steps=(f"leave:{left_behind}",)))
    assert running.wait(timeout=25) == (1 if left_behind == "fork" else 0)
    assert status(cli, tmp_path / "run")["failed_ranks"] == ([1] if left_behind == "fork" else [])
    for pipe in (running.stdout, running.stderr):
        assert pipe is not None
        pipe.close()
