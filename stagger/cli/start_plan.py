"""`stagger plan`: simulate the start policies, and print them side by side."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, replace
from typing import Any

import yaml

from stagger.cli.chart import bars, binned, save_plot
from stagger.errors import StaggerError, counted
from stagger.plan.metadata import calls_of_start
from stagger.progress import busy
from stagger.start.account import described
from stagger.start.delays import auto_window
from stagger.start.forecast import Expected, StartPlan, start_plan
from stagger.start.herd import START_JITTER_S, Herd
from stagger.terminal import logger, say, say_lines

#: Most columns of the chart, and its lines per policy.
CHART_COLUMNS, CHART_LINES = 100, 2

#: Widths of the table's columns after the first.
WIDTHS = (8, 9, 12, 10, 13, 11, 8, 11, 12, 8)

#: Requests per task when nothing is known about it: two reads of the plan, its shard, and one more.
REQUESTS = 4


@dataclass(frozen=True)
class Wanted:
    """Options that describe the launch; None where the file or a default decides. Times in s, rates per s."""

    tasks: int | None
    throttle: int | None
    slots: int | None
    requests: int | None
    backend_limit: float | None
    cores: float | None
    dispatch_rate: float | None
    task_time: float | None
    window: int | None
    operations: int | None = None
    metadata_limit: float | None = None
    jitter: float | None = None

    def over(self, herd: Herd) -> Herd:
        """The herd, with the given options in place of its own values."""
        given: dict[str, Any] = {
            "throttle": self.throttle,
            "slots": self.slots,
            "requests": self.requests,
            "limit": self.backend_limit,
            "dispatch_rate": self.dispatch_rate,
            "task_s": self.task_time,
            "operations": self.operations,
            "metadata_limit": self.metadata_limit,
            "jitter_s": self.jitter,
        }
        return replace(herd, **{key: value for key, value in given.items() if value is not None})


def plans(
    file: str | None,
    stage: str | None,
    wanted: Wanted,
    assignments: tuple[str, ...],
    seed: int,
    profile: str | None = None,
) -> dict[str, StartPlan]:
    """Plan the start of each stage of `file`, or of `stage` alone; without a file, of `wanted.tasks` tasks.

    Raises StaggerError when neither a file nor a number of tasks is given, or an option needs a file.
    """
    if file is not None:
        return plans_of_file(file, stage, wanted, assignments, seed, profile)
    if wanted.tasks is None:
        raise StaggerError("Give a pipeline file, or a number of tasks: stagger plan --tasks 8000")
    for option, value in (("--set", assignments), ("--stage", stage), ("--profile", profile)):
        if value:
            raise StaggerError(f"{option} needs a pipeline file; give one.")
    calls, _ = calls_of_start()
    window_s = auto_window(wanted.tasks)
    herd = wanted.over(Herd(wanted.tasks, "uniform", window_s, REQUESTS, operations=calls, jitter_s=START_JITTER_S))
    with busy("simulating the start"):
        return {"": start_plan(herd, wanted.tasks, cores=wanted.cores or 1, other=wanted.window, seed=seed)}


def plans_of_file(
    file: str, name: str | None, wanted: Wanted, assignments: tuple[str, ...], seed: int, profile: str | None
) -> dict[str, StartPlan]:
    from stagger.executor.slurm_start import SlurmStart
    from stagger.launch.check import continued
    from stagger.launch.plans import plan_for_show
    from stagger.plan.requests import not_yet_planned
    from stagger.plan.stage_plan import with_plans
    from stagger.rundir.run_folder import RunFolder, open_storage
    from stagger.spec.changes import Changes
    from stagger.spec.load import load_file
    from stagger.status.stage_status import undecided_ranks

    # A file for the local executor is also planned for Slurm: the local executor has no herd of starting jobs.
    spec = load_file(file, Changes(assignments, "slurm", wanted.tasks, profile=profile), logger.info)
    run = RunFolder(open_storage(spec), spec.run_dir)
    spec = continued(run, spec)
    exact = wanted.requests is None
    planned = plan_for_show(run, spec)[1] if exact or any(one.sizing != "given" for one in spec.stages) else {}
    spec = with_plans(spec, planned)
    found = {}
    for stage in spec.chosen(name):
        if undecided := undecided_ranks(stage):
            logger.warning(f"{stage.name} gets {undecided}: to plan its start, give a number with --tasks")
            continue
        made = planned.get(stage.name)
        if wanted.throttle is not None:  # The window for backend_limit depends on the throttle.
            settings = stage.executor.model_copy(update={"workers": wanted.throttle})
            stage = stage.model_copy(update={"executor": settings})
        start = SlurmStart(spec, stage, made.input if made else not_yet_planned(stage))
        herd = wanted.over(start.herd(stage.tasks))
        cores = wanted.cores or start.cores
        with busy(f"{stage.name}: simulating the start"):
            found[stage.name] = start_plan(herd, stage.tasks, cores=cores, exact=exact, other=wanted.window, seed=seed)
    return found


def document(found: dict[str, StartPlan]) -> dict[str, Any]:
    """The document that `--json` prints: one entry per stage, or one without a name."""
    stages = []
    for name, plan in found.items():
        content = plan.document()
        for row, shown in zip(plan.rows, content["policies"], strict=True):
            shown["starts_per_second"] = described(row.starts)["per_second"]
            shown["requests_per_second"] = described(row.requests)["per_second"]
        stages.append({"stage": name or None, **content})
    return {"plans": stages}


def show(found: dict[str, StartPlan]) -> None:
    """Print the table, the chart and the recommendation for each stage."""
    for number, (name, plan) in enumerate(found.items()):
        if number:
            say()
        say((f"stage {name}: " if name else "") + heading(plan.herd))
        show_table(plan)
        show_chart(plan)
        if plan.steady_throttle is not None:
            say()
            say(
                f"In steady state, the storage limit allows {counted(plan.steady_throttle, 'job')} of"
                f" {plan.herd.task_s:g} s at once (0.8 * limit * seconds / requests)."
            )
        say()
        say(f"Recommended: {plan.reason}.")
        say_lines(yaml.safe_dump(plan.recommended, sort_keys=False), indent="    ")


def heading(herd: Herd) -> str:
    """The simulated launch in one line: jobs, throttle, requests, limits."""
    parts = [f"{counted(herd.jobs, 'job')} of {herd.task_s:g} s"]
    parts += [f"at most {most:,} at once" for most in (herd.throttle, herd.slots) if most and most < herd.jobs]
    parts += [f"{counted(herd.requests, 'remote request')} per job at its start"]
    if herd.limit:
        parts.append(f"storage limit {herd.limit:,g} requests/s")
    parts.append(f"{herd.operations:,} file-system calls per job at its start")
    if herd.metadata_limit:
        parts.append(f"metadata limit {herd.metadata_limit:,g} calls/s")
    if herd.dispatch_rate:
        parts.append(f"Slurm starts {herd.dispatch_rate:g} jobs/s")
    if herd.jitter_s:
        parts.append(f"scripts begin up to {herd.jitter_s:g} s late")
    return ", ".join(parts)


def show_table(plan: StartPlan) -> None:
    """Print one line per policy."""
    head = (
        "",
        "window",
        "starts/s",
        "peak in 1 s",
        "in 100 ms",
        "peak calls/s",
        "rejected",
        "gave up",
        "last start",
        "idle core-h",
        "",
    )
    for name, *cells in [head, *(table_row(row, row.name == plan.now) for row in plan.rows)]:
        say(f"{name:<10}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)))
    say("* setting of the launch")


def table_row(row: Expected, now: bool) -> tuple[str, ...]:
    return (
        row.name + (" *" if now else ""),
        f"{row.window_s} s",
        "all" if row.mean_per_s is None else f"{row.mean_per_s:,.1f}",
        f"{row.peak_1s:,}",
        f"{row.peak_100ms:,}",
        f"{row.operations_peak_1s:,}",
        f"{row.refused:,}" if row.complete else f"> {row.refused - row.refused % 1000:,}",
        "?" if row.failed is None else f"{row.failed:,}",
        "?" if row.last_start_s is None else f"{row.last_start_s:,.0f} s",
        f"{row.idle_core_h:,.1f}" if row.idle_core_h < 100 else f"{row.idle_core_h:,.0f}",
        f"{row.idle_share:.1%}",
    )


def horizon(rows: list[Expected]) -> float:
    """Seconds that a chart covers: until the last start of the policies simulated to their end, at least 1."""
    ends = [row.last_start_s for row in rows if row.last_start_s is not None]
    return max([*ends, 1.0])


def show_chart(plan: StartPlan) -> None:
    """Chart each policy's requests over time, or its starts when jobs make no requests."""
    what = "requests" if plan.herd.requests else "starts"
    end = horizon(plan.rows)
    room = max(20, min(CHART_COLUMNS, shutil.get_terminal_size((CHART_COLUMNS, 0)).columns) - 22)
    width = math.ceil(end / room)  # Whole seconds, since `uniform` draws whole seconds.
    columns = math.ceil(end / width)
    say()
    say(f"{what} per second, {width} s per column, each policy on its own scale:")
    for row in plan.rows:
        rates = binned(getattr(row, what), columns * width, columns)
        above, below = bars(rates, CHART_LINES)
        say(f"{'':<9} {above} {max(rates):,.0f}/s")
        say(f"{row.name:<9} {below}")


def plot(found: dict[str, StartPlan], path: str) -> None:
    """Plot the requests over time into a .png or .svg file.

    Raises StaggerError when there are several stages, or the file cannot be written.
    """
    if len(found) > 1:
        raise StaggerError(f"--plot draws one stage, but the file has {', '.join(found)}; name one with --stage.")
    (plan,) = found.values()
    series = {f"{row.name}, {row.window_s} s": row.requests for row in plan.rows}
    save_plot(path, series, horizon(plan.rows), heading(plan.herd), plan.herd.limit)
