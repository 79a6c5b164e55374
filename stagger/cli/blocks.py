"""`stagger blocks`: a model's transformer blocks on many servers."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

app = typer.Typer(
    help="Host a model's transformer blocks on many servers.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def blocks() -> None:
    """Host a model's transformer blocks on many servers."""


@app.command()
def simulate(
    scenarios: Annotated[
        list[str] | None, typer.Option("--scenario", help="join, churn, wave, slurm, or all; may be repeated.")
    ] = None,
    servers: Annotated[
        list[int] | None,
        typer.Option(min=1, max=1000, help="About how many servers there are at a time; else 32; may be repeated."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="How often, each time with other servers.")] = 5,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="The first seed.")] = 0,
    policies: Annotated[
        list[str] | None, typer.Option("--policy", help="Only this one; may be repeated. By default those compared.")
    ] = None,
    hours: Annotated[float, typer.Option(min=0.01, max=168, help="Simulated hours.")] = 3,
    visibility: Annotated[
        float | None, typer.Option(min=0, max=3600, help="Seconds until others see what a server announces; else 5.")
    ] = None,
    seconds_per_block: Annotated[
        float | None, typer.Option(min=0, max=3600, help="Seconds that a block takes to load; else 3.")
    ] = None,
    lease: Annotated[
        float | None,
        typer.Option(min=0, max=86_400, help="Seconds that a crashed server stays listed; else 240, with a lock 45."),
    ] = None,
    ideal: Annotated[
        bool, typer.Option("--ideal", help="Blocks load at once, and all see everything at once.")
    ] = False,
    plot: Annotated[str | None, typer.Option(metavar="FILE.png|.svg", help="Draw the throughput over time.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> int:
    """Compare the policies by which servers balance their blocks, as they come, go and crash."""
    from stagger.cli import block_simulation
    from stagger.cli.main import print_json
    from stagger.planner.chart import check_plot

    if plot is not None:
        check_plot(plot)
    wanted = block_simulation.Wanted(visibility, seconds_per_block, lease, ideal)
    with contextlib.redirect_stdout(sys.stderr):
        experiments = block_simulation.experiments(
            scenarios or ["churn"],
            policies or [],
            wanted,
            servers=servers or [32],
            hours=hours,
            seeds=range(seed, seed + seeds),
        )
        found = block_simulation.compared(experiments)
        if plot is not None:
            block_simulation.plot(found, plot)
    print_json(block_simulation.document(found)) if json else block_simulation.show(found)
    return 0
