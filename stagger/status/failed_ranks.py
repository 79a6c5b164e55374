"""Finds the failed ranks of a stage, from failure records and Slurm's final states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stagger.executor.activity import Activity
from stagger.executor.kinds import LaunchedJobs
from stagger.rundir.launch_records import Group, LaunchRecord, LocalLaunch, SlurmLaunch
from stagger.rundir.records import Failure
from stagger.rundir.stage_folder import StageFolder, attempt_order
from stagger.status.failed import UNPLACED, Failed, NotStarted, looks_out_of_memory, not_started

#: Bytes read from the end of a job's output, where Slurm reports that it was killed for its memory.
TAIL_BYTES = 4096


@dataclass(frozen=True)
class Try:
    """A launch of a rank, with the resources of its group."""

    launch: LaunchRecord
    group: Group
    cancelled: bool


def find_failed(
    folder: StageFolder,
    launches: Sequence[LaunchRecord],
    done: set[int],
    activity: Activity,
    jobs: LaunchedJobs,
) -> list[Failed]:
    """The ranks whose latest launch ended without a completion record, ascending.

    Of ranks that may be active, because Slurm does not say, those that left a failure record of their own.

    A Slurm job that vanishes without a record counts as failed: its node failed, or Python never started. A rank that
    was stopped on purpose, by Ctrl-C or `stagger cancel`, counts as pending.
    """
    if all(done.issuperset(launch.rank_list) for launch in launches):
        return []
    tries = tries_of(launches)
    wanted = [rank for rank in sorted(tries) if rank not in done and not tries[rank][-1].cancelled]
    # A local launch never retries a rank, so one that has failed is no longer active.
    active = activity.ranks - activity.unknown - activity.failing
    wanted = [rank for rank in wanted if rank not in active or isinstance(tries[rank][-1].launch, LocalLaunch)]
    if not wanted:
        return []
    attempts = folder.failed_attempts()
    latest = _records(folder, attempts, {rank: tries[rank][-1] for rank in wanted})
    wanted = [rank for rank in wanted if rank not in activity.unknown or is_final(latest.get(rank))]
    again = {rank: tries[rank][-2] for rank in wanted if tries[rank][-1].group.tries > 0 and len(tries[rank]) > 1}
    before = _records(folder, attempts, again)
    ends = _silent_ends({rank: tries[rank][-1] for rank in wanted}, latest, jobs)
    failed = []
    for rank in wanted:
        last, failure = tries[rank][-1], latest.get(rank)
        if isinstance(last.launch, LocalLaunch) and (failure is None or failure["kind"] == "interrupted"):
            continue
        end = ends.get(rank, SilentEnd())
        failed.append(Failed(rank, last.group, end.state, failure, before.get(rank), end.not_started, end.signal))
    return failed


def is_final(failure: Failure | None) -> bool:
    """Whether a rank's failure record means that its job does not try it again: no signal stopped it."""
    return failure is not None and failure["kind"] != "interrupted"


def all_ended(folder: StageFolder, launches: Sequence[LaunchRecord], done: set[int]) -> bool:
    """Whether each launched rank has a completion record, or a failure record in its latest launch."""
    tries = {rank: mine[-1] for rank, mine in tries_of(launches).items() if rank not in done}
    if not tries:
        return True
    latest = _records(folder, folder.failed_attempts(), tries)
    return all(is_final(latest.get(rank)) for rank in tries)


def tries_of(launches: Sequence[LaunchRecord]) -> dict[int, list[Try]]:
    """Each rank's launches, oldest first, without those that Slurm refused."""
    tries: dict[int, list[Try]] = {}
    for launch in launches:
        cancelled = set(launch.cancelled_list)
        for group in launch.groups:
            for rank in group.ranks:
                tries.setdefault(rank, []).append(Try(launch, group, rank in cancelled))
    return tries


def cancelled_ranks(launches: Sequence[LaunchRecord]) -> set[int]:
    """The ranks that were cancelled in their latest launch, alone or with all of it."""
    if not any(launch.cancelled_list for launch in launches):
        return set()
    return {rank for rank, tries in tries_of(launches).items() if tries[-1].cancelled}


def _records(folder: StageFolder, attempts: dict[int, list[str]], tries: dict[int, Try]) -> dict[int, Failure]:
    """Rank -> its latest failure record in the launch of its try; ranks without one are left out."""
    wanted = []
    for rank, one in tries.items():
        names = [name for name in attempts.get(rank, []) if attempt_order(name)[0] == one.launch.launch]
        wanted += [(rank, names[-1])] if names else []
    found = folder.failure_records(wanted)
    return {rank: record for (rank, _), record in zip(wanted, found, strict=True) if record is not None}


@dataclass(frozen=True)
class SilentEnd:
    """What is known of the end of a rank that left no failure record of its own, or only one about a signal.

    state: Slurm's final state; None if unknown.
    not_started: why its job ended before Python started, if it did.
    signal: the signal that ended its job; 0 if none is known.
    """

    state: str | None = None
    not_started: NotStarted | None = None
    signal: int = 0


def _silent_ends(tries: dict[int, Try], latest: dict[int, Failure], jobs: LaunchedJobs) -> dict[int, SilentEnd]:
    """How the ranks ended that left no failure record of their own, or only one about a signal."""
    silent: dict[int, set[int]] = {}
    launches: dict[int, SlurmLaunch] = {}
    for rank, one in tries.items():
        if isinstance(one.launch, SlurmLaunch) and not is_final(latest.get(rank)):
            silent.setdefault(one.launch.launch, set()).add(rank)
            launches[one.launch.launch] = one.launch
    ends: dict[int, SilentEnd] = {}
    for number, ranks in silent.items():
        states = jobs.end_states(launches[number], ranks)
        ends |= {rank: SilentEnd(states.get(rank)) for rank in ranks}
        lost = {rank for rank in ranks if states.get(rank) == "FAILED" and rank not in latest}
        ends |= {rank: end for rank in lost if (end := _told_by_output(launches[number], rank)) is not None}
        lost = {rank for rank in lost if ends[rank] == SilentEnd("FAILED")}
        known = jobs.accounted(launches[number], lost) if lost else {}
        ends |= {rank: SilentEnd("FAILED", None if one.placed else UNPLACED, one.signal) for rank, one in known.items()}
    return ends


def _told_by_output(launch: SlurmLaunch, rank: int) -> SilentEnd | None:
    """How a failed job ended, by the end of its output; None if that does not say it."""
    output = _end_of_output(launch, rank)
    if looks_out_of_memory(output):  # Not every cluster has a state for that.
        return SilentEnd("OUT_OF_MEMORY")
    why = not_started(output)
    return None if why is None else SilentEnd("FAILED", why)


def _end_of_output(launch: SlurmLaunch, rank: int) -> str:
    """The end of a job's output; empty if it cannot be read."""
    try:
        with open(launch.output_of(rank) or "", "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
