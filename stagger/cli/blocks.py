"""`stagger blocks`: host a model's transformer blocks on many servers."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from stagger.cli.answers import print_json
from stagger.cli.launch import launch
from stagger.cli.message_log import beside_users_code
from stagger.cli.open_run import open_run
from stagger.cli.options import (
    Assignments,
    Json,
    Options,
    Profile,
    Run,
    Stage,
)

app = typer.Typer(
    help="Host a model's transformer blocks on many servers.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def blocks() -> None:
    """Host a model's transformer blocks on many servers."""


app.command(help="Launch block servers: `stagger launch` for a file with the key `blocks`.")(launch)


@app.command()
def status(
    run: Run,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until no server is queued or running.")] = False,
    stage: Stage = None,
    json: Json = False,
    options: Options = None,
) -> int:
    """Show the blocks of each server, and the throughput of each block. Exit status 1 if a block has no server."""
    from stagger.cli import block_status

    folder, record = open_run(run, options)
    chosen = folder.stage(record, block_status.stage_of_blocks(record, stage).name)
    found, active = block_status.watch(chosen, silent=json) if watch else next(block_status.looks(chosen))
    if json:
        print_json(block_status.document(chosen, found))
    elif active or found.servers:
        block_status.show(found)
    else:
        block_status.show_none(chosen, found)
    return 1 if min(found.online) == 0 else 0


@app.command()
def plan(
    file: Annotated[str, typer.Argument(help="A pipeline file, or the folder of a model.", metavar="FILE")],
    gpus: Annotated[
        str | None,
        typer.Option(metavar="GPUS", help="The GPUs, e.g. 'A100:80GB x 8, T4 x 24'; by default those of the file."),
    ] = None,
    memory: Annotated[
        float | None, typer.Option(min=0.1, metavar="GB", help="Host memory of each GPU's rank; by default the file's.")
    ] = None,
    tokens_per_s: Annotated[
        str | None,
        typer.Option(
            "--tokens-per-s", metavar="SPEEDS", help="Measured tokens/s of one block: 120000, or A100=146000,T4=16000."
        ),
    ] = None,
    store: Annotated[float, typer.Option(min=0.01, metavar="GB/S", help="What the store can send to all nodes.")] = 10,
    node: Annotated[float, typer.Option(min=0.01, metavar="GB/S", help="What one node can receive.")] = 2,
    assignments: Assignments = None,
    profile: Profile = None,
    json: Json = False,
) -> int:
    """Tell what GPUs can do with a model: whole, streamed or as a swarm. Reads its sizes only, and queues nothing.

    Exit status 1 if the model fits in no way.
    """
    from stagger.cli import block_plan
    from stagger.spec.changes import Changes

    with beside_users_code():
        changes = Changes(tuple(assignments or ()), profile=profile)
        found = block_plan.plan(file, changes, gpus, memory, tokens_per_s, block_plan.Rates(store, node))
    print_json(found.document()) if json else block_plan.show(found)
    return 0 if found.best else 1


@app.command()
def simulate(
    scenarios: Annotated[
        list[str] | None, typer.Option("--scenario", help="join, churn (the default), wave, slurm, or all; repeatable.")
    ] = None,
    servers: Annotated[
        list[int] | None,
        typer.Option(min=1, max=1000, help="Servers at a time, approximately; by default 32; repeatable."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Number of repetitions, each with other servers.")] = 5,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Random seed of the first repetition.")] = 0,
    policies: Annotated[
        list[str] | None,
        typer.Option("--policy", help="Simulate only this policy; repeatable. By default all but 'planner each'."),
    ] = None,
    hours: Annotated[float, typer.Option(min=0.01, max=168, help="Simulated hours.")] = 3,
    visibility: Annotated[
        float | None,
        typer.Option(min=0, max=3600, help="Seconds until others see a server's announcement; by default 5."),
    ] = None,
    seconds_per_block: Annotated[
        float | None, typer.Option(min=0, max=3600, help="Seconds to load a block; by default 3.")
    ] = None,
    lease: Annotated[
        float | None,
        typer.Option(
            min=0, max=86_400, help="Seconds that a crashed server stays listed; by default 240, or 45 with a lock."
        ),
    ] = None,
    ideal: Annotated[
        bool, typer.Option("--ideal", help="Blocks load instantly, and every server knows everything.")
    ] = False,
    plot: Annotated[str | None, typer.Option(metavar="FILE.png|.svg", help="Plot the throughput over time.")] = None,
    json: Json = False,
) -> int:
    """Simulate servers that come, go and crash, and compare the policies that balance their blocks."""
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
