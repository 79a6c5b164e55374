"""`stagger blocks`: a model's transformer blocks on many servers."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from stagger.cli.answers import print_json
from stagger.cli.launch import launch
from stagger.cli.options import (
    Json,
    Options,
    Run,
    Stage,
    storage_options,
)

app = typer.Typer(
    help="Host a model's transformer blocks on many servers.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def blocks() -> None:
    """Host a model's transformer blocks on many servers."""


app.command(help="Launch block servers: as `stagger launch`, for a file that has some.")(launch)


@app.command()
def status(
    run: Run,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again until no server is queued or runs.")] = False,
    stage: Stage = None,
    json: Json = False,
    options: Options = None,
) -> int:
    """Which server hosts which blocks, and how fast each block is. Exit status 1 when a block has no server."""
    from stagger.cli import block_status
    from stagger.rundir.run_folder import RunFolder

    folder, record = RunFolder.open(run, storage_options(options))
    chosen = folder.stage(record, block_status.stage_of_blocks(record, stage).name)
    found = block_status.watch(chosen, silent=json) if watch else next(block_status.looks(chosen))[0]
    print_json(block_status.document(chosen, found)) if json else block_status.show(found)
    return 1 if min(found.online) == 0 else 0


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
    json: Json = False,
) -> int:
    """Compare the policies by which servers balance their blocks, as they come, go and crash."""
    from stagger.cli import block_simulation
    from stagger.cli.chart import check_plot

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
