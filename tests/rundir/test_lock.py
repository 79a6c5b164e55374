"""The lock of a run: whoever dies, at whatever step, it is free again, and one process at a time holds it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from stagger.errors import StaggerError
from stagger.rundir import lock as lock_module
from stagger.rundir.lock import Holder, Lock, process_start
from stagger.rundir.stage_folder import encode
from stagger.storage.storage import Storage
from tests.conftest import until

#: Of the lock, its guard, that guard's guard, and so on.
SUFFIXES = ("", ".takeover", ".takeover2", ".takeover3")


@pytest.fixture
def lock(tmp_path: Path) -> Lock:
    return Lock(Storage(), str(tmp_path), str(tmp_path / "lock"))


def dead() -> Holder:
    """A holder whose process has ended."""
    process = subprocess.Popen(["sleep", "100"])
    holder = replace(Holder.this_process(), pid=process.pid, process_started=process_start(process.pid))
    process.kill()
    process.wait()
    return holder


def write(path: str | Path, holder: Holder) -> None:
    Path(path).write_bytes(encode(asdict(holder)))


def held_and_free(lock: Lock) -> None:
    with lock.held():
        assert lock.holder() is not None
    assert os.listdir(os.path.dirname(lock.path)) == []


def test_the_lock_of_a_dead_process_is_taken_over(lock: Lock) -> None:
    write(lock.path, dead())
    held_and_free(lock)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_a_guard_is_judged_by_its_holder_as_the_lock_is(lock: Lock, levels: int) -> None:
    """Each level is one more process that was killed in the middle of a takeover."""
    for level in range(levels + 1):
        write(lock.path + SUFFIXES[level], dead())
    held_and_free(lock)


def test_a_guard_whose_lock_is_gone_is_removed_by_the_next_takeover(lock: Lock) -> None:
    write(f"{lock.path}.takeover", dead())
    with lock.held():
        pass
    write(lock.path, dead())
    held_and_free(lock)


def test_a_zombie_has_ended(lock: Lock) -> None:
    """In a container nobody may ever wait for a killed process."""
    process = subprocess.Popen(["sleep", "100"])
    holder = replace(Holder.this_process(), pid=process.pid, process_started=process_start(process.pid))
    write(lock.path, holder)
    assert not holder.is_dead()
    process.kill()
    until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z", "a zombie")
    held_and_free(lock)
    process.wait()


def test_a_lock_from_before_a_reboot_is_taken_over(lock: Lock) -> None:
    """Its process number and start time may be another process's by now."""
    write(lock.path, replace(Holder.this_process(), boot="another"))
    held_and_free(lock)


@pytest.mark.parametrize("data", [b"", b"{", encode(asdict(Holder.this_process()))[:40], b"\0" * 100])
@pytest.mark.parametrize("name", ["lock", "lock.takeover"])
def test_a_part_of_a_lock_is_what_a_crash_left(lock: Lock, tmp_path: Path, data: bytes, name: str) -> None:
    write(lock.path, dead())
    (tmp_path / name).write_bytes(data)
    held_and_free(lock)


@pytest.mark.parametrize("content", [[], {}, {**asdict(Holder.this_process()), "pid": "1"}])
def test_a_file_that_is_no_lock_is_named(lock: Lock, content: Any) -> None:
    Path(lock.path).write_text(json.dumps(content))
    with pytest.raises(StaggerError, match=f"{lock.path} is damaged"), lock.held():
        pass


def test_a_link_to_nothing_is_named(lock: Lock) -> None:
    os.symlink("nothing", lock.path)
    with pytest.raises(StaggerError, match=f"{lock.path} can be neither created nor read"), lock.held():
        pass


@pytest.mark.parametrize("pid", [0, 2**40])
def test_numbers_that_are_no_process_are_dead(lock: Lock, pid: int) -> None:
    write(lock.path, replace(Holder.this_process(), pid=pid, process_started=0))
    held_and_free(lock)


@pytest.mark.parametrize("levels", [0, 1])
def test_a_holder_on_another_machine_is_never_dead_and_is_named(
    lock: Lock, levels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "TAKEOVER_S", 0.0)
    write(lock.path, dead())
    path = lock.path + SUFFIXES[levels]
    write(path, replace(dead(), host="elsewhere"))
    with pytest.raises(StaggerError, match=rf"on elsewhere, .*\(if it has ended there: remove {path}\)"), lock.held():
        pass


@pytest.mark.parametrize(
    ("answer", "is_dead"),
    [
        ("RUNNING 1", False),
        ("COMPLETING 1", False),
        ("SUSPENDED 1", False),
        ("PENDING 2", True),  # Requeued.
        ("RUNNING 2", True),  # Requeued, and started again since.
        ("FAILED 1", True),
        ("", True),
    ],
)
def test_a_holder_in_a_job_on_another_machine_is_dead_when_that_job_has_ended(
    lock: Lock, monkeypatch: pytest.MonkeyPatch, answer: str, is_dead: bool
) -> None:
    """Whatever that machine's clock says."""
    asked: list[tuple[str, ...]] = []

    def squeue(*command: str) -> str:
        asked.append(command)
        return answer

    monkeypatch.setattr("stagger.slurm.own_job._run", squeue)
    holder = replace(dead(), host="elsewhere", time=0.0, job="12_3", restarts=1)
    assert holder.is_dead() == is_dead
    assert "--jobs=12_3" in asked[0]
    write(lock.path, holder)
    if is_dead:
        held_and_free(lock)
    assert not replace(holder, user="somebody else").is_dead(), "Slurm may hide the jobs of others"
    assert len(asked) <= 2


def test_the_job_of_a_holder_may_have_been_forgotten_or_nobody_may_know(monkeypatch: pytest.MonkeyPatch) -> None:
    holder = replace(dead(), host="elsewhere", job="12")
    for error, is_dead in (("Invalid job id specified", True), ("squeue failed: unable to contact", False)):

        def fail(*_: str, error: str = error) -> str:
            raise StaggerError(error)

        monkeypatch.setattr("stagger.slurm.own_job._run", fail)
        assert holder.is_dead() == is_dead


def test_a_process_that_proc_hides_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """With hidepid, /proc shows nobody the processes of other users; a signal to one is refused."""
    holder = Holder.this_process()
    monkeypatch.setattr(lock_module, "process_start", lambda pid: 0)
    monkeypatch.setattr(os, "kill", refuse)
    assert not holder.is_dead()


def refuse(pid: int, number: int) -> None:
    raise PermissionError


def test_a_lock_that_somebody_else_holds_by_now_is_not_released(lock: Lock) -> None:
    """The file was removed by hand, and another launch has begun."""
    other = replace(Holder.this_process(), pid=1)
    with lock.held():
        write(lock.path, other)
    assert lock.holder() == other


def test_of_many_that_take_over_one_at_a_time_holds_the_lock(tmp_path: Path) -> None:
    """Each writes when it got the lock and when it let it go; two of them must never overlap."""
    for suffix in SUFFIXES:
        write(tmp_path / f"lock{suffix}", dead())
    takers = [run_taker(tmp_path, wait_s=60) for _ in range(12)]
    assert [taker.wait(60) for taker in takers] == [0] * 12
    words = (tmp_path / "held").read_text().split()
    assert words == ["got", "free"] * 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["held"]


def test_a_takeover_that_is_killed_at_any_call_stops_nobody(tmp_path: Path) -> None:
    """A process is killed before its n-th change to the folder, for every n until one gets through."""
    for step in range(1, 100):
        folder = tmp_path / str(step)
        folder.mkdir()
        write(folder / "lock", dead())
        killed = run_taker(folder, kill_before=step).wait(60)
        assert run_taker(folder).wait(60) == 0
        assert (folder / "held").exists()
        assert not (folder / "lock").exists()
        if killed == 0:
            break
        assert killed == -signal.SIGKILL
    assert 8 < step < 99


def test_takeovers_that_are_killed_one_after_another_stop_nobody(tmp_path: Path) -> None:
    write(tmp_path / "lock", dead())
    for _ in range(8):
        assert run_taker(tmp_path, kill_before=3).wait(60) == -signal.SIGKILL
        assert run_taker(tmp_path, kill_before=7).wait(60) == -signal.SIGKILL
    assert run_taker(tmp_path).wait(60) == 0
    assert not (tmp_path / "lock").exists()


def run_taker(folder: Path, wait_s: float = 0.0, kill_before: int = 0) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", TAKER, str(folder), str(wait_s), str(kill_before)])


TAKER = """
import os, signal, sys
from stagger.rundir.lock import Lock
from stagger.storage.storage import Storage

folder, wait_s, kill_before = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
calls = 0

def counted(call):
    def wrapped(*arguments, **more):
        global calls
        calls += 1
        if calls == kill_before:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **more)
    return wrapped

for name in ("open", "link", "unlink", "rename"):
    setattr(os, name, counted(getattr(os, name)))
with Lock(Storage(), folder, folder + "/lock").held(wait_s):
    log = os.open(folder + "/held", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(log, b"got ")
    os.write(log, b"free ")
"""


def test_only_a_proven_holder_is_the_runs_process() -> None:
    me = Holder.this_process()
    user = os.geteuid()
    assert me.doubt(user) is None
    doubts: dict[str, Callable[[Holder], Holder]] = {
        "is not on this machine": lambda holder: replace(holder, host="elsewhere"),
        "started at another time": lambda holder: replace(holder, process_started=holder.process_started + 1),
        "does not have the command line": lambda holder: replace(holder, command=""),
    }
    for text, change in doubts.items():
        assert text in (change(me).doubt(user) or "")
    assert "is not on this machine" in (replace(me, boot="another").doubt(user) or "")
    assert "is not on this machine" in (replace(me, pid=-1).doubt(user) or "")
    assert "does not have the command line" in (replace(me, command="0" * 64).doubt(user) or "")
    assert "belongs to" in (me.doubt(user + 1) or "")
    assert replace(me, host=socket.gethostname(), time=time.time()).doubt(user) is None
