"""Resource usage versus request of a stage's jobs, as seff shows it for one job, and suggested settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from operator import itemgetter, mul, sub
from typing import Any, NamedTuple

from stagger.rundir.completion_table import CompletionTable
from stagger.slurm.answers import format_time, parse_time

#: Factor from the usage to the suggested settings, so that slightly larger records do not exceed them.
MARGIN = 1.25


class JobsUsed(NamedTuple):
    """The usage of jobs, in columns, each over all ranks that it ran.

    `took_s` is in seconds from the start of its script to the end of its last rank, `delay_s` in seconds, `cpu_s` in
    CPU seconds, `peak_mib` in MiB: on one of its nodes, at most. `at_once` is the most ranks that ran at the same
    moment, on all of its nodes.
    """

    took_s: Sequence[float]
    delay_s: Sequence[float]
    cpu_s: Sequence[float]
    peak_mib: Sequence[int]
    at_once: Sequence[int]


def jobs_used(table: CompletionTable) -> JobsUsed:
    """The usage of each job. A requeued job counts once per attempt: each attempt is allocated its resources again."""
    if len(set(table.job)) == len(table):  # One rank each, as most jobs, of up to a million.
        took_s = list(map(sub, table.ended, table.script_started))
        return JobsUsed(took_s, table.delay_s, table.cpu_s, table.peak_rss_mb, [1] * len(table))
    jobs: dict[tuple[str, int], list[int]] = {}
    for row, attempt in enumerate(zip(table.job, table.restart, strict=True)):
        jobs.setdefault(attempt, []).append(row)
    return JobsUsed(*zip(*(job_used(table, rows) for rows in jobs.values()), strict=True))


def job_used(table: CompletionTable, rows: Sequence[int]) -> tuple[float, float, float, int, int]:
    """The usage of the job that ran the ranks in these rows, in the order of `JobsUsed`.

    Its peak of memory is no more than the sum of the peaks of the ranks that ran at the same moment on one node.
    """
    nodes: dict[str, list[int]] = {}
    for row in rows:
        nodes.setdefault(table.host[row], []).append(row)
    peak_mib = max(
        most_together((table.started[row], table.ended[row], table.peak_rss_mb[row]) for row in mine)
        for mine in nodes.values()
    )
    at_once = most_together((table.started[row], table.ended[row], 1) for row in rows)
    took_s = max(table.ended[row] for row in rows) - table.script_started[rows[0]]
    return took_s, table.delay_s[rows[0]], sum(table.cpu_s[row] for row in rows), peak_mib, at_once


def most_together(ranks: Iterable[tuple[float, float, int]]) -> int:
    """The largest sum of sizes of ranks that ran at the same moment. `ranks` holds (started, ended, size) of each.

    >>> most_together([(0.0, 3.0, 5), (2.0, 4.0, 2)])
    7
    """
    changes = []
    for started, ended, size in ranks:
        changes += [(started, size), (ended, -size)]
    most = now = 0
    for _, change in sorted(changes):  # At the same moment, those that end come first.
        now += change
        most = max(most, now)
    return most


def efficiency(table: CompletionTable, resources: dict[str, Any]) -> dict[str, Any]:
    """The efficiency of a stage. `resources` are the executor settings of its latest launch.

    Each share is usage divided by request, None where nothing was requested. Only completed ranks count: the needs of
    failed ones are unknown. A job of whole nodes (`ranks_at_once: auto`) counts with the processors of the ranks that
    it ran at once: how many more its nodes have is unknown here.
    """
    if not len(table):
        return {}
    jobs = jobs_used(table)
    cpus, asked_at_once = resources.get("cpus_per_task", 1), ranks_requested(resources)
    at_once = repeat(asked_at_once) if asked_at_once else jobs.at_once
    cpus_s = cpus * sum(map(mul, jobs.took_s, at_once))
    cpu_s, peak_mib, longest_s = sum(jobs.cpu_s), max(jobs.peak_mib), max(jobs.took_s)
    memory_gib, limit = resources.get("mem_per_cpu_gb"), resources.get("time")
    memory_mib = memory_gib and memory_gib * cpus * 1024 * (resources.get("ranks_at_once", 1) if asked_at_once else 0)
    rank_mib = max(table.peak_rss_mb)
    gpus = gpu_use(table)
    limit_s = limit and parse_time(limit)
    return {
        "jobs": len(jobs.took_s),
        "cpu": {"used_s": round(cpu_s, 1), "asked_s": round(cpus_s, 1), "share": _share(cpu_s, cpus_s)},
        "memory": {"peak_mib": peak_mib, "asked_mib": memory_mib, "share": _share(peak_mib, memory_mib)},
        "time": {"longest_s": round(longest_s, 1), "limit_s": limit_s, "share": _share(longest_s, limit_s)},
        **({"gpus": gpus} if gpus else {}),
        "asleep_s": round(sum(jobs.delay_s), 1),
        "waiting_s": round(sum(table.waited_s), 1),
        "enough": {
            "mem_per_cpu_gb": math.ceil(rank_mib * MARGIN / cpus / 1024 * 10) / 10,
            "time": format_time(math.ceil(longest_s * MARGIN / 60) * 60),
        },
    }


def gpu_use(table: CompletionTable) -> dict[str, Any]:
    """The most memory in use on a GPU, and the mean share of time in which GPUs were busy; empty if no task knew."""
    known = [(use, table.ended[row] - table.started[row]) for row, use in enumerate(table.gpus) if use]
    if not known:
        return {}
    fullest = max((use for use, _ in known), key=itemgetter("peak_mib"))
    peak_mib, total_mib = fullest["peak_mib"], fullest["total_mib"]
    busy = _share(sum(use["busy"] * lasted for use, lasted in known), sum(lasted for _, lasted in known))
    return {"peak_mib": peak_mib, "total_mib": total_mib, "share": _share(peak_mib, total_mib), "busy": busy}


def ranks_requested(resources: Mapping[str, Any]) -> int:
    """The number of ranks at once for which each job requested processors; 0 if it took all that its nodes have."""
    at_once = resources.get("ranks_at_once", 1)
    return at_once * resources.get("nodes_per_job", 1) if isinstance(at_once, int) else 0


def _share(used: float, asked: float | None) -> float | None:
    return round(used / asked, 3) if asked else None


def sentences(found: dict[str, Any]) -> list[str]:
    """The content of `efficiency` as two lines of text, and a third of the GPUs; none if it is empty."""
    if not found:
        return []
    cpu, memory, time = found["cpu"], found["memory"], found["time"]
    lines = [
        f"CPU time used {_percent(cpu['share'])}, peak memory {memory['peak_mib']:,} MiB"
        f"{_asked(memory, 'asked_mib', ' MiB')}, longest job {time['longest_s']:,.0f} s{_asked(time, 'limit_s', ' s')}"
    ]
    lines.append(
        f"start delays {found['asleep_s']:,.0f} s in total, waiting for storage {found['waiting_s']:,.0f} s;"
        f" sufficient: mem_per_cpu_gb: {found['enough']['mem_per_cpu_gb']}, time: {found['enough']['time']}"
    )
    if gpus := found.get("gpus"):
        lines.append(
            f"GPU memory at most {gpus['peak_mib']:,} MiB{_asked(gpus, 'total_mib', ' MiB')},"
            f" GPUs busy {_percent(gpus['busy'])} of the time"
        )
    return lines


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{share:.0%}"


def _asked(part: dict[str, Any], key: str, unit: str) -> str:
    return f" of {part[key]:,.0f}{unit} ({_percent(part['share'])})" if part[key] else " (no limit requested)"
