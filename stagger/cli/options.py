"""Options shared by several commands."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from stagger.errors import StaggerError
from stagger.spec.yaml_file import parse_value, read_file
from stagger.storage.storage import expand_variables, is_local
from stagger.terminal import logger

#: How the names of pipeline files end.
PIPELINE_FILES = (".yaml", ".yml", ".json")

#: How the names of pipeline files end.
PIPELINE_FILES = (".yaml", ".yml", ".json")


def run_dir_of(text: str) -> str:
    """The run directory that a command names: by its path, by its run.json, or by the pipeline file that launched it.

    Raises StaggerError for a file that names no run directory.
    """
    if not text or not is_local(text) or not os.path.isfile(text):  # Without a text a shell completes the line.
        return text
    if os.path.basename(text) == "run.json":
        return os.path.dirname(text) or "."
    if not text.endswith(PIPELINE_FILES):
        return text
    content, _ = read_file(text)
    run_dir = content.get("run_dir")
    if not isinstance(run_dir, str):
        raise StaggerError(f"{text}: the key run_dir is missing; give the run directory itself.")
    found = str(expand_variables(run_dir, ("run_dir",)))
    logger.info(f"{text} runs in {found}")
    return found


Run = Annotated[
    str,
    typer.Argument(
        help="The run directory, a path or s3://..., or the pipeline file.", metavar="RUN", callback=run_dir_of
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, and nothing else.")]
Wait = Annotated[bool, typer.Option("--wait", help="Return only when all Slurm jobs have ended.")]
Stage = Annotated[str | None, typer.Option("--stage", help="Select this stage of a run with several.")]
Ranks = Annotated[str | None, typer.Option("--rank", metavar="RANKS", help="Select these ranks: 3 or 3,17,40-52.")]
Options = Annotated[
    str | None,
    typer.Option(
        "--storage-options",
        metavar="YAML",
        help="Access to the run directory, e.g. '{s3: {endpoint_url: http://...}}'; by default the AWS variables.",
    ),
]
Profile = Annotated[
    str | None,
    typer.Option("--profile", metavar="NAME", help="Take defaults from this profile; `none` for no profile at all."),
]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a key of the file; repeatable.")
]


def storage_options(text: str | None) -> dict[str, dict[str, Any]]:
    """Parse --storage-options. Raises StaggerError when it is not a mapping of mappings."""
    from stagger.storage.secrecy import clear_secrets

    value = parse_value(text, "--storage-options") if text else {}
    if not isinstance(value, dict) or not all(isinstance(item, dict) for item in value.values()):
        raise StaggerError("--storage-options must be a mapping per protocol, e.g. '{s3: {endpoint_url: http://...}}'.")
    for where, reason in clear_secrets(value, ()):
        logger.warning(
            f"--storage-options: {'.'.join(map(str, where))}: everybody on this machine can read this command line"
            f" ({reason}); write ${{NAME}} in single quotes, and export NAME"
        )
    return value
