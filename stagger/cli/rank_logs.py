"""Finding and printing the logs of ranks."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from stagger.errors import StaggerError
from stagger.launches import read_launches
from stagger.ranks import parse_ranks
from stagger.run_folder import RunFolder, RunRecord
from stagger.rundir import StageFolder, attempt_order, decode, pad
from stagger.spec.models import StageSpec
from stagger.spec.steps import nearest
from stagger.status import activity_of, stage_status
from stagger.storage import is_local, join

#: Lines of a failed rank's log that are shown.
TAIL = 15

#: Seconds between two looks at a log that is followed.
FOLLOW_S = 0.5

#: Seconds between two questions to what runs a rank whose log is followed.
ASK_S = 5.0


def show_logs(
    folder: RunFolder, record: RunRecord, *, stage: str | None, rank: int | None, failed: bool, follow: bool
) -> None:
    """Print a rank's log, the failed ranks' errors, or where each log is."""
    stages = chosen_stages(record, stage)
    if rank is not None:
        if len(stages) > 1:
            raise StaggerError(
                f"The run has several stages; say which with --stage: {', '.join(s.name for s in stages)}."
            )
        if rank >= stages[0].tasks:
            raise StaggerError(
                f"There is no rank {rank}: the ranks of {stages[0].name} are 0 to {stages[0].tasks - 1}."
            )
        show_rank(folder.stage(record.spec, stages[0]), rank, follow, folder.path)
        return
    for one in stages:
        stage_folder = folder.stage(record.spec, one)
        if failed:
            show_failed(stage_folder, one, folder.path)
        else:
            list_logs(stage_folder)


def chosen_stages(record: RunRecord, name: str | None) -> list[StageSpec]:
    names = [stage.name for stage in record.spec.stages]
    if name is not None and name not in names:
        raise StaggerError(f"There is no stage {name!r}; {nearest(name, names)}")
    return list(record.spec.stages) if name is None else [record.spec.stage(name)]


def latest_attempts(folder: StageFolder, below: str = "") -> dict[int, str]:
    """The latest attempt of each rank that has a log: one listing, of one rank's logs if `below` names it."""
    latest: dict[int, str] = {}
    for entry in folder.storage.walk(join(folder.path, "logs", below) if below else join(folder.path, "logs")):
        rank, _, name = f"{below}/{entry.name}".lstrip("/").partition("/")
        attempt = name.removesuffix(".log")
        if rank.isdecimal() and name.endswith(".log"):
            latest[int(rank)] = max(attempt, latest.get(int(rank), attempt), key=attempt_order)
    return latest


def show_rank(folder: StageFolder, rank: int, follow: bool, run_dir: str) -> None:
    while (attempt := latest_attempts(folder, pad(rank)).get(rank)) is None:
        outside = job_output(folder, rank)
        if outside and not follow:
            print(f"rank {rank} has no log; its job printed, before the rank began:")
            print(tail(outside))
            return
        if not follow:
            raise StaggerError(f"Rank {rank} has no log yet: it has not begun (on an object store: it has not ended).")
        time.sleep(FOLLOW_S)
    print_growing(folder, folder.log(rank, attempt), follow, run_dir)


def print_growing(folder: StageFolder, path: str, follow: bool, run_dir: str) -> None:
    """Print a log; with `follow`, what is added to it until the attempt has ended."""
    data = folder.storage.read(path)
    sys.stdout.buffer.write(data)
    sys.stdout.flush()
    position = len(data)
    growing = follow and is_local(path)
    asked = time.monotonic()
    while growing:
        # Asked before the read, so that the last words are not missed.
        growing = not ended(folder, path)
        if growing and time.monotonic() - asked > ASK_S:  # One that was killed leaves no record.
            asked = time.monotonic()
            growing = int(path.split("/")[-2]) in activity_of(folder, read_launches(folder), run_dir).ranks
        if growing:
            time.sleep(FOLLOW_S)
        more = folder.storage.read_range(path, position, position + 2**24)
        sys.stdout.buffer.write(more)
        sys.stdout.flush()
        position += len(more)


def ended(folder: StageFolder, log: str) -> bool:
    """Whether the attempt of a log has left its completion or failure record."""
    rank, attempt = int(log.split("/")[-2]), log.split("/")[-1].removesuffix(".log")
    return (
        folder.storage.entry(folder.completion(rank)) is not None
        or folder.storage.entry(folder.failure(rank, attempt)) is not None
    )


def show_failed(folder: StageFolder, stage: StageSpec, run_dir: str) -> None:
    """Of each failed rank: the error in a sentence, then the end of its log."""
    failures, attempts = folder.failures(), latest_attempts(folder)
    for rank in stage_status(folder, stage, run_dir).failed_ranks:
        error = "its job ended without a word: killed, or it never started Python"
        if rank in failures:
            path = folder.failure(rank, failures[rank])
            error = decode(folder.storage.read(path), path)["error"]
        print(f"rank {rank}: {error}")
        data = folder.storage.read(folder.log(rank, attempts[rank])) if rank in attempts else job_output(folder, rank)
        print("".join(f"    {line}\n" for line in tail(data).splitlines()))


def list_logs(folder: StageFolder) -> None:
    for rank, attempt in sorted(latest_attempts(folder).items()):
        print(f"rank {rank}: {folder.log(rank, attempt)}")


def job_output(folder: StageFolder, rank: int) -> bytes:
    """What the rank's latest Slurm job printed outside its ranks; empty when there is none."""
    for launch in reversed(read_launches(folder)):
        path = job_output_path(launch, rank) if launch["executor"] == "slurm" else None
        if path is not None and os.path.isfile(path):
            with open(path, "rb") as file:
                return file.read()
    return b""


def job_output_path(launch: dict[str, Any], rank: int) -> str | None:
    for array in launch["arrays"]:
        ranks = parse_ranks(array["ranks"])
        if rank in ranks:
            index = ranks.index(rank) // launch["ranks_per_job"]
            return os.path.join(launch["log_dir"], f"{array['job_id']}_{index}.out")
    return None


def tail(data: bytes) -> str:
    return "\n".join(data.decode(errors="replace").splitlines()[-TAIL:])
