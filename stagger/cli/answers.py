"""What commands do and say that launch something."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import orjson

from stagger.cli import show
from stagger.errors import StaggerError

if TYPE_CHECKING:
    from stagger.spec.changes import Changes


def print_json(document: Any) -> None:
    sys.stdout.buffer.write(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def launch_file(
    file: str,
    changes: Changes,
    *,
    limit: int | None = None,
    dry_run: bool,
    wait: bool,
    json: bool,
    blocks: bool = False,
) -> int:
    """Launch what a pipeline file describes; only one with `blocks`, if that is wanted. The exit status."""
    from stagger.launch.dry_run import dry_run as plan_only
    from stagger.launch.launch import launch as start
    from stagger.spec.load import load_file

    if dry_run:
        sys.dont_write_bytecode = True  # Importing the user's steps must not leave a __pycache__ beside them.
    with contextlib.redirect_stdout(sys.stderr):  # What the user's modules print is not part of our answer.
        spec = load_file(file, changes)
        if blocks and all(stage.blocks is None for stage in spec.stages):
            raise StaggerError(f"{file} hosts no blocks: it has no stage with the key `blocks`. Use stagger launch.")
        document = plan_only(spec, limit=limit) if dry_run else {}
        launched = None if dry_run else start(spec, limit=limit, wait=wait)
    if launched is None:
        print_json(document) if json else show.plan(document)
        return 0
    return finish(launched, json)


def finish(launched: Any, json: bool) -> int:
    """Say how a launch left the run; the exit status."""
    if json:
        print_json(show.status_document(launched.run_dir, launched.stages))
    else:
        show.launched(launched)
    launched.raise_if_failed()
    return 0
