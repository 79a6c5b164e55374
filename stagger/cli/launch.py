"""`stagger launch` and `stagger blocks launch`: one command under two names."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stagger.cli import ready
from stagger.cli.answers import finish, print_json
from stagger.cli.message_log import beside_users_code
from stagger.cli.options import Assignments, Json, Profile, Wait
from stagger.errors import StaggerError
from stagger.ranks import MOST
from stagger.storage.storage import join
from stagger.terminal import logger, say

if TYPE_CHECKING:
    from stagger.launch.launched import Launched
    from stagger.launch.rehearsal import Rehearsal
    from stagger.spec.models import RunSpec


def launch(
    context: typer.Context,
    file: Annotated[
        str | None, typer.Argument(help="A pipeline file, or the name of a ready pipeline.", metavar="FILE")
    ] = None,
    list_ready: Annotated[bool, typer.Option("--list", help="Show the ready pipelines, and launch nothing.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the plan and the exact job scripts; write and submit nothing. Imports the modules that"
            " FILE names, which runs their code.",
        ),
    ] = False,
    executor: Annotated[str | None, typer.Option("--executor", help="Use this executor: local or slurm.")] = None,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="N|auto", help="Number of ranks the work is divided into; `auto`: one for each shard."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Run only the first N ranks.")] = None,
    rehearse: Annotated[
        int | None,
        typer.Option(
            "--rehearse",
            min=1,
            metavar="N",
            help="Run all stages here over the first N shards, in a folder of their own; touch nothing of the run.",
        ),
    ] = None,
    run_dir: Annotated[str | None, typer.Option("--run-dir", help="The run directory: a path or s3://...")] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Remove files in the output folders that have names of the run's outputs but are none of them.",
        ),
    ] = False,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Start over: undo all ranks of earlier launches, and remove their records and outputs."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before removing files, on a terminal.")] = False,
    profile: Profile = None,
    assignments: Assignments = None,
    wait: Wait = False,
    json: Json = False,
) -> int:
    """Launch a pipeline: plan and check it, then submit it to Slurm or run it here. Completed ranks are not rerun."""
    from stagger.cli import show
    from stagger.launch.dry_run import dry_run as plan_only
    from stagger.launch.launch import Wishes
    from stagger.launch.launch import launch as start
    from stagger.spec.changes import Changes
    from stagger.spec.load import load_file

    if list_ready:
        ready.list_ready(json=json, hosting_blocks=for_blocks(context))
        return 0
    if file is None:
        raise StaggerError(
            f"launch needs a pipeline file; write for example: stagger {'blocks ' * for_blocks(context)}launch"
            " pipeline.yaml (--list shows the ready pipelines)"
        )
    if dry_run:
        sys.dont_write_bytecode = True  # Importing the user's steps must not leave a __pycache__ next to them.
    with beside_users_code():
        changes = Changes(tuple(assignments or ()), executor, number_of_tasks(tasks), run_dir, profile)
        spec = load_file(file, changes, logger.info) if dry_run else load_file(file, changes)
        if for_blocks(context) and all(stage.blocks is None for stage in spec.stages):
            raise StaggerError(f"{file} hosts no blocks: it has no stage with the key `blocks`. Use stagger launch.")
        if spec.profile and not dry_run:
            logger.info(f"defaults come from the profile {spec.profile}; --dry-run lists them")
        if rehearse is not None:
            refuse_beside_rehearse(dry_run=dry_run, limit=limit, fresh=fresh, overwrite=overwrite, executor=executor)
            from stagger.launch.rehearsal import rehearse as try_out

            try:
                rehearsal, done = try_out(spec, rehearse)
            except StaggerError:
                with contextlib.redirect_stdout(sys.__stdout__ if not json else sys.stderr):
                    rehearsed_so_far(spec)
                raise
        else:
            wishes = Wishes(limit, wait, overwrite, fresh, confirm=lambda: ask(yes=yes))
            document = plan_only(spec, wishes) if dry_run else {}
            launched = None if dry_run else start(spec, wishes)
    if rehearse is not None:
        return rehearsed(rehearsal, done, json=json)
    if launched is None:
        print_json(document) if json else show.plan(document)
        return 0
    return finish(launched, json)


def refuse_beside_rehearse(**given: object) -> None:
    """Raise StaggerError for an option that contradicts --rehearse."""
    for name, value in given.items():
        if value and value != "local":
            raise StaggerError(
                f"--rehearse runs its shards on this machine, in a folder of its own: leave --{name.replace('_', '-')}"
                " out."
            )


def rehearsed_so_far(spec: RunSpec) -> None:
    """Print what was done of a rehearsal that could not go on, such as one whose first stage kept no document."""
    from stagger.cli import show
    from stagger.launch.rehearsal import folder_of
    from stagger.rundir.run_folder import RunFolder
    from stagger.status.stage_status import status_of

    run_dir = join(folder_of(spec), "run")
    if os.path.isfile(join(run_dir, "run.json")):
        _, stages = status_of(*RunFolder.open(run_dir))
        show.status(run_dir, stages, watching=True)
        show.steps(stages)


def rehearsed(rehearsal: Rehearsal, launched: Launched, *, json: bool) -> int:
    """Print what a rehearsal did, step by step. Returns the exit status. Raises RunFailed when ranks failed."""
    from stagger.cli import show

    if json:
        document = {"rehearsal": rehearsal.folder, **show.status_document(launched.run_dir, launched.stages)}
        print_json(document)
    else:
        show.launched(launched)
        show.steps(launched.stages)
        say(f"The rehearsal is in {rehearsal.folder}; remove it with: rm -r {rehearsal.folder}")
    launched.raise_if_failed()
    return 0


def ask(*, yes: bool) -> None:
    """Let the user confirm what was just said will be removed. A script, whose input is no terminal, is not asked."""
    if not yes and sys.stdin.isatty() and not typer.confirm("Remove them?", err=True):
        raise StaggerError("Nothing was removed, and nothing launched.")


def number_of_tasks(text: str | None) -> int | Literal["auto"] | None:
    """Parse the value of --tasks. Raises StaggerError when it is neither a number from 1 nor `auto`."""
    if text is None or text == "auto":
        return None if text is None else "auto"
    if not text.isdecimal() or not 1 <= int(text) <= MOST:
        raise StaggerError(f"--tasks {text}: give a number of ranks from 1 to {MOST:,}, or auto for one a shard.")
    return int(text)


def for_blocks(context: typer.Context) -> bool:
    """Whether this is `stagger blocks launch`."""
    return context.parent is not None and context.parent.info_name == "blocks"
