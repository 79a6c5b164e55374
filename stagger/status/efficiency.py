"""Resource usage versus request of a stage's jobs, as seff shows it for one job, and suggested settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagger.slurm.answers import format_time, parse_time

#: Factor from the usage to the suggested settings, so that slightly larger records do not exceed them.
MARGIN = 1.25


@dataclass
class JobUse:
    """The usage of one job, over all ranks that it ran.

    `began` and `ended` are in seconds since the epoch, `delay_s` in seconds, `cpu_s` in CPU seconds, `peak_mib` in MiB.
    """

    began: float
    ended: float
    delay_s: float
    cpu_s: float = 0.0
    peak_mib: int = 0


def jobs_used(completions: Iterable[Mapping[str, Any]]) -> list[JobUse]:
    """The usage of each job. A requeued job counts once per attempt: each attempt is allocated its resources again."""
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
    """The efficiency of a stage. `resources` are the executor settings of its latest launch.

    Each share is usage divided by request, None where nothing was requested. Only completed ranks count: the needs of
    failed ones are unknown.
    """
    jobs = jobs_used(completions)
    if not jobs:
        return {}
    cpus = resources.get("cpus_per_task", 1)
    wall_s = sum(job.ended - job.began for job in jobs)
    cpu_s = sum(job.cpu_s for job in jobs)
    peak_mib = max(job.peak_mib for job in jobs)
    longest_s = max(job.ended - job.began for job in jobs)
    memory_gib, limit = resources.get("mem_per_cpu_gb"), resources.get("time")
    memory_mib = memory_gib and memory_gib * cpus * 1024
    limit_s = limit and parse_time(limit)
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
    """The content of `efficiency` as two lines of text; none if it is empty."""
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
    return lines


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{share:.0%}"


def _asked(part: dict[str, Any], key: str, unit: str) -> str:
    return f" of {part[key]:,.0f}{unit} ({_percent(part['share'])})" if part[key] else " (no limit requested)"
