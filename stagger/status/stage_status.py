"""The status of a run, from its completion and failure records and one query to Slurm."""

from __future__ import annotations

import heapq
import os
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import sub
from statistics import median
from typing import Any, get_args

from rich.filesize import decimal

from stagger.executor.activity import Activity, Waiting
from stagger.ranks import format_ranks, named_ranks, pad
from stagger.rundir.completion_table import CompletionTable
from stagger.rundir.launch_records import SlurmLaunch
from stagger.rundir.published import read_published
from stagger.rundir.run_folder import RunFolder, RunRecord
from stagger.rundir.stage_folder import StageFolder, attempt_order, collection_paused
from stagger.slurm.states import Starts
from stagger.spec.models import StageSpec
from stagger.status.efficiency import efficiency
from stagger.status.end_job import end_message, end_of
from stagger.status.failed import grouped
from stagger.status.failed_ranks import cancelled_ranks
from stagger.status.look import Look, glance_at_run
from stagger.status.models_used import models_used
from stagger.status.schemas import schema_differences
from stagger.status.totals import totals
from stagger.status.uncovered import waits_for_blocks
from stagger.storage.storage import is_local, join

#: The fields of a status that are sums over the completion records.
SUMMED = (
    "records_in",
    "records_out",
    "bytes_out",
    "bad_records",
    "left_out",
    "dropped",
    "counts",
    "retried",
    "retry_waited_s",
    "starts",
    "steps",
)

#: At most this many of the slowest ranks are shown.
SLOWEST = 3

#: How the phrase about outputs begins that could not be published.
NOT_PUBLISHED = "not published"

#: A rank is shown as slow only if it took more than SLOW_FACTOR times the median, and more than SLOW_S seconds.
SLOW_FACTOR, SLOW_S = 2.0, 10.0


@dataclass
class StageStatus:
    """The status of a stage. Each rank counts once: done + failed + running + sleeping + requeued + pending == tasks.

    undecided: how many ranks the stage will have, in words, as long as that is not decided; `tasks` is 0 then.
    sleeping: ranks in the delay of their staggered start.
    requeued: ranks whose job ran before and waits to start again.
    cancelled: the number of pending ranks that a user cancelled.
    unknown: the number of pending ranks that may be running, because Slurm does not say.
    stuck: the number of pending ranks whose jobs never start as they are; cancel them, and change what they request.
    waiting: why pending ranks do not start soon: `ranks` and their `count`, `job_id`, Slurm's `reason`, when it
        `starts` (`never` as it is, `by hand` once somebody has acted, `later` by itself), and a `message`. Those that
        never start come first.
    ordinary: Slurm's reason, such as Priority -> the number of pending ranks that wait for it, and start by themselves.
    waits_for: of the swarms that it uses, the blocks that no server serves, and what the servers do, in words.
    notes: what could not be found out, and why, in sentences.
    avoided: nodes on which the jobs of the latest launch do not run, for several ranks failed there before.
    errors: why ranks failed, grouped by cause, the largest group first: `ranks`, `count` and the `error` of the first,
        which is its `sentence` and `where` in the user's code.
    strays: the visible files of ranks that are neither done nor active, their ranks, and a sentence; empty if none.
    lost: the ranks that are done but whose outputs are missing or changed, as text, the number of these files, the
        first, and their number by what happened to them; only where that was checked.
    foreign: the files with names of outputs that are none, a phrase for each output folder; where that was checked.
    dropped: the reasons for which steps dropped documents -> their number; counts: what steps counted.
    steps: for each step its `name`, the `records` that left it, the `seconds` spent in it alone, and if there are any:
        `dropped`, `counts` and `metrics`, by name; of a metric `n`, `sum`, `min`, `max`, `mean`, `variance`, `std_dev`.
    took_s: seconds from the first launch to the end of the last rank; None while not all ranks are done.
    removed_folders: the folders of the documents that steps removed, where `removed` keeps them.
    places: the paths that exist of the stage's `report`, `stats` and `logs`.
    slowest: (rank, seconds) of ranks that took much longer than most.
    models: which models the steps of its ranks used, on what, with the number of ranks of each.
    schema_differences: a sentence for each column that differs between the Parquet files of an output folder.
    replaced: the servers of blocks that were lost and replaced, a phrase for each launch that did so.
    published: where the outputs are published, or why they are not, as a phrase; empty if they are not to be.
    end: the state and a message of the end of the latest launch (`stagger.status.end_job`); empty if there is none.
    """

    name: str
    tasks: int
    undecided: str = ""
    done: int = 0
    failed: int = 0
    running: int = 0
    sleeping: int = 0
    requeued: int = 0
    pending: int = 0
    cancelled: int = 0
    unknown: int = 0
    stuck: int = 0
    failed_ranks: list[int] = field(default_factory=list)
    records_in: int = 0
    records_out: int = 0
    bytes_out: int = 0
    bad_records: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    retried: dict[str, int] = field(default_factory=dict)
    retry_waited_s: float = 0.0
    starts: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    slowest: list[tuple[int, float]] = field(default_factory=list)
    records_per_s: float | None = None
    bytes_per_s: float | None = None
    eta_s: float | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    active: bool = False
    efficiency: dict[str, Any] = field(default_factory=dict)
    took_s: float | None = None
    output_folders: list[str] = field(default_factory=list)
    removed_folders: list[str] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    strays: dict[str, Any] = field(default_factory=dict)
    lost: dict[str, Any] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)
    waiting: list[dict[str, Any]] = field(default_factory=list)
    ordinary: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    avoided: list[str] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    schema_differences: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    waits_for: list[str] = field(default_factory=list)
    published: str = ""
    end: dict[str, str] = field(default_factory=dict)

    @property
    def is_ending(self) -> bool:
        """Whether the end job of the stage, which may launch more ranks, is queued or running."""
        return self.end.get("state") in ("waiting", "running")

    @property
    def is_active(self) -> bool:
        """Whether ranks are queued or running, or the end job is."""
        return bool(self.running or self.sleeping or self.active or self.is_ending)

    @property
    def is_done(self) -> bool:
        return not self.undecided and self.done == self.tasks

    @property
    def is_unpublished(self) -> bool:
        """Whether the stage is done, and its outputs could not be published."""
        return self.is_done and self.published.startswith(NOT_PUBLISHED)

    @property
    def differs(self) -> bool:
        """Whether the stage is done, and files of one output folder have different columns."""
        return self.is_done and bool(self.schema_differences)


def status_of(folder: RunFolder, record: RunRecord) -> tuple[dict[str, Look], list[StageStatus]]:
    """One glance at each stage of a run, and the status of each."""
    looks = glance_at_run(folder, folder.refreshed(record))
    return looks, stage_statuses(looks)


def stage_statuses(looks: Mapping[str, Look]) -> list[StageStatus]:
    """The status of each stage of a run, with what the ends of the stages did."""
    stages = [stage_status(look) for look in looks.values()]
    for stage, look in zip(stages, looks.values(), strict=True):
        if (end := end_of(look)) is not None and (message := end_message(look, looks, end)):
            stage.end = {"state": end.state, "message": message}
        stage.waits_for = waits_for_blocks(look, looks)
    return stages


def stage_status(look: Look) -> StageStatus:
    """The status of a stage."""
    activity, undecided = look.activity, undecided_ranks(look.stage.spec)
    tasks = 0 if undecided else look.stage.spec.tasks
    status = StageStatus(look.stage.name, tasks, undecided, done=len(look.done), failed=len(look.failed))
    status.failed_ranks = [one.rank for one in look.failed]
    status.reasons = dict(Counter(one.reason for one in look.failed).most_common())
    status.errors = [
        {
            "ranks": format_ranks(group.ranks),
            "count": len(group.ranks),
            "error": group.error,
            "sentence": group.first.sentence,
            "where": group.where,
        }
        for group in grouped(look.failed)
    ]
    # A running local launch still lists the ranks that have failed already.
    settled = look.done.union(status.failed_ranks)
    sleeping = asleep(look.stage.folder, activity.starting) - settled
    status.sleeping = len(sleeping)
    status.running = len((activity.running | activity.starting.keys()) - sleeping - settled)
    status.requeued = len(activity.requeued - settled)
    counted = status.done + status.failed + status.running + status.sleeping + status.requeued
    status.pending = tasks - counted
    status.active = bool(activity.ranks - settled)
    status.unknown = len(activity.unknown - settled)
    status.stuck = len(activity.stuck - settled)
    status.waiting = waiting(activity, settled)
    status.ordinary = dict(Counter(why for rank, why in activity.ordinary.items() if rank not in settled).most_common())
    status.notes = list(look.jobs.notes)
    status.cancelled = len(cancelled_ranks(look.launches) - activity.ranks - settled)
    if look.launches and isinstance(latest := look.launches[-1], SlurmLaunch):
        status.avoided = list(latest.avoided)
    if look.stage.spec.blocks is not None:
        status.replaced = replaced(look)
    status.places = places(look.stage.folder, bool(look.done or look.failed)) if look.has_started else {}
    if look.stage.spec.publish is not None:
        status.published = published(look)
    with collection_paused(), look.stage.folder.blaming():
        add_totals(status, look)
        if look.strays is not None:
            status.strays = {**vars(look.strays), "message": str(look.strays)}
    return status


def replaced(look: Look) -> list[str]:
    """What became of lost servers: `rank 1 by job 34 (launch 2)`, oldest first."""
    slurm = [launch for launch in look.launches if isinstance(launch, SlurmLaunch) and launch.groups]
    arrays = [(launch, array) for launch in slurm for array in launch.arrays if array.tries]
    return [
        f"{named_ranks(array.rank_list)} by job {array.job_id} (launch {launch.launch})" for launch, array in arrays
    ]


def published(look: Look) -> str:
    """Where the outputs of a stage are published, or when they will be."""
    record = read_published(look.stage.folder) if look.is_done else None
    if record is None:
        repo = look.stage.spec.publish.repo if look.stage.spec.publish else ""
        return f"not yet published to {repo}"
    return f"{NOT_PUBLISHED} {record}" if record.error else f"published {record}"


def undecided_ranks(stage: StageSpec) -> str:
    """How many ranks a stage will have, in words; empty if that is decided."""
    if stage.sizing != "undecided":
        return ""
    source = f"output file of {', '.join(stage.depends)}" if stage.depends else "input file"
    if stage.bytes_per_task is None:
        return f"one rank for each {source}"
    return f"a rank for about each {decimal(stage.bytes_per_task)} of the {source}s"


def waiting(activity: Activity, settled: set[int]) -> list[dict[str, Any]]:
    """Why ranks that are not `settled` do not start soon: those that never start first, then by their number."""
    ranks: dict[Waiting, list[int]] = defaultdict(list)
    for rank, why in activity.waiting.items():
        if rank not in settled:
            ranks[why].append(rank)
    order = get_args(Starts)
    found = sorted(ranks.items(), key=lambda item: (order.index(item[0].starts), -len(item[1])))
    return [{"ranks": format_ranks(mine), "count": len(mine), **why._asdict()} for why, mine in found]


def places(folder: StageFolder, ended: bool) -> dict[str, str]:
    """The paths that exist of the stage's report, statistics and logs. `ended` is whether any of its ranks has."""
    found = {}
    if folder.storage.entry(folder.report()) is not None:  # Written last, after the statistics.
        found = {"report": folder.report(), "stats": folder.stats()}
    logs = join(folder.path, "logs")
    if os.path.isdir(logs) if is_local(logs) else ended:
        found["logs"] = logs
    return found


def asleep(folder: StageFolder, starting: dict[int, tuple[int, int]]) -> set[int]:
    """The ranks of `starting` jobs that still sleep: the first rank of such a job has no log of its launch.

    On an object store all ranks count as asleep, as a log appears there only when its attempt ends.
    """
    if not is_local(folder.path):
        return set(starting)
    begun = {job for job in set(starting.values()) if has_log(folder, *job)}
    return {rank for rank, job in starting.items() if job not in begun}


def has_log(folder: StageFolder, launch: int, rank: int) -> bool:
    """Whether an attempt of `rank` has begun in this launch."""
    logs = folder.storage.list(join(folder.path, "logs", pad(rank)))
    return any(attempt_order(log.name.removesuffix(".log"))[0] == launch for log in logs)


def add_totals(status: StageStatus, look: Look) -> None:
    """Add sums over the completion records, and the rates of the latest launch while it runs."""
    table = look.table
    sums = totals(table)
    for key in SUMMED:
        setattr(status, key, getattr(sums, key))
    status.slowest = slowest(table)
    planned = look.stage.record.outputs.get(look.stage.name, [])
    status.output_folders, status.removed_folders = output_folders(table, planned)
    status.models = models_used(table)
    status.schema_differences = schema_differences(table)
    if not look.launches:
        return
    if status.is_done and table.ended:  # Clocks may differ.
        status.took_s = round(max(0.0, max(table.ended) - look.launches[0].time), 1)
    latest = look.launches[-1]
    if not status.active:
        if isinstance(latest, SlurmLaunch):
            status.efficiency = efficiency(table, latest.resources)
        return
    recent = [row for row, launch in enumerate(table.launch) if launch == latest.launch]
    elapsed = time.time() - latest.time
    if recent and elapsed > 0:
        left = status.running + status.sleeping + status.requeued + status.pending
        status.records_per_s = round(sum(table.records_in[row] for row in recent) / elapsed, 1)
        status.bytes_per_s = round(sum(table.bytes_in[row] for row in recent) / elapsed, 1)
        status.eta_s = round(elapsed / len(recent) * left, 1)


def output_folders(table: CompletionTable, planned: Sequence[str]) -> tuple[list[str], list[str]]:
    """The folders of the outputs, and those of the documents that steps removed: the `planned` one in place of those
    below it.
    """
    folders: tuple[set[str], set[str]] = (set(), set())
    ends = tuple(f"{folder.rstrip('/')}/" for folder in sorted(planned, key=len, reverse=True))
    sets = list(table.folder_sets)
    for number in set(table.folders):
        for found, mine in zip(folders, sets[number], strict=True):
            for folder in mine:
                found.add(next((end for end in ends if f"{folder}/".startswith(end)), folder).rstrip("/"))
    return sorted(folders[0]), sorted(folders[1])


def slowest(table: CompletionTable) -> list[tuple[int, float]]:
    """(rank, seconds) of ranks that took much longer than most, slowest first; at most SLOWEST of them."""
    took = list(map(sub, table.ended, table.started))
    if not took:
        return []
    least = max(SLOW_S, SLOW_FACTOR * median(took))
    most = heapq.nlargest(SLOWEST, zip(took, table.rank, strict=True))
    return [(rank, round(seconds, 1)) for seconds, rank in most if seconds > least]
