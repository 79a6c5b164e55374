"""`stagger plan`: what the start policies would do, side by side."""

from __future__ import annotations

import math
import shutil
import textwrap
from dataclasses import dataclass, replace
from typing import Any

import yaml

from stagger.cli.chart import bars, binned, save_plot
from stagger.errors import StaggerError
from stagger.progress import busy
from stagger.start.account import described
from stagger.start.delays import auto_window
from stagger.start.forecast import Expected, StartPlan, start_plan
from stagger.start.herd import Herd

#: Columns of the chart at most, and its lines for each policy.
CHART_COLUMNS, CHART_LINES = 100, 2

#: Widths of the table's columns behind the first.
WIDTHS = (8, 9, 12, 10, 11, 8, 11, 12, 8)

#: What a task asks for as it starts when nothing else is known: two reads of the plan, its shard, and something.
REQUESTS = 4


@dataclass(frozen=True)
class Wanted:
    """The options of the command that say what starts; None where the file, or a default, decides."""

    tasks: int | None
    throttle: int | None
    slots: int | None
    requests: int | None
    limit: float | None
    cores: float | None
    dispatch_rate: float | None
    task_time: float | None
    window: int | None

    def over(self, herd: Herd) -> Herd:
        """A herd with what the command line says about it."""
        given: dict[str, Any] = {
            "throttle": self.throttle,
            "slots": self.slots,
            "requests": self.requests,
            "limit": self.limit,
            "dispatch_rate": self.dispatch_rate,
            "task_s": self.task_time,
        }
        return replace(herd, **{key: value for key, value in given.items() if value is not None})


def plans(
    file: str | None, stage: str | None, wanted: Wanted, assignments: tuple[str, ...], seed: int
) -> dict[str, StartPlan]:
    """The start of each stage of a file, or of the one wanted, or of tasks that only their number is known of."""
    if file is not None:
        return plans_of_file(file, stage, wanted, assignments, seed)
    if wanted.tasks is None:
        raise StaggerError("Give a pipeline file, or a number of tasks: stagger plan --tasks 8000")
    for option, value in (("--set", assignments), ("--stage", stage)):
        if value:
            raise StaggerError(f"{option} is about a pipeline file; give one.")
    herd = wanted.over(Herd(wanted.tasks, "uniform", auto_window(wanted.tasks), REQUESTS))
    with busy("simulating the start"):
        return {"": start_plan(herd, wanted.tasks, cores=wanted.cores or 1, other=wanted.window, seed=seed)}


def plans_of_file(
    file: str, name: str | None, wanted: Wanted, assignments: tuple[str, ...], seed: int
) -> dict[str, StartPlan]:
    from stagger.executor.slurm_start import SlurmStart
    from stagger.launch.check import plan_for_show
    from stagger.plan.requests import not_yet_planned
    from stagger.rundir.run_folder import RunFolder, open_storage
    from stagger.spec.changes import Changes
    from stagger.spec.load import load_file

    # Also a file for the local executor is planned as it would be on Slurm: nothing else starts together.
    spec = load_file(file, Changes(assignments, "slurm", wanted.tasks))
    counted = wanted.requests is None
    planned = plan_for_show(RunFolder(open_storage(spec), spec.run_dir), spec)[0] if counted else {}
    found = {}
    for stage in spec.chosen(name):
        made = planned.get(stage.name)
        if wanted.throttle is not None:  # The file's own window depends on it.
            settings = stage.executor.model_copy(update={"workers": wanted.throttle})
            stage = stage.model_copy(update={"executor": settings})
        start = SlurmStart(spec, stage, made.input if made else not_yet_planned(stage))
        herd = wanted.over(start.herd(stage.tasks))
        cores = wanted.cores or start.settings.cpus_per_task
        with busy(f"{stage.name}: simulating the start"):
            found[stage.name] = start_plan(
                herd, stage.tasks, cores=cores, counted=counted, other=wanted.window, seed=seed
            )
    return found


def document(found: dict[str, StartPlan]) -> dict[str, Any]:
    """What `--json` prints: one entry for each stage, or one without a name."""
    stages = []
    for name, plan in found.items():
        content = plan.document()
        for row, shown in zip(plan.rows, content["policies"], strict=True):
            shown["starts_per_second"] = described(row.starts)["per_second"]
            shown["requests_per_second"] = described(row.requests)["per_second"]
        stages.append({"stage": name or None, **content})
    return {"plans": stages}


def show(found: dict[str, StartPlan]) -> None:
    """The table, the chart and the advice for each stage."""
    for number, (name, plan) in enumerate(found.items()):
        print(("\n" if number else "") + (f"stage {name}: " if name else "") + heading(plan.herd))
        show_table(plan)
        show_chart(plan)
        if plan.steady_throttle is not None:
            print(
                f"\nAs they go on, the limit allows {plan.steady_throttle:,} jobs of {plan.herd.task_s:g} s at once"
                " (0.8 * limit * seconds / requests)."
            )
        print(f"\nRecommended: {plan.reason}.")
        print(textwrap.indent(yaml.safe_dump(plan.recommended, sort_keys=False), "    "), end="")


def heading(herd: Herd) -> str:
    """What starts, and against what."""
    parts = [f"{herd.jobs:,} job{'s' if herd.jobs > 1 else ''}"]
    parts += [f"at most {most:,} at once" for most in (herd.throttle, herd.slots) if most and most < herd.jobs]
    parts += [f"{herd.requests:,} request{'s' if herd.requests != 1 else ''} to remote storage each as they start"]
    if herd.limit:
        parts.append(f"of which it takes {herd.limit:,g} a second")
    if herd.dispatch_rate:
        parts.append(f"begun by Slurm at {herd.dispatch_rate:g} a second")
    return ", ".join([*parts, f"running for {herd.task_s:g} s"])


def show_table(plan: StartPlan) -> None:
    """A line for each policy."""
    head = ("", "window", "starts/s", "most in 1 s", "in 100 ms", "refused", "gave up", "last start", "idle core-h", "")
    for name, *cells in [head, *(table_row(row, row.name == plan.now) for row in plan.rows)]:
        print(f"{name:<10}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)))
    print("* what a launch does now")


def table_row(row: Expected, now: bool) -> tuple[str, ...]:
    return (
        row.name + (" *" if now else ""),
        f"{row.window_s} s",
        "all" if row.mean_per_s is None else f"{row.mean_per_s:,.1f}",
        f"{row.peak_1s:,}",
        f"{row.peak_100ms:,}",
        f"{row.refused:,}" if row.complete else f"> {row.refused - row.refused % 1000:,}",
        "?" if row.failed is None else f"{row.failed:,}",
        "?" if row.last_start_s is None else f"{row.last_start_s:,.0f} s",
        f"{row.idle_core_h:,.1f}" if row.idle_core_h < 100 else f"{row.idle_core_h:,.0f}",
        f"{row.idle_share:.1%}",
    )


def horizon(rows: list[Expected]) -> float:
    """Seconds that a chart shows: until the last request of those policies that come to an end."""
    ends = [row.last_start_s for row in rows if row.last_start_s is not None]
    return max([*ends, 1.0])


def show_chart(plan: StartPlan) -> None:
    """How the requests of each policy, or its starts when there are none, are spread over time."""
    what = "requests" if plan.herd.requests else "starts"
    end = horizon(plan.rows)
    room = max(20, min(CHART_COLUMNS, shutil.get_terminal_size((CHART_COLUMNS, 0)).columns) - 22)
    width = math.ceil(end / room)  # Whole seconds: `uniform` draws those.
    columns = math.ceil(end / width)
    print(f"\n{what} per second, {width} s a column, each policy to its own scale:")
    for row in plan.rows:
        rates = binned(getattr(row, what), columns * width, columns)
        above, below = bars(rates, CHART_LINES)
        print(f"{'':<9} {above} {max(rates):,.0f}/s")
        print(f"{row.name:<9} {below}")


def plot(found: dict[str, StartPlan], path: str) -> None:
    """Draw the requests over time into a file. Raises StaggerError when that is not possible."""
    if len(found) > 1:
        raise StaggerError(f"--plot draws one stage, and the file has {', '.join(found)}; name one with --stage.")
    (plan,) = found.values()
    series = {f"{row.name}, {row.window_s} s": row.requests for row in plan.rows}
    save_plot(path, series, horizon(plan.rows), heading(plan.herd), plan.herd.limit)
