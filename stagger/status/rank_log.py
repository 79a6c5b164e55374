"""Finds the log of a rank, or what its job printed outside of any log."""

from __future__ import annotations

import os
from collections.abc import Sequence

from stagger.errors import StaggerError
from stagger.ranks import pad
from stagger.rundir.launch_records import LaunchRecord, SlurmLaunch, read_launches
from stagger.rundir.stage_folder import StageFolder, attempt_order
from stagger.storage.storage import join

#: Number of last lines of a log, or of a job's output, that are shown for a failed rank.
TAIL = 15


def latest_attempts(folder: StageFolder, below: str = "") -> dict[int, str]:
    """Map each rank that has a log to its latest attempt, by one listing; `below` limits that to one rank's folder."""
    latest: dict[int, str] = {}
    for entry in folder.storage.walk(join(folder.path, "logs", below) if below else join(folder.path, "logs")):
        rank, _, name = f"{below}/{entry.name}".lstrip("/").partition("/")
        attempt = name.removesuffix(".log")
        if rank.isdecimal() and name.endswith(".log"):
            latest[int(rank)] = max(attempt, latest.get(int(rank), attempt), key=attempt_order)
    return latest


def log_path(folder: StageFolder, rank: int, attempt: str | None = None) -> str | None:
    """The path of the log of a rank's latest attempt, or of the one named `attempt`; None if the rank has no log.

    Raises StaggerError when the rank has no such attempt.
    """
    if attempt is None:
        latest = latest_attempts(folder, pad(rank)).get(rank)
        return None if latest is None else folder.log(rank, latest)
    entries = folder.storage.list(join(folder.path, "logs", pad(rank)))
    names = sorted((entry.name.removesuffix(".log") for entry in entries), key=attempt_order)
    if attempt not in names:
        raise StaggerError(f"Rank {rank} has no attempt {attempt}; it has {', '.join(names) or 'none yet'}.")
    return folder.log(rank, attempt)


def output_without_log(folder: StageFolder, rank: int) -> bytes:
    """What the job of a rank without a log printed. Raises StaggerError when there is nothing."""
    if output := job_output(read_launches(folder), rank):
        return output
    raise StaggerError(f"Rank {rank} has no log yet: it has not begun (on an object store: not ended).")


def job_output(launches: Sequence[LaunchRecord], rank: int) -> bytes:
    """Output that the rank's latest Slurm job wrote outside its ranks; empty when there is no such file."""
    for launch in reversed(launches):
        path = launch.output_of(rank) if isinstance(launch, SlurmLaunch) else None
        if path is not None and os.path.isfile(path):
            with open(path, "rb") as file:
                return file.read()
    return b""


def tail(data: bytes) -> str:
    """The last TAIL lines of `data`."""
    return "\n".join(data.decode(errors="backslashreplace").splitlines()[-TAIL:])
