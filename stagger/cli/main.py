"""The `stagger` command: its subcommands, options, error output and exit status."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from signal import Signals
from typing import Annotated, NoReturn

import typer

from stagger import __version__
from stagger.cli import blocks
from stagger.cli.answers import finish, print_json
from stagger.cli.doctor import doctor
from stagger.cli.head import head
from stagger.cli.launch import launch
from stagger.cli.message_log import beside_users_code, set_up_logging
from stagger.cli.open_run import open_run
from stagger.cli.options import (
    Assignments,
    Json,
    Options,
    Profile,
    Ranks,
    Run,
    Stage,
    Wait,
)
from stagger.cli.ready import init
from stagger.errors import Interrupted, StaggerError, exit_status_of, one_line
from stagger.storage.storage import without_secrets
from stagger.terminal import logger, say

app = typer.Typer(
    help="Run pipelines as thousands of Slurm tasks, or on this machine, without overloading the storage.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

#: The exit status of `stagger status` while ranks are queued, running, or not launched.
NOT_DONE = 3

app.add_typer(blocks.app, name="blocks")


def main() -> NoReturn:
    """Run the command line. Exit status: 0 done, 1 something failed, 2 invalid request, 128 + n after signal n."""
    set_up_logging()
    try:
        status = app(standalone_mode=False)
        sys.stdout.flush()
    except StaggerError as error:
        fail(str(error), error.exit_status)
    except Interrupted as error:
        fail(
            f"stopped by {error}; completed work is kept, and the next launch continues from there",
            error.exit_status,
        )
    except typer.Abort:
        fail("aborted", exit_status_of(Signals.SIGINT))
    except KeyboardInterrupt:
        fail("stopped by Ctrl-C", exit_status_of(Signals.SIGINT))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        fail(str(error), 1)
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # The help was printed.
            sys.exit(2)
        if hasattr(error, "format_message"):  # The parser's: an invalid option or argument.
            from stagger.cli import mistakes

            fail(mistakes.sentence(error, sys.argv[1:]), 2)
        fail(traceback.format_exc(), 1)
    gc.freeze()  # The process ends: looking for cycles in 100,000 records would take it half a second.
    sys.exit(status if isinstance(status, int) else 0)


def fail(message: str, status: int) -> NoReturn:
    for line in without_secrets(message).split("\n"):
        print(f"stagger: {one_line(line)}", file=sys.stderr)
    sys.exit(status)


app.command()(launch)


@app.command()
def retry(
    run: Run,
    ranks: Ranks = None,
    stage: Stage = None,
    failed_only: Annotated[
        bool, typer.Option("--failed-only", help="Only failed ranks, not those cancelled or never launched.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Also ranks that are done: those of --rank, or all. Replaces their outputs.")
    ] = False,
    lost: Annotated[
        bool, typer.Option("--lost", help="Also ranks that are done, but whose outputs are missing or changed.")
    ] = False,
    checksum: Annotated[
        bool, typer.Option("--checksum", help="With --lost: also find outputs of the right size with another content.")
    ] = False,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Override a setting from now on, e.g. executor.mem_per_cpu_gb=8."),
    ] = None,
    memory_factor: Annotated[
        float, typer.Option("--memory-factor", help="Factor by which the jobs of this retry get more memory.")
    ] = 1.0,
    time_factor: Annotated[
        float, typer.Option("--time-factor", help="Factor by which the jobs of this retry get more time.")
    ] = 1.0,
    wait: Wait = False,
    json: Json = False,
    options: Options = None,
) -> int:
    """Rerun the ranks that are neither done nor active: failed, cancelled or never launched."""
    from stagger.launch.retry import retry as start

    if checksum and not lost:
        raise StaggerError("--checksum belongs to --lost: it finds more outputs that are lost. Add --lost.")
    with beside_users_code():
        folder, record = open_run(run, options)
        chosen = some_ranks(ranks)
        launched = start(
            folder,
            record,
            stage=stage if chosen is None else record.spec.only(stage).name,
            ranks=chosen,
            failed_only=failed_only,
            again=again,
            lost=lost,
            checksums=checksum,
            changes=assignments or [],
            memory_factor=memory_factor,
            time_factor=time_factor,
            wait=wait,
        )
    return finish(launched, json)


def some_ranks(text: str | None) -> set[int] | None:
    """Parse the value of --rank; None without one. Raises StaggerError when the text is not a set of ranks."""
    from stagger.ranks import parse_ranks

    try:
        found = None if text is None else set(parse_ranks(text.replace(" ", "")))
    except ValueError:
        found = set()
    if found is not None and not found:
        raise StaggerError(f"--rank {text!r}: write ranks like 3 or 3,17,40-52.")
    return found


@app.command()
def status(
    run: Run,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until no rank is queued or running.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check that the outputs of done ranks exist and have the recorded sizes.")
    ] = False,
    checksum: Annotated[
        bool, typer.Option("--checksum", help="The same, and compare their content with the recorded checksums.")
    ] = False,
    stage: Stage = None,
    json: Json = False,
    options: Options = None,
) -> int:
    """Show a run's progress: ranks by state, records, bytes, rate.

    Exit status: 0 if all ranks are done; 1 if ranks failed, were cancelled or can never start, or outputs differ or
    are lost; else 3.
    """
    from stagger.cli import show
    from stagger.status.stage_status import status_of

    folder, record = open_run(run, options)
    shown = [one.name for one in record.spec.chosen(stage)]
    if not watch:
        gc.disable()  # The process ends soon; a single collection over 100,000 records costs 0.4 s and frees nothing.
    looks, stages = show.watch_status(folder, record, shown, silent=json) if watch else status_of(folder, record)
    stages = [one for one in stages if one.name in shown]
    if verify or checksum:
        from stagger.launch.verify import note_differences

        note_differences(record, looks, stages, checksums=checksum)
    if json:
        print_json(show.status_document(folder.path, stages))
        for note in show.notes(stages):
            logger.warning(note)
    else:
        show.status(folder.path, stages)
    bad = ("failed", "cancelled", "stuck", "differs", "is_unpublished", "lost", "foreign")
    if any(getattr(stage, what) for stage in stages for what in bad):
        return 1
    return 0 if all(stage.is_done for stage in stages) else NOT_DONE


@app.command()
def logs(
    run: Run,
    rank: Annotated[int | None, typer.Option(min=0, help="Print the log of this rank's latest attempt.")] = None,
    attempt: Annotated[
        str | None, typer.Option("--attempt", help="With --rank: an earlier attempt: 1, or 1r2 after 2 requeues.")
    ] = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="Show the error and the last log lines of each failed rank.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="With --rank: print new lines until the attempt ends.")
    ] = False,
    stage: Stage = None,
    json: Json = False,
    options: Options = None,
) -> int:
    """Print the logs of ranks. Without --rank or --failed, list the path of each rank's latest log."""
    from stagger.cli import rank_logs

    folder, record = open_run(run, options)
    if json:
        if rank is not None:
            raise StaggerError("A log is no JSON: give --rank without --json, or --json without --rank for its path.")
        print_json(rank_logs.logs_document(folder, record, stage=stage, failed=failed))
        return 0
    rank_logs.show_logs(folder, record, stage=stage, rank=rank, attempt=attempt, failed=failed, follow=follow)
    return 0


@app.command()
def cancel(run: Run, ranks: Ranks = None, stage: Stage = None, json: Json = False, options: Options = None) -> int:
    """Cancel the queued and running jobs of a run, a stage or single ranks. Completed ranks stay done."""
    from stagger.launch.cancel import cancel as stop

    folder, record = open_run(run, options)
    stopped = stop(folder, record, stage, some_ranks(ranks))
    if json:
        print_json({"run_dir": folder.path, "stopped": stopped})
    else:
        for line in stopped or ["nothing is queued or running"]:
            say(line)
    return 0


@app.command()
def plan(
    file: Annotated[str | None, typer.Argument(help="A pipeline file, or the name of a ready pipeline.")] = None,
    tasks: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Number of tasks; required without a file.")
    ] = None,
    throttle: Annotated[
        int | None, typer.Option(min=1, help="Maximum jobs at once; by default the file's workers.")
    ] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Maximum jobs at once that the cluster has room for.")
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(min=0, max=1000, help="Requests per job at its start; by default counted, or 4 without a file."),
    ] = None,
    backend_limit: Annotated[
        float | None,
        typer.Option(
            min=0.1, max=1e9, help="Requests per second that the storage accepts; by default the file's backend_limit."
        ),
    ] = None,
    operations: Annotated[
        int | None,
        typer.Option(min=0, max=10**7, help="File-system calls per job at its start; by default as doctor measured."),
    ] = None,
    metadata_limit: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=1e9,
            help="File-system calls per second that the metadata server takes; by default the file's metadata_limit.",
        ),
    ] = None,
    cores: Annotated[
        float | None, typer.Option(min=0.01, max=1e6, help="Cores per job; by default the file's cpus_per_task, or 1.")
    ] = None,
    dispatch_rate: Annotated[
        float | None, typer.Option(min=0.01, max=1e9, help="Jobs per second that Slurm starts; by default all at once.")
    ] = None,
    start_jitter: Annotated[
        float | None,
        typer.Option(min=0, max=3600, help="Seconds by which Slurm's starts of jobs vary; by default 2."),
    ] = None,
    task_time: Annotated[
        float | None, typer.Option(min=0, max=1e9, help="Seconds that a job runs after its start; by default 600.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=0, max=86_400, help="Another start window to compare, in seconds.")
    ] = None,
    assignments: Assignments = None,
    profile: Profile = None,
    stage: Stage = None,
    seed: Annotated[int, typer.Option(help="Random seed of the simulation.")] = 0,
    plot: Annotated[str | None, typer.Option(metavar="FILE.png|.svg", help="Plot the requests over time.")] = None,
    json: Json = False,
) -> int:
    """Simulate a launch with each start policy: peaks, rejected requests, idle core-hours. Submits nothing.

    Imports the modules that FILE names, which runs their code.
    """
    from stagger.cli import start_plan
    from stagger.cli.chart import check_plot

    if plot is not None:
        check_plot(plot)
    wanted = start_plan.Wanted(
        tasks,
        throttle,
        slots,
        requests,
        backend_limit,
        cores,
        dispatch_rate,
        task_time,
        window,
        operations,
        metadata_limit,
        start_jitter,
    )
    with beside_users_code():
        found = start_plan.plans(file, stage, wanted, tuple(assignments or ()), seed, profile)
        if plot is not None:
            start_plan.plot(found, plot)
    print_json(start_plan.document(found)) if json else start_plan.show(found)
    return 0


app.command()(doctor)
app.command()(head)
app.command()(init)


@app.command()
def schema(
    profiles: Annotated[bool, typer.Option("--profiles", help="That of the files with profiles instead.")] = False,
) -> int:
    """Print the JSON schema of pipeline files; editors use it to complete and check keys."""
    from stagger.spec.models import PipelineFile
    from stagger.spec.profiles import ConfigFile

    model = ConfigFile if profiles else PipelineFile
    print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()})
    return 0


def show_version(wanted: bool) -> None:
    if wanted:
        say(f"stagger {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Define the options of `stagger` itself."""
