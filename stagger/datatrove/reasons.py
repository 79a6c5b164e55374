"""Makes the filters of datatrove note in a document for which reason they drop it."""

from __future__ import annotations

from typing import Any


class NoWriter:
    """Stands for an exclusion writer: with one, a filter notes the reason in the metadata of what it drops."""

    def __enter__(self) -> NoWriter:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing was opened."""

    def write(self, document: Any, rank: int = 0, **options: Any) -> None:
        """Write nothing."""


def give_reasons(step: Any) -> None:
    """Let a step, if it is a filter of datatrove, note its reasons under `filter_reason`."""
    if all(hasattr(step, name) for name in ("filter", "filter_batch", "stat_update", "exclusion_writer")):
        step.exclusion_writer = step.exclusion_writer or NoWriter()
