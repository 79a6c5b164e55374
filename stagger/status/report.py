"""What a stage did, merged over its ranks: stats.json for programs, report.html for people."""

from __future__ import annotations

import os
import time
from typing import Any

import jinja2

from stagger.pipeline.task_context import EXAMPLES
from stagger.ranks import format_ranks
from stagger.rundir.launch_records import read_launches
from stagger.rundir.stage_folder import StageFolder, encode
from stagger.spec.models import StageSpec
from stagger.start.account import start_account
from stagger.status.efficiency import efficiency, sentences
from stagger.status.stage_status import sum_by_kind


def write_stats(folder: StageFolder, stage: StageSpec) -> dict[str, Any]:
    """Merge the completion records into stats.json and report.html, also when ranks are missing: they are named."""
    done = {rank for rank in folder.done() if rank < stage.tasks}
    completions = folder.completions(done)
    stats = merge(stage, completions, [rank for rank in range(stage.tasks) if rank not in done])
    launches = read_launches(folder)
    if launches and launches[-1]["executor"] == "slurm":
        stats["efficiency"] = efficiency(completions, launches[-1]["resources"])
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
        "bad_records": sum_by_kind(record["bad_records"]["skipped"] for record in completions),
        "bad_examples": [example for record in completions for example in record["bad_records"]["examples"]][:EXAMPLES],
        "retried": sum_by_kind(record["retried"]["requests"] for record in completions),
        "retry_waited_s": round(sum(record["retried"]["waited_s"] for record in completions), 3),
        "cpu_s": round(sum(record["cpu_s"] for record in completions), 6),
        "peak_rss_mb": max((record["peak_rss_mb"] for record in completions), default=0),
        "delay_s": {"max": max(delays, default=0), "sum": sum(delays)},
        "starts": start_account(completions),
        "steps": steps,
        "merged": time.time(),
    }


def render_report(stats: dict[str, Any]) -> str:
    """One self-contained page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(__file__)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        {**stats, "efficiency": sentences(stats.get("efficiency", {}))}
    )
