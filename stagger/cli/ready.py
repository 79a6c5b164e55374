"""`stagger launch --list` and `stagger init`: the ready pipelines."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from stagger.cli.answers import print_json
from stagger.cli.options import Json
from stagger.terminal import say


def list_ready(*, json: bool, hosting_blocks: bool) -> None:
    """Print the ready pipelines with a sentence each; with `hosting_blocks` those that host a model's blocks."""
    from stagger.spec.ready import ready_pipelines

    found = [one for one in ready_pipelines() if one.hosts_blocks or not hosting_blocks]
    if json:
        print_json([{"name": one.name, "sentence": one.sentence, "file": str(one.file)} for one in found])
        return
    width = max(len(one.name) for one in found)
    for one in found:
        say(f"{one.name:<{width}}  {one.sentence}")
    say()
    say("Copy one and read its first lines: stagger init NAME")


def init(
    name: Annotated[str, typer.Argument(help="A ready pipeline; `stagger launch --list` shows them.")],
    folder: Annotated[str, typer.Argument(help="The folder for the copy.")] = ".",
    json: Json = False,
) -> int:
    """Copy a ready pipeline, and the modules of its steps, into a folder. Overwrites nothing."""
    from stagger.spec.ready import copy_ready

    copies = [str(copy) for copy in copy_ready(name, Path(folder))]
    if json:
        print_json({"files": copies})
        return 0
    for copy in copies:
        say(copy)
    say()
    say(f"Its first lines say what it needs. Then: stagger launch {shlex.quote(copies[0])} --dry-run")
    return 0
