"""Measures how many metadata operations per second a shared folder answers: `stagger doctor --measure-metadata`.

Other users wait while a metadata server is busy. So it runs for a few seconds only, in a few processes, and stops as
soon as more processes do not get more answers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from stagger.doctor.check import Check
from stagger.errors import StaggerError, counted

#: Numbers of processes that are tried one after another, the seconds that each may take, and the growth of the rate
#: below which no further number is tried.
PROCESSES = (1, 2, 4)
SECONDS = 1.0
GROWTH = 1.25

#: Part of the measured rate that one run should use: the server has other users, too.
SHARE = 0.5

#: File systems that a machine keeps to itself (proc(5), mountinfo).
LOCAL = frozenset(("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"))

#: Prints the operations of one process: it looks for a new name, creates the file, and removes it. No client can answer
#: any of these from its cache. Each process has a folder of its own: changes of one folder wait for one another.
PROGRAM = """
import os, sys, time
folder, seconds = f"{sys.argv[1]}/{os.getpid()}", float(sys.argv[2])
os.mkdir(folder)
print("ready", flush=True)
sys.stdin.readline()
end, rounds = time.monotonic() + seconds, 0
while time.monotonic() < end:
    path = f"{folder}/{rounds}"
    os.path.lexists(path)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    os.unlink(path)
    rounds += 1
print(3 * rounds)
"""


@dataclass(frozen=True)
class Rate:
    """Operations per second that a number of processes got together."""

    processes: int
    per_s: float


def announcement(folder: str) -> str:
    """What the measurement will do, to be said before it begins."""
    return (
        f"Up to {PROCESSES[-1]} processes of this machine look for, create and remove empty files in a new folder below"
        f" {folder}, for up to {len(PROCESSES) * SECONDS:.0f} s. The folder is then removed."
    )


def check_folder(folder: str) -> str:
    """The absolute path of a folder that can be measured. Raises StaggerError."""
    path = os.path.abspath(folder)
    if not os.path.isdir(path):
        what = "an object store has no metadata server" if "://" in folder else "there is no such folder"
        raise StaggerError(f"--measure-metadata {folder}: {what}; name a folder of the shared file system.")
    if not os.access(path, os.W_OK | os.X_OK):
        raise StaggerError(f"--measure-metadata {folder}: you cannot write there; name a folder of yours.")
    return path


def measured(folder: str, seconds: float = SECONDS) -> list[Rate]:
    """The rates of more and more processes, until they do not grow. Raises StaggerError if files cannot be created."""
    rates: list[Rate] = []
    try:
        with tempfile.TemporaryDirectory(prefix="stagger-metadata-", dir=folder, ignore_cleanup_errors=True) as own:
            for processes in PROCESSES:
                rates.append(rate_of(own, processes, seconds))
                if not still_grew(rates):
                    break
    except (OSError, ValueError) as error:
        raise StaggerError(f"--measure-metadata {folder}: the measurement failed: {error}") from error
    return rates


def still_grew(rates: list[Rate]) -> bool:
    """Whether the last processes that were added got more answers."""
    return len(rates) < 2 or rates[-1].per_s >= GROWTH * rates[-2].per_s


def rate_of(folder: str, processes: int, seconds: float) -> Rate:
    """Let processes begin at once. Raises ValueError with what one of them printed, if it failed."""
    with ExitStack() as ended:
        started = []
        for _ in range(processes):
            command = [sys.executable, "-I", "-S", "-c", PROGRAM, folder, str(seconds)]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            started.append(ended.enter_context(process))
            ended.callback(process.kill)
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        answers = list(answers_of(started))
    return Rate(processes, sum(answers) / seconds)


def answers_of(started: list[subprocess.Popen[str]]) -> Iterator[int]:
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in started:
        output, errors = process.communicate()
        if process.returncode:
            raise ValueError(errors.strip().rpartition("\n")[2])
        yield int(output)


def limit_of(rates: list[Rate]) -> int:
    """The `metadata_limit` to write: a share of the highest rate, rounded down to two digits.

    >>> limit_of([Rate(1, 9000.0), Rate(2, 15_850.0)])
    7900
    """
    most = int(SHARE * max(rate.per_s for rate in rates))
    unit = int("1".ljust(len(str(most)) - 1, "0"))
    return max(1, most // unit * unit)


def check_of(folder: str, rates: list[Rate]) -> Check:
    """What was measured, and what to write."""
    kind = file_system(folder) or "unknown file system"
    most = max(rate.per_s for rate in rates)
    table = "; ".join(f"{counted(rate.processes, 'process')} {rate.per_s:,.0f}/s" for rate in rates)
    text = f"{folder} ({kind}): {table}."
    if kind in LOCAL:
        return Check("metadata", "warning", f"{text} This is a disk of this machine: name a folder that nodes share.")
    text += f" Its metadata server answers at least {most:,.0f} operations/s"
    text += ", and more to more processes" if still_grew(rates) else ""
    text += f". {SHARE:.0%} of that, since it has other"
    text += f" users: metadata_limit: {limit_of(rates)}, in the pipeline file or the profile."
    return Check("metadata", "ok", text)


def file_system(folder: str) -> str:
    """The type of the file system that a folder lies on; empty if it is not known."""
    device = os.stat(folder).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        return ""
    return next((fields[fields.index("-") + 1] for fields in mounts if fields[2] == number), "")
