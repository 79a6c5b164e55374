"""Resource usage versus request of a stage's jobs, as seff shows it for one job, and suggested settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from stagger.slurm.answers import format_time, parse_time

#: Factor from the usage to the suggested settings, so that slightly larger records do not exceed them.
MARGIN = 1.25


@dataclass
class JobUse:
    """The usage of one job, over all ranks that it ran.

    `began` and `ended` are in seconds since the epoch, `delay_s` in seconds, `cpu_s` in CPU seconds, `peak_mib` in MiB:
    on one of its nodes, at most. `at_once` is the most ranks that ran at the same moment, on all of its nodes.
    """

    began: float
    ended: float
    delay_s: float
    cpu_s: float = 0.0
    peak_mib: int = 0
    at_once: int = 1


def jobs_used(completions: Iterable[Mapping[str, Any]]) -> list[JobUse]:
    """The usage of each job. A requeued job counts once per attempt: each attempt is allocated its resources again."""
    jobs: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for record in completions:
        jobs.setdefault((record["job"], record["restart"]), []).append(record)
    return [job_used(records) for records in jobs.values()]


def job_used(records: Sequence[Mapping[str, Any]]) -> JobUse:
    """The usage of the job that ran the ranks of `records`.

    Its peak of memory is no more than the sum of the peaks of the ranks that ran at the same moment on one node.
    """
    first = records[0]
    if len(records) == 1:  # Most jobs, of up to a million.
        began, ended, delay_s = first["script_started"], first["ended"], first["delay_s"]
        return JobUse(began, ended, delay_s, first["cpu_s"], first["peak_rss_mb"])
    nodes: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        nodes.setdefault(record["host"], []).append(record)
    return JobUse(
        began=first["script_started"],
        ended=max(record["ended"] for record in records),
        delay_s=first["delay_s"],
        cpu_s=sum(record["cpu_s"] for record in records),
        peak_mib=max(most_together(mine, "peak_rss_mb") for mine in nodes.values()),
        at_once=most_together(records),
    )


def most_together(records: Sequence[Mapping[str, Any]], key: str | None = None) -> int:
    """The largest sum of `key` over records that ran at the same moment; without `key`, their largest number.

    >>> most_together([{"started": 0.0, "ended": 3.0, "mib": 5}, {"started": 2.0, "ended": 4.0, "mib": 2}], "mib")
    7
    """
    changes = []
    for record in records:
        size = record[key] if key else 1
        changes += [(record["started"], size), (record["ended"], -size)]
    most = now = 0
    for _, change in sorted(changes):  # At the same moment, those that end come first.
        now += change
        most = max(most, now)
    return most


def efficiency(completions: Sequence[Mapping[str, Any]], resources: dict[str, Any]) -> dict[str, Any]:
    """The efficiency of a stage. `resources` are the executor settings of its latest launch.

    Each share is usage divided by request, None where nothing was requested. Only completed ranks count: the needs of
    failed ones are unknown. A job of whole nodes (`ranks_at_once: auto`) counts with the processors of the ranks that
    it ran at once: how many more its nodes have is unknown here.
    """
    jobs = jobs_used(completions)
    if not jobs:
        return {}
    cpus, asked_at_once = resources.get("cpus_per_task", 1), ranks_requested(resources)
    cpus_s = sum((job.ended - job.began) * cpus * (asked_at_once or job.at_once) for job in jobs)
    cpu_s = sum(job.cpu_s for job in jobs)
    peak_mib = max(job.peak_mib for job in jobs)
    longest_s = max(job.ended - job.began for job in jobs)
    memory_gib, limit = resources.get("mem_per_cpu_gb"), resources.get("time")
    memory_mib = memory_gib and memory_gib * cpus * 1024 * (resources.get("ranks_at_once", 1) if asked_at_once else 0)
    rank_mib = max(record["peak_rss_mb"] for record in completions)
    gpus = gpu_use(completions)
    limit_s = limit and parse_time(limit)
    return {
        "jobs": len(jobs),
        "cpu": {"used_s": round(cpu_s, 1), "asked_s": round(cpus_s, 1), "share": _share(cpu_s, cpus_s)},
        "memory": {"peak_mib": peak_mib, "asked_mib": memory_mib, "share": _share(peak_mib, memory_mib)},
        "time": {"longest_s": round(longest_s, 1), "limit_s": limit_s, "share": _share(longest_s, limit_s)},
        **({"gpus": gpus} if gpus else {}),
        "asleep_s": round(sum(job.delay_s for job in jobs), 1),
        "waiting_s": round(sum(record["retried"]["waited_s"] for record in completions), 1),
        "enough": {
            "mem_per_cpu_gb": math.ceil(rank_mib * MARGIN / cpus / 1024 * 10) / 10,
            "time": format_time(math.ceil(longest_s * MARGIN / 60) * 60),
        },
    }


def gpu_use(completions: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The most memory in use on a GPU, and the mean share of time in which GPUs were busy; empty if no task knew."""
    known = [(record["gpus"], record["ended"] - record["started"]) for record in completions if "gpus" in record]
    if not known:
        return {}
    fullest = max((use for use, _ in known), key=itemgetter("peak_mib"))
    peak_mib, total_mib = fullest["peak_mib"], fullest["total_mib"]
    seconds = sum(lasted for _, lasted in known)
    busy = _share(sum(use["busy"] * lasted for use, lasted in known), seconds)
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
