"""What a stage did, merged over its ranks: stats.json for programs, report.html for people."""

from __future__ import annotations

import html
import time
from typing import Any

from stagger.ranks import format_ranks
from stagger.rundir import StageFolder, encode
from stagger.spec.models import StageSpec


def write_stats(folder: StageFolder, stage: StageSpec) -> dict[str, Any]:
    """Merge the completion records into stats.json and report.html, also when ranks are missing: they are named."""
    done = {rank for rank in folder.done() if rank < stage.tasks}
    stats = merge(stage, folder.completions(done), [rank for rank in range(stage.tasks) if rank not in done])
    folder.storage.write(folder.stats(), encode(stats))
    folder.storage.write(folder.report(), render_report(stats).encode())
    return stats


def merge(stage: StageSpec, completions: list[dict[str, Any]], missing: list[int]) -> dict[str, Any]:
    """The sums over completion records. Each rank has one, so nothing is counted twice."""
    steps = [
        {
            "name": name.use,
            "records": sum(record["steps"][index]["records"] for record in completions),
            "seconds": round(sum(record["steps"][index]["seconds"] for record in completions), 6),
        }
        for index, name in enumerate(stage.pipeline)
    ]
    delays = [record["delay_s"] for record in completions]
    return {
        "stage": stage.name,
        "tasks": stage.tasks,
        "done": len(completions),
        "missing_ranks": format_ranks(missing),
        **{
            key: sum(record[key] for record in completions)
            for key in ("shards", "bytes_in", "records_in", "records_out", "bytes_out")
        },
        "cpu_s": round(sum(record["cpu_s"] for record in completions), 6),
        "peak_rss_mb": max((record["peak_rss_mb"] for record in completions), default=0),
        "delay_s": {"max": max(delays, default=0), "sum": sum(delays)},
        "steps": steps,
        "merged": time.time(),
    }


def render_report(stats: dict[str, Any]) -> str:
    """One self-contained page."""
    missing = stats["missing_ranks"]
    state = f"{stats['done']} of {stats['tasks']} ranks done" + (f"; missing: {missing}" if missing else "")
    facts = "".join(
        f"<tr><th>{html.escape(key.replace('_', ' '))}</th><td>{stats[key]:,}</td></tr>"
        for key in ("shards", "bytes_in", "records_in", "records_out", "bytes_out", "cpu_s", "peak_rss_mb")
    )
    steps = "".join(
        f"<tr><td>{html.escape(step['name'])}</td><td>{step['records']:,}</td><td>{step['seconds']:,.3f}</td></tr>"
        for step in stats["steps"]
    )
    title = html.escape(stats["stage"])
    return (
        f"<!doctype html><meta charset=utf-8><title>{title}</title>"
        "<style>body{font:16px system-ui;margin:2rem}td,th{padding:.2rem 1rem;text-align:right}"
        "th:first-child,td:first-child{text-align:left}</style>"
        f"<h1>{title}</h1><p>{html.escape(state)}</p><table>{facts}</table>"
        f"<h2>Steps</h2><table><tr><th>step</th><th>records out</th><th>seconds</th></tr>{steps}</table>\n"
    )
