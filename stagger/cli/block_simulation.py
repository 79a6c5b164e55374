"""`stagger blocks simulate`: the experiments from its options, and the table and plot of their results."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stagger.errors import StaggerError, counted, missing_extra
from stagger.progress import busy
from stagger.spec.nearest import nearest
from stagger.terminal import say, say_lines

try:
    from stagger.blocks.simulation.policies import COMPARED, IDEAL, POLICIES, REALISTIC, Conditions
    from stagger.blocks.simulation.report import Comparison, Experiment, Row, compare, rows
    from stagger.blocks.simulation.report import document as document_of
    from stagger.blocks.simulation.steps import Steps, means
    from stagger.blocks.simulation.traces import SCENARIOS
except ImportError as error:
    if error.name is None or error.name.partition(".")[0] not in ("numpy", "scipy"):
        raise
    raise missing_extra("blocks", error.name, error) from None

#: The table's head, and the widths of the columns after the first.
HEAD = ("", "of bound", "range", "routed", "lease", "moves", "/server h", "blocks loaded", "collisions", "uncovered")
WIDTHS = (9, 8, 8, 7, 8, 11, 15, 12, 11)

#: Line styles, and the number of lines drawn in each: matplotlib cycles through 10 colours.
LINES, COLORS = ("-", "--", ":"), 10

#: Minutes per point of the plot.
PLOTTED_MIN = 2


@dataclass(frozen=True)
class Wanted:
    """The options that set the simulation's conditions; None where they are not given. Times in seconds."""

    visibility_s: float | None
    seconds_per_block: float | None
    lease_s: float | None
    ideal: bool

    def conditions(self) -> Conditions:
        """The conditions. Raises StaggerError when --ideal is combined with other conditions."""
        given = {key: value for key, value in vars(self).items() if key != "ideal" and value is not None}
        if self.ideal and given:
            raise StaggerError("--ideal means --visibility 0 --seconds-per-block 0 --lease 0; leave those options out.")
        return IDEAL if self.ideal else replace(REALISTIC, **given)


def experiments(
    scenarios: Sequence[str],
    policies: Sequence[str],
    wanted: Wanted,
    *,
    servers: Sequence[int],
    hours: float,
    seeds: range,
) -> list[Experiment]:
    """One experiment per scenario and number of servers. Raises StaggerError for an unknown scenario or policy."""
    names = list(SCENARIOS) if "all" in scenarios else [known("scenario", name, SCENARIOS) for name in scenarios]
    chosen = tuple(known("policy", name, POLICIES) for name in policies) or COMPARED
    return [
        Experiment(name, number, hours, tuple(seeds), tuple(dict.fromkeys(chosen)), wanted.conditions())
        for name in dict.fromkeys(names)
        for number in dict.fromkeys(servers)
    ]


def known(what: str, name: str, names: Collection[str]) -> str:
    """Return `name`. Raises StaggerError, with the nearest valid name, when it is not in `names`."""
    if name in names:
        return name
    raise StaggerError(f"There is no {what} {name!r}; {nearest(name, list(names))}")


def compared(wanted: Sequence[Experiment]) -> list[Comparison]:
    found = []
    for experiment in wanted:
        with busy(
            f"simulating {experiment.scenario} with {counted(experiment.servers, 'server')},"
            f" {counted(len(experiment.seeds), 'time')}"
        ):
            found.append(compare(experiment))
    return found


def document(found: Sequence[Comparison]) -> dict[str, Any]:
    return {"simulations": [document_of(comparison) for comparison in found]}


def show(found: Sequence[Comparison]) -> None:
    for number, comparison in enumerate(found):
        if number:
            say()
        say_lines(textwrap.fill(heading(comparison.experiment), 100))
        for name, *cells in [HEAD, *map(table_row, rows(comparison))]:
            say(f"{name:<17}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)))
    say_lines(
        "of bound, range: throughput as a share of the upper bound for any placement: mean and range over the seeds.\n"
        "routed: what the served blocks carry with the best routing, as a share of what the servers compute.\n"
        "lease: time that a crashed server stays listed. collisions: pairs of moves whose later one could not see the\n"
        "earlier one. uncovered: time in which some block was not served, although the servers had room for all.\n"
    )
    for name in found[0].experiment.policies:
        say(f"{name:<17} {POLICIES[name].about}")


def table_row(row: Row) -> tuple[str, ...]:
    return (
        row.policy,
        f"{row.percent_of_bound:.1f} %",
        f"{row.lowest:.0f}-{row.highest:.0f}",
        f"{row.percent_of_capacity:.1f} %",
        f"{row.lease_s:g} s",
        f"{row.moves:,.0f}",
        f"{row.moves_per_server_hour:.2f}",
        f"{row.blocks_loaded:,.0f}",
        f"{row.collisions:,.0f}",
        f"{row.uncovered_s:,.0f} s",
    )


def heading(experiment: Experiment) -> str:
    """The experiment in one line."""
    conditions = experiment.conditions
    seeds = experiment.seeds
    times = counted(len(seeds), "time") if len(seeds) > 1 else "once"
    return (
        f"{experiment.scenario}: {SCENARIOS[experiment.scenario].about}; {counted(experiment.servers, 'server')},"
        f" {counted(experiment.total_blocks, 'block')}, {experiment.hours:g} h, {times}; announcements seen after"
        f" {conditions.visibility_s:g} s, {conditions.seconds_per_block:g} s to load a block"
    )


def plot(found: Sequence[Comparison], path: str) -> None:
    """Plot the throughput over time of the first seed, one panel per experiment.

    Raises StaggerError when the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5 * len(found)), layout="constrained")
    for panel, comparison in zip(figure.subplots(len(found), squeeze=False)[:, 0], found, strict=True):
        end_h = comparison.experiment.hours
        series: dict[str, Steps] = {name: outcomes[0].steps for name, outcomes in comparison.outcomes.items()}
        for number, (name, steps) in enumerate(series.items()):
            style = LINES[number // COLORS % len(LINES)]
            panel.plot(*points(steps, end_h), label=name, linewidth=1, linestyle=style)
        panel.plot(*points(comparison.bound, end_h), label="bound", color="black", linewidth=1.5)
        panel.set_title(textwrap.fill(heading(comparison.experiment), 110), fontsize=9)
        panel.set(xlabel="hours", ylabel="throughput of the slowest block", xlim=(0, end_h), ylim=(0, None))
        panel.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise StaggerError(f"--plot {path}: {error.strerror or error}.") from error


def points(steps: Steps, hours: float) -> tuple[list[float], list[float]]:
    """The middles of equal parts of 0..hours, in hours, and the mean throughput in each part."""
    parts = max(1, round(hours * 60 / PLOTTED_MIN))
    return [(number + 0.5) * hours / parts for number in range(parts)], means(steps, hours * 3600, parts)
