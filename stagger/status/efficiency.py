"""What a stage's jobs used of what they asked for, as seff says it of one, and what would have been enough."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagger.slurm.answers import format_time, parse_time

#: Room over what was used, so that the next run is not killed for a record more: a quarter.
MARGIN = 1.25


@dataclass
class JobUse:
    """One job, over the ranks that it ran: seconds since the epoch, CPU seconds, MiB."""

    began: float
    ended: float
    delay_s: float
    cpu_s: float = 0.0
    peak_mib: int = 0


def jobs_used(completions: Iterable[Mapping[str, Any]]) -> list[JobUse]:
    """The jobs that the ranks ran in. Each attempt of a job is one: a requeued job asks for its resources again."""
    jobs: dict[tuple[str, int], JobUse] = {}
    for record in completions:
        key = (record["job"], record["restart"])
        job = jobs.get(key)
        if job is None:
            job = jobs[key] = JobUse(record["script_started"], record["ended"], record["delay_s"])
        job.ended = max(job.ended, record["ended"])
        job.cpu_s += record["cpu_s"]
        job.peak_mib = max(job.peak_mib, record["peak_rss_mb"])
    return list(jobs.values())


def efficiency(completions: Sequence[Mapping[str, Any]], resources: dict[str, Any]) -> dict[str, Any]:
    """A stage's efficiency. `resources` are the executor's settings of its latest launch.

    Shares are of what was asked for, None where nothing was. The ranks that failed are not in it: what they needed is
    not known.
    """
    jobs = jobs_used(completions)
    if not jobs:
        return {}
    cpus = resources["cpus_per_task"]
    wall_s = sum(job.ended - job.began for job in jobs)
    cpu_s = sum(job.cpu_s for job in jobs)
    peak_mib = max(job.peak_mib for job in jobs)
    longest_s = max(job.ended - job.began for job in jobs)
    memory_mib = resources["mem_per_cpu_gb"] and resources["mem_per_cpu_gb"] * cpus * 1024
    limit_s = resources["time"] and parse_time(resources["time"])
    return {
        "jobs": len(jobs),
        "cpu": {"used_s": round(cpu_s, 1), "asked_s": round(wall_s * cpus, 1), "share": _share(cpu_s, wall_s * cpus)},
        "memory": {"peak_mib": peak_mib, "asked_mib": memory_mib, "share": _share(peak_mib, memory_mib)},
        "time": {"longest_s": round(longest_s, 1), "limit_s": limit_s, "share": _share(longest_s, limit_s)},
        "asleep_s": round(sum(job.delay_s for job in jobs), 1),
        "waiting_s": round(sum(record["retried"]["waited_s"] for record in completions), 1),
        "enough": {
            "mem_per_cpu_gb": math.ceil(peak_mib * MARGIN / cpus / 1024 * 10) / 10,
            "time": format_time(math.ceil(longest_s * MARGIN / 60) * 60),
        },
    }


def _share(used: float, asked: float | None) -> float | None:
    return round(used / asked, 3) if asked else None


def sentences(found: dict[str, Any]) -> list[str]:
    """The efficiency, for people."""
    if not found:
        return []
    cpu, memory, time = found["cpu"], found["memory"], found["time"]
    lines = [
        f"used {_percent(cpu['share'])} of the processors' time,"
        f" {memory['peak_mib']:,} MiB of {_asked(memory, 'asked_mib', ' MiB')} at most,"
        f" {time['longest_s']:,.0f} s of {_asked(time, 'limit_s', ' s')} at the longest"
    ]
    lines.append(
        f"asleep before the start {found['asleep_s']:,.0f} s in all, waiting for storage {found['waiting_s']:,.0f} s;"
        f" enough: mem_per_cpu_gb: {found['enough']['mem_per_cpu_gb']}, time: {found['enough']['time']}"
    )
    return lines


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{share:.0%}"


def _asked(part: dict[str, Any], key: str, unit: str) -> str:
    return f"{part[key]:,.0f}{unit} ({_percent(part['share'])})" if part[key] else "no limit that was asked for"
