"""How the ranks ended that are neither done nor under way: from failure records and Slurm's own account."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from stagger.executor.kinds import LaunchedJobs
from stagger.ranks import parse_ranks
from stagger.rundir.launch_records import Group
from stagger.rundir.stage_folder import StageFolder, attempt_order
from stagger.status.failed import Failed, looks_out_of_memory

#: Bytes at the end of what a job printed, in which Slurm says that it was killed for its memory.
TAIL_BYTES = 4096


@dataclass(frozen=True)
class Try:
    """A launch that a rank was in, and as what."""

    launch: dict[str, Any]
    group: Group
    cancelled: bool


def find_failed(
    folder: StageFolder, launches: list[dict[str, Any]], done: set[int], active: set[int], jobs: LaunchedJobs
) -> list[Failed]:
    """The ranks whose latest launch ended without a completion record, ascending.

    A Slurm job that is gone without any record was killed with its node, or never started Python: failed, and never
    taken for success. A rank that was stopped on purpose, by Ctrl-C or `stagger cancel`, is only pending.
    """
    if done.issuperset(rank for launch in launches for rank in parse_ranks(launch["ranks"])):
        return []
    tries = tries_of(launches)
    wanted = [rank for rank in sorted(tries) if rank not in done and not tries[rank][-1].cancelled]
    # A local launch does not try a rank twice: one that has failed is not active any more.
    wanted = [rank for rank in wanted if rank not in active or tries[rank][-1].launch["executor"] == "local"]
    if not wanted:
        return []
    attempts = folder.failed_attempts()
    latest = _records(folder, attempts, {rank: tries[rank][-1] for rank in wanted})
    again = {rank: tries[rank][-2] for rank in wanted if tries[rank][-1].group.tries > 0 and len(tries[rank]) > 1}
    before = _records(folder, attempts, again)
    states = _end_states({rank: tries[rank][-1] for rank in wanted}, latest, jobs)
    failed = []
    for rank in wanted:
        last, failure = tries[rank][-1], latest.get(rank)
        if last.launch["executor"] == "local" and (failure is None or failure["kind"] == "interrupted"):
            continue
        failed.append(Failed(rank, last.group, states.get(rank), failure, before.get(rank)))
    return failed


def tries_of(launches: list[dict[str, Any]]) -> dict[int, list[Try]]:
    """Each rank's launches, oldest first."""
    tries: dict[int, list[Try]] = {}
    for launch in launches:
        cancelled = set(parse_ranks(launch.get("cancelled_ranks", "")))
        whole = bool(launch.get("cancelled"))
        for array in launch.get("arrays") or [{"ranks": launch["ranks"]}]:
            ranks = parse_ranks(array["ranks"])
            scales = (array.get("memory_scale", 1.0), array.get("time_scale", 1.0))
            group = Group(ranks, array.get("tries", 0), *scales)
            for rank in ranks:
                tries.setdefault(rank, []).append(Try(launch, group, whole or rank in cancelled))
    return tries


def cancelled_ranks(launches: list[dict[str, Any]]) -> set[int]:
    """The ranks whose latest launch was cancelled, as a whole or for them."""
    if not any(launch.get("cancelled") or launch.get("cancelled_ranks") for launch in launches):
        return set()
    return {rank for rank, tries in tries_of(launches).items() if tries[-1].cancelled}


def _records(folder: StageFolder, attempts: dict[int, list[str]], tries: dict[int, Try]) -> dict[int, dict[str, Any]]:
    """The latest failure record of each rank in the launch of its try."""
    wanted = []
    for rank, one in tries.items():
        names = [name for name in attempts.get(rank, []) if attempt_order(name)[0] == one.launch["launch"]]
        wanted += [(rank, names[-1])] if names else []
    found = folder.failure_records(wanted)
    return {rank: record for (rank, _), record in zip(wanted, found, strict=True) if record is not None}


def _end_states(tries: dict[int, Try], latest: dict[int, dict[str, Any]], jobs: LaunchedJobs) -> dict[int, str]:
    """How Slurm says that the jobs of those ranks ended that do not say it themselves."""
    silent: dict[int, set[int]] = {}
    launches = {}
    for rank, one in tries.items():
        if one.launch["executor"] == "slurm" and latest.get(rank, {"kind": "interrupted"})["kind"] == "interrupted":
            silent.setdefault(one.launch["launch"], set()).add(rank)
            launches[one.launch["launch"]] = one.launch
    states: dict[int, str] = {}
    for number, ranks in silent.items():
        states |= jobs.end_states(launches[number], ranks)
        for rank in ranks:
            if states.get(rank) == "FAILED" and rank not in latest and _killed_for_memory(launches[number], rank):
                states[rank] = "OUT_OF_MEMORY"
    return states


def _killed_for_memory(launch: dict[str, Any], rank: int) -> bool:
    """Whether Slurm says so in the job's output: not on all clusters is there a state for it."""
    path = job_output_path(launch, rank)
    try:
        with open(path or "", "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            return looks_out_of_memory(file.read().decode(errors="replace"))
    except OSError:
        return False


def job_output_path(launch: dict[str, Any], rank: int) -> str | None:
    """Where Slurm wrote what the job of a rank printed outside its ranks."""
    for array in launch["arrays"]:
        ranks = parse_ranks(array["ranks"])
        if rank in ranks:
            index = ranks.index(rank) // launch["ranks_per_job"]
            return os.path.join(launch["log_dir"], f"{array['job_id']}_{index}.out")
    return None
