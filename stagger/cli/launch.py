"""`stagger launch` and `stagger blocks launch`: one command under two names."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from stagger.cli import show
from stagger.cli.answers import finish, print_json
from stagger.cli.options import Assignments, Json, Wait
from stagger.errors import StaggerError


def launch(
    context: typer.Context,
    file: Annotated[str, typer.Argument(help="A pipeline file, or the name of a ready one.", metavar="FILE")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and the exact job scripts; touch nothing.")
    ] = False,
    executor: Annotated[str | None, typer.Option("--executor", help="Run with this executor: local or slurm.")] = None,
    tasks: Annotated[int | None, typer.Option(min=1, help="Into how many ranks the work is divided.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Run only the first N ranks.")] = None,
    run_dir: Annotated[str | None, typer.Option("--run-dir", help="Where the run keeps its records.")] = None,
    assignments: Assignments = None,
    wait: Wait = False,
    json: Json = False,
) -> int:
    """Plan, check, render, then submit, or run here. A completed rank is never run again."""
    from stagger.launch.dry_run import dry_run as plan_only
    from stagger.launch.launch import launch as start
    from stagger.spec.changes import Changes
    from stagger.spec.load import load_file

    if dry_run:
        sys.dont_write_bytecode = True  # Importing the user's steps must not leave a __pycache__ beside them.
    with contextlib.redirect_stdout(sys.stderr):  # What the user's modules print is not part of our answer.
        spec = load_file(file, Changes(tuple(assignments or ()), executor, tasks, run_dir))
        if for_blocks(context) and all(stage.blocks is None for stage in spec.stages):
            raise StaggerError(f"{file} hosts no blocks: it has no stage with the key `blocks`. Use stagger launch.")
        document = plan_only(spec, limit=limit) if dry_run else {}
        launched = None if dry_run else start(spec, limit=limit, wait=wait)
    if launched is None:
        print_json(document) if json else show.plan(document)
        return 0
    return finish(launched, json)


def for_blocks(context: typer.Context) -> bool:
    """Whether the command was called as `stagger blocks launch`."""
    return context.parent is not None and context.parent.info_name == "blocks"
