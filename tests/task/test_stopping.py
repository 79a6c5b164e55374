"""Steps that never look at the stop flag are stopped all the same, and what they started ends with them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from stagger.pipeline.task_context import StopFlag
from stagger.task import stopping
from stagger.task.children import peak_mib
from stagger.task.own_process import cpu_seconds
from tests.conftest import Cli, until

STEPS = """
import multiprocessing, os, pathlib, signal, time

def begun(name):
    pathlib.Path(f"{name}.new").write_text(str(os.getpid()))
    os.rename(f"{name}.new", name)

def asleep(data=None, rank=0, world_size=1):
    begun("begun")
    try:
        time.sleep(60)
    except BaseException:  # Swallows the first interruption.
        begun("swallowed")
        time.sleep(60)

def within(data=None, rank=0, world_size=1):
    yield 1
    begun("begun")
    time.sleep(60)

def child_of(data=None, rank=0, world_size=1):
    def work():
        end = time.process_time() + 0.5
        filled = bytearray(200 * 2**20)
        while time.process_time() < end:
            pass
        begun("child")
        time.sleep(60)
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    while not os.path.exists("child"):
        time.sleep(0.01)
    pathlib.Path("begun").touch()
    if os.environ.get("KIT_TERMINATE"):
        child.terminate()
        child.join()
        pathlib.Path("exit").write_text(str(child.exitcode))
        return
    while True:
        time.sleep(0.01)
        yield 1
"""


@pytest.fixture
def file(tmp_path: Path) -> Any:
    (tmp_path / "kit_stopping.py").write_text(textwrap.dedent(STEPS))

    def write(step: str) -> Path:
        path = tmp_path / "p.yaml"
        path.write_text(f'name: p\nrun_dir: run\npipeline: ["kit_stopping:{step}"]\nexecutor: {{type: local}}\n')
        return path

    return write


def failure(folder: Path) -> Any:
    (record,) = (folder / "run" / "failures").glob("*.json")
    return json.loads(record.read_text())


@pytest.mark.parametrize("step", ["asleep", "within"])
def test_a_step_that_works_within_one_call_is_stopped_and_named(cli: Cli, file: Any, tmp_path: Path, step: str) -> None:
    running = cli.start("launch", file(step))
    until((tmp_path / "begun").exists, "the step to begin")
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    record = failure(tmp_path)
    assert (record["kind"], record["step"], record["signal"]) == ("interrupted", f"kit_stopping:{step}", "SIGTERM")


def alive(pid: int) -> bool:
    """Whether a process lives, and is no zombie that waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_children_get_no_stop_handlers_and_count_in_the_record(
    cli: Cli, file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("launch", file("child_of"), check=0, KIT_TERMINATE="1")
    assert (tmp_path / "exit").read_text() == f"-{int(signal.SIGTERM)}"
    (path,) = (tmp_path / "run" / "completions").glob("*.json")
    record = json.loads(path.read_text())
    assert record["cpu_s"] > 0.5
    assert record["peak_rss_mb"] > 200
    assert record["steps"][0]["seconds"] > 0.5


@pytest.mark.parametrize("victim", ["worker", "launch"])
def test_a_killed_worker_leaves_no_orphan(cli: Cli, file: Any, tmp_path: Path, victim: str) -> None:
    running = cli.start("launch", file("child_of"))
    until((tmp_path / "begun").exists, "the child to begin")
    child = int((tmp_path / "child").read_text())
    worker = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(worker if victim == "worker" else running.pid, signal.SIGKILL)
    until(lambda: not alive(child), "the child to end")
    assert not alive(worker)
    running.communicate(timeout=60)


def test_a_living_child_counts() -> None:
    code = "import time; filled = bytearray(100 * 2**20)\nwhile time.process_time() < 0.3: pass\nprint(); input()"
    before = cpu_seconds()
    with subprocess.Popen([sys.executable, "-u", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert cpu_seconds() - before > 0.25
        assert peak_mib() > 100
        child.communicate(b"\n")
    assert cpu_seconds() - before > 0.25


def test_code_that_never_returns_ends_with_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    stop = StopFlag()
    stop.signal, stop.in_steps = signal.SIGUSR2, True
    stop.record = lambda error: done.append(f"recorded {error}")
    stop.leave = lambda error: done.append("left")
    for name in ("PATIENCE_S", "AGAIN_S"):
        monkeypatch.setattr(stopping, name, 0)
    monkeypatch.setattr(stopping, "LAST_S", -1)

    def exits(status: int) -> None:
        done.append(f"exit {status}")
        stop.clear()
        stop.in_steps = False

    monkeypatch.setattr(os, "_exit", exits)
    stopping.watch(stop, 0)
    assert done == ["recorded SIGUSR2", "left", f"exit {128 + signal.SIGUSR2}"]
