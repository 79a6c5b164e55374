"""Where a run stands, from its completion and failure records and one question to what runs it."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from stagger.executor.base import Activity, executor_class
from stagger.launches import read_launches
from stagger.progress import busy
from stagger.ranks import parse_ranks
from stagger.run_folder import RunFolder, RunRecord
from stagger.rundir import StageFolder, attempt_order, decode
from stagger.spec.models import StageSpec
from stagger.starts import start_account


@dataclass
class StageStatus:
    """Every rank of the stage is counted once: done + failed + running + pending == tasks."""

    name: str
    tasks: int
    done: int = 0
    failed: int = 0
    running: int = 0
    pending: int = 0
    failed_ranks: list[int] = field(default_factory=list)
    records_in: int = 0
    records_out: int = 0
    bytes_out: int = 0
    bad_records: dict[str, int] = field(default_factory=dict)
    retried: dict[str, int] = field(default_factory=dict)
    retry_waited_s: float = 0.0
    starts: dict[str, Any] = field(default_factory=dict)
    records_per_s: float | None = None
    eta_s: float | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    active: bool = False
    output_folders: list[str] = field(default_factory=list)


def status_of(folder: RunFolder, record: RunRecord) -> list[StageStatus]:
    return [stage_status(folder.stage(record.spec, stage), stage, folder.path) for stage in record.spec.stages]


def activity_of(folder: StageFolder, launches: list[dict[str, Any]], run_dir: str) -> Activity:
    """What runs or is queued, whichever executors launched it."""
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for launch in launches:
        by_kind[launch["executor"]].append(launch)
    whole = Activity()
    for kind, mine in by_kind.items():
        found = executor_class(kind).activity(folder, mine, run_dir)
        whole.running |= found.running
        whole.pending |= found.pending
        whole.holders += found.holders
        whole.ending |= found.ending
    return whole


def stage_status(folder: StageFolder, stage: StageSpec, run_dir: str) -> StageStatus:
    """Where a stage stands now.

    Who is active is asked first and the records are listed after it: a rank that ends in between is then found done,
    and never taken for one that vanished.
    """
    launches = read_launches(folder)
    activity = activity_of(folder, launches, run_dir)
    done = {rank for rank in folder.done() if rank < stage.tasks}
    active = activity.ranks - done
    failed = failed_ranks(folder, launches, done, active, folder.failures())
    reasons: dict[str, int] = defaultdict(int)
    for reason in failed.values():
        reasons[reason] += 1
    status = StageStatus(stage.name, stage.tasks, done=len(done), failed=len(failed), failed_ranks=sorted(failed))
    status.reasons = dict(sorted(reasons.items(), key=lambda item: -item[1]))
    # A rank of a running local launch that has failed already is not waiting for anything.
    status.running = len(activity.running - done - failed.keys())
    status.pending = stage.tasks - status.done - status.failed - status.running
    status.active = bool(active - failed.keys())
    with busy(f"{stage.name}: reading {len(done)} completion records"):
        completions = folder.completions(done)
    add_totals(status, completions, launches)
    return status


def failed_ranks(
    folder: StageFolder,
    launches: list[dict[str, Any]],
    done: set[int],
    active: set[int],
    failures: dict[int, str],
) -> dict[int, str]:
    """Rank -> the kind of its failure, of the ranks whose latest launch ended without a completion record.

    A Slurm job that is gone without any record was killed with its node, or never started Python: failed, and never
    taken for success. A rank that was stopped on purpose, by Ctrl-C or `stagger cancel`, is only pending.
    """
    latest: dict[int, dict[str, Any]] = {}
    for launch in launches:
        latest.update(dict.fromkeys(parse_ranks(launch["ranks"]), launch))
    failed: dict[int, str] = {}
    lost: dict[int, set[int]] = defaultdict(set)
    for rank, launch in latest.items():
        if rank in done:
            continue
        if rank in failures and attempt_order(failures[rank])[0] == launch["launch"]:
            # Also while a local launch is under way: it does not try a rank twice.
            path = folder.failure(rank, failures[rank])
            kind = decode(folder.storage.read(path), path)["kind"]
            on_purpose = kind == "interrupted" and (launch["executor"] == "local" or launch.get("cancelled"))
            if not on_purpose and not (rank in active and launch["executor"] == "slurm"):
                failed[rank] = kind
        elif launch["executor"] == "slurm" and rank not in active and not launch.get("cancelled"):
            failed[rank] = "lost"
            lost[launch["launch"]].add(rank)
    for number, ranks in lost.items():
        ends = executor_class("slurm").end_states(launches[number - 1], ranks)
        failed |= {rank: f"lost ({state})" for rank, state in ends.items()}
    return failed


def sum_by_kind(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """The sum of several counts."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total.most_common())


def add_totals(status: StageStatus, completions: list[dict[str, Any]], launches: list[dict[str, Any]]) -> None:
    """Sums over the completion records, and the rate of the latest launch."""
    status.records_in = sum(record["records_in"] for record in completions)
    status.records_out = sum(record["records_out"] for record in completions)
    status.bytes_out = sum(record["bytes_out"] for record in completions)
    status.starts = start_account(completions)
    status.bad_records = sum_by_kind(record["bad_records"]["skipped"] for record in completions)
    status.retried = sum_by_kind(record["retried"]["requests"] for record in completions)
    status.retry_waited_s = round(sum(record["retried"]["waited_s"] for record in completions), 3)
    paths = {output["path"].rpartition("/")[0] for record in completions for output in record["outputs"]}
    status.output_folders = sorted(paths)
    if not (launches and status.active):
        return
    recent = [record for record in completions if record["launch"] == launches[-1]["launch"]]
    elapsed = time.time() - launches[-1]["time"]
    if recent and elapsed > 0:
        status.records_per_s = round(sum(record["records_in"] for record in recent) / elapsed, 1)
        status.eta_s = round(elapsed / len(recent) * (status.running + status.pending), 1)
