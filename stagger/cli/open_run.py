"""Finds the run that a command names, and the options with which its storage is reached."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from stagger.cli.options import storage_options
from stagger.errors import StaggerError
from stagger.storage.storage import absolute, is_local

if TYPE_CHECKING:
    from stagger.rundir.run_folder import RunFolder, RunRecord

#: What to do where nobody knows how a run is reached.
UNKNOWN = (
    "How this run is reached is not known here: give its pipeline file in place of the run directory, or"
    " --storage-options, or the AWS variables."
)

#: The same where the options that are known do not serve.
KNOWN = (
    "The storage options are those of the launch ({file}), or of your default profile; --storage-options replaces them."
)


def open_run(run: str, typed: str | None) -> tuple[RunFolder, RunRecord]:
    """Open the run at `run`, its run directory or its pipeline file. `typed` is the value of --storage-options.

    Without it, the options are those of the file, those of the last launch by this user, or those of the default
    profile. Raises StaggerError when there is no run.
    """
    from stagger.rundir.run_folder import NoRun, RunFolder

    run_dir, options = of_record(run), storage_options(typed)
    if is_pipeline_file(run):
        from stagger.spec.load import reached

        run_dir, written = reached(run)
        options = options or written
    given = bool(options)
    options = options or known_options(run_dir)
    try:
        folder, record = RunFolder.open(run_dir, options)
    except StaggerError as error:
        if is_local(absolute(run_dir)) or given or isinstance(error, NoRun):
            raise
        from stagger.rundir.remembered import remembered_file

        hint = KNOWN.format(file=remembered_file(absolute(run_dir))) if options else UNKNOWN
        raise type(error)(f"{str(error).rstrip('.')}. {hint}") from error
    if given:
        from stagger.rundir.remembered import remember

        remember(folder.path, options)
    return folder, record


def of_record(run: str) -> str:
    """The run directory of a run.json; any other path as it is."""
    return os.path.dirname(run) or "." if os.path.basename(run) == "run.json" and os.path.isfile(run) else run


def is_pipeline_file(run: str) -> bool:
    """Whether a command was given a pipeline file in place of a run directory; it may not exist."""
    return run.endswith((".yaml", ".yml")) and is_local(run) and not os.path.isdir(run)


def known_options(run_dir: str) -> dict[str, dict[str, Any]]:
    """How a remote run was reached before or, if nobody remembers, what the default profile says."""
    if is_local(absolute(run_dir)):
        return {}
    from stagger.rundir.remembered import recalled

    if options := recalled(run_dir):
        return options
    from stagger.spec.profiles import chosen
    from stagger.terminal import logger

    try:
        return dict(chosen(None, "").values.get("storage_options", {}))
    except StaggerError as error:  # A run must not become unreachable by a mistake in a file that it does not need.
        logger.warning(f"{str(error).rstrip('.')}. The profile is not used.")
        return {}
