"""The errors that a user meets. Each message says what is wrong, where, and what to do next."""

from __future__ import annotations


class StaggerError(Exception):
    """The request was wrong: nothing was launched. The command line prints it and exits with status 2."""

    exit_status = 2


class RunFailed(StaggerError):
    """Ranks of the run failed. `failed_ranks` maps each stage's name to its failed ranks."""

    exit_status = 1

    def __init__(self, message: str, failed_ranks: dict[str, list[int]] | None = None) -> None:
        super().__init__(message)
        self.failed_ranks = failed_ranks or {}


class StorageError(StaggerError):
    """The storage did not answer, or refused: the message names the path and what the store said."""

    exit_status = 1


class BadInput(Exception):
    """A shard cannot be read whole: truncated, damaged, changed since the plan was made, or not what its name says."""


class Interrupted(BaseException):
    """A signal asked the task to stop. Not an `Exception`: the `except Exception` of a step must not swallow it."""
