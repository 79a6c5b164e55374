"""Where a run stands, from its completion and failure records and one question to what runs it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from stagger.executor.activity import Activity
from stagger.executor.kinds import LaunchedJobs
from stagger.progress import busy
from stagger.ranks import pad
from stagger.rundir.launch_records import read_launches
from stagger.rundir.run_folder import RunFolder, RunRecord
from stagger.rundir.stage_folder import StageFolder, attempt_order
from stagger.spec.models import StageSpec
from stagger.start.account import start_account
from stagger.status.efficiency import efficiency
from stagger.status.failed_ranks import cancelled_ranks, find_failed
from stagger.storage.storage import is_local, join

#: The slowest ranks that are shown, when they take so many times the median, and so many seconds.
SLOWEST = 3
SLOW_FACTOR, SLOW_S = 2.0, 10.0


@dataclass
class StageStatus:
    """Every rank of the stage is counted once: done + failed + running + sleeping + requeued + pending == tasks.

    `sleeping`: in the delay of its staggered start. `requeued`: waits to be started once more. `slowest`: [rank,
    seconds] of those that took much longer than most. `cancelled`: how many of the pending a user cancelled.
    """

    name: str
    tasks: int
    done: int = 0
    failed: int = 0
    running: int = 0
    sleeping: int = 0
    requeued: int = 0
    pending: int = 0
    cancelled: int = 0
    failed_ranks: list[int] = field(default_factory=list)
    records_in: int = 0
    records_out: int = 0
    bytes_out: int = 0
    bad_records: dict[str, int] = field(default_factory=dict)
    retried: dict[str, int] = field(default_factory=dict)
    retry_waited_s: float = 0.0
    starts: dict[str, Any] = field(default_factory=dict)
    slowest: list[tuple[int, float]] = field(default_factory=list)
    records_per_s: float | None = None
    bytes_per_s: float | None = None
    eta_s: float | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    active: bool = False
    efficiency: dict[str, Any] = field(default_factory=dict)
    output_folders: list[str] = field(default_factory=list)


def status_of(folder: RunFolder, record: RunRecord) -> list[StageStatus]:
    """The status of each stage. Slurm is asked once for all of them."""
    stages = [(stage, folder.stage(record.spec, stage)) for stage in record.spec.stages]
    launches = {stage.name: read_launches(stage_folder) for stage, stage_folder in stages}
    jobs = LaunchedJobs([launch for mine in launches.values() for launch in mine])
    return [stage_status(where, stage, folder.path, launches[stage.name], jobs) for stage, where in stages]


def activity_of(
    folder: StageFolder, launches: list[dict[str, Any]], run_dir: str, jobs: LaunchedJobs | None = None
) -> Activity:
    """What runs or is queued, whichever executors launched it."""
    return (jobs or LaunchedJobs(launches)).activity(folder, launches, run_dir)


def stage_status(
    folder: StageFolder,
    stage: StageSpec,
    run_dir: str,
    launches: list[dict[str, Any]] | None = None,
    jobs: LaunchedJobs | None = None,
) -> StageStatus:
    """Where a stage stands now.

    Who is active is asked first and the records are listed after it: a rank that ends in between is then found done,
    and never taken for one that vanished.
    """
    launches = read_launches(folder) if launches is None else launches
    jobs = jobs or LaunchedJobs(launches)
    activity = activity_of(folder, launches, run_dir, jobs)
    done = {rank for rank in folder.done() if rank < stage.tasks}
    failed = find_failed(folder, launches, done, activity.ranks - done, jobs)
    status = StageStatus(stage.name, stage.tasks, done=len(done), failed=len(failed))
    status.failed_ranks = [one.rank for one in failed]
    status.reasons = dict(Counter(one.reason for one in failed).most_common())
    # A rank of a running local launch that has failed already is not waiting for anything.
    settled = done.union(status.failed_ranks)
    sleeping = asleep(folder, activity.starting) - settled
    status.sleeping = len(sleeping)
    status.running = len((activity.running | activity.starting.keys()) - sleeping - settled)
    status.requeued = len(activity.requeued - settled)
    counted = status.done + status.failed + status.running + status.sleeping + status.requeued
    status.pending = stage.tasks - counted
    status.active = bool(activity.ranks - settled)
    status.cancelled = len(cancelled_ranks(launches) - activity.ranks - settled)
    with busy(f"{stage.name}: reading {len(done)} completion records"):
        completions = folder.completions(done)
    add_totals(status, completions, launches)
    return status


def asleep(folder: StageFolder, starting: dict[int, tuple[int, int]]) -> set[int]:
    """The ranks of those jobs that have not begun yet: the first rank of each has no log of this launch.

    On an object store a log appears at the end of its attempt: there all of them may be asleep.
    """
    if not is_local(folder.path):
        return set(starting)
    begun = {job for job in set(starting.values()) if has_log(folder, *job)}
    return {rank for rank, job in starting.items() if job not in begun}


def has_log(folder: StageFolder, launch: int, rank: int) -> bool:
    """Whether an attempt of the rank in this launch has begun."""
    logs = folder.storage.list(join(folder.path, "logs", pad(rank)))
    return any(attempt_order(log.name.removesuffix(".log"))[0] == launch for log in logs)


def sum_by_kind(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """The sum of several counts, the largest first."""
    total: dict[str, int] = {}
    for count in counts:
        for kind, number in count.items():
            total[kind] = total.get(kind, 0) + number
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def add_totals(status: StageStatus, completions: list[dict[str, Any]], launches: list[dict[str, Any]]) -> None:
    """Sums over the completion records, and the rate of the latest launch."""
    status.records_in = sum(record["records_in"] for record in completions)
    status.records_out = sum(record["records_out"] for record in completions)
    status.bytes_out = sum(record["bytes_out"] for record in completions)
    status.starts = start_account(completions)
    status.slowest = slowest(completions)
    status.bad_records = sum_by_kind(record["bad_records"]["skipped"] for record in completions)
    status.retried = sum_by_kind(record["retried"]["requests"] for record in completions)
    status.retry_waited_s = round(sum(record["retried"]["waited_s"] for record in completions), 3)
    paths = {output["path"].rpartition("/")[0] for record in completions for output in record["outputs"]}
    status.output_folders = sorted(paths)
    if launches and not status.active and launches[-1]["executor"] == "slurm":
        status.efficiency = efficiency(completions, launches[-1]["resources"])
    if not (launches and status.active):
        return
    recent = [record for record in completions if record["launch"] == launches[-1]["launch"]]
    elapsed = time.time() - launches[-1]["time"]
    if recent and elapsed > 0:
        left = status.running + status.sleeping + status.requeued + status.pending
        status.records_per_s = round(sum(record["records_in"] for record in recent) / elapsed, 1)
        status.bytes_per_s = round(sum(record["bytes_in"] for record in recent) / elapsed, 1)
        status.eta_s = round(elapsed / len(recent) * left, 1)


def slowest(completions: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """(rank, seconds) of the ranks that took much longer than most, the slowest first."""
    took = sorted(((r["ended"] - r["started"], r["rank"]) for r in completions), reverse=True)
    if not took:
        return []
    least = max(SLOW_S, SLOW_FACTOR * median(seconds for seconds, _ in took))
    return [(rank, round(seconds, 1)) for seconds, rank in took[:SLOWEST] if seconds > least]
