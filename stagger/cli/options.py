"""Options shared by several commands."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stagger.errors import StaggerError
from stagger.terminal import logger

Run = Annotated[
    str, typer.Argument(help="The run directory, a path or s3://..., or the pipeline file of the run.", metavar="RUN")
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
        help="Access to the run directory, e.g. '{s3: {endpoint_url: http://...}}'; by default as at its launch.",
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
    if not text:
        return {}
    from stagger.spec.yaml_file import parse_value
    from stagger.storage.secrecy import clear_secrets

    value = parse_value(text, "--storage-options")
    if not isinstance(value, dict) or not all(isinstance(item, dict) for item in value.values()):
        raise StaggerError("--storage-options must be a mapping per protocol, e.g. '{s3: {endpoint_url: http://...}}'.")
    for where, reason in clear_secrets(value, ()):
        logger.warning(
            f"--storage-options: {'.'.join(map(str, where))}: everybody on this machine can read this command line"
            f" ({reason}); write ${{NAME}} in single quotes, and export NAME"
        )
    return value
