"""The statistics of a stage, merged over its ranks: stats.json for programs, report.html for people."""

from __future__ import annotations

import os
import time
from typing import Any

import jinja2

from stagger.ranks import format_ranks
from stagger.rundir.completion_table import CompletionTable
from stagger.rundir.launch_records import SlurmLaunch
from stagger.rundir.stage_folder import collection_paused, encode
from stagger.spec.models import StageSpec
from stagger.status.efficiency import efficiency, sentences
from stagger.status.look import Look
from stagger.status.models_used import models_used
from stagger.status.schemas import schema_differences
from stagger.status.step_totals import StepTotals, number
from stagger.status.totals import totals
from stagger.terminal import logger


def write_stats(look: Look) -> dict[str, Any]:
    """Merge the completion records into stats.json and report.html, which also name the missing ranks."""
    stage, folder = look.stage.spec, look.stage.folder
    with collection_paused(), folder.blaming():
        stats = merge(stage, look.table, [rank for rank in range(stage.tasks) if rank not in look.done])
        if look.launches and isinstance(look.launches[-1], SlurmLaunch):
            stats["efficiency"] = efficiency(look.table, look.launches[-1].resources)
        if look.strays is not None:
            logger.warning(f"{stage.name}: {look.strays}")
            stats["strays"] = vars(look.strays)
        report = render_report(stats).encode()
    folder.storage.write(folder.stats(), encode(stats))
    folder.storage.write(folder.report(), report)
    return stats


def merge(stage: StageSpec, table: CompletionTable, missing: list[int]) -> dict[str, Any]:
    """The content of stats.json. Nothing counts twice, as each rank has only one completion record."""
    sums = totals(table)
    steps = sums.steps or [StepTotals(step.use).document() for step in stage.pipeline]
    return {
        "stage": stage.name,
        "tasks": stage.tasks,
        "done": len(table),
        "missing_ranks": format_ranks(missing),
        **vars(sums),
        "delay_s": {"max": max(table.delay_s, default=0), "sum": sum(table.delay_s)},
        "models": models_used(table),
        "schema_differences": schema_differences(table),
        "steps": steps,
        "merged": time.time(),
    }


def render_report(stats: dict[str, Any]) -> str:
    """The statistics as one self-contained HTML page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(__file__)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template("report.html.j2").render(
        {**stats, "efficiency": sentences(stats.get("efficiency", {})), "strays": stats.get("strays")}
    )
