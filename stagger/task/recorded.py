"""The outputs of a rank as its records list them. Each becomes an entry once, however many commits the rank has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stagger.pipeline.task_context import OutputFile

#: A progress record lists at most this many outputs and those of one shard; a page that is written once has the others.
PAGE_OUTPUTS = 100


class RecordedOutputs:
    """The entries of all outputs of a rank, with those of earlier attempts.

    `bytes` and `results` count those of this attempt: their bytes, and the records in those that hold results.
    """

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.bytes = self.results = 0
        self._added = 0
        self._pages: list[str] = []
        self._paged = 0

    def resume(self, entries: list[dict[str, Any]], pages: list[str], unpaged: int) -> None:
        """Begin with the entries of earlier attempts: all but the last `unpaged` are in `pages`."""
        self.entries = entries
        self._pages = pages
        self._paged = len(entries) - unpaged

    def add(self, outputs: list[OutputFile]) -> None:
        """Add those of this attempt's `outputs` that are new since the last call."""
        for file in outputs[self._added :]:
            self.entries.append(entry_of(file))
            self.bytes += file.output.size
            self.results += 0 if file.aside else file.records
        self._added = len(outputs)

    def progress(self, write_page: Callable[[int, list[dict[str, Any]]], str]) -> dict[str, Any]:
        """The fields of a progress record. `write_page` writes the page of a number, and returns its name."""
        if len(self.entries) - self._paged >= PAGE_OUTPUTS:
            self._pages.append(write_page(len(self._pages) + 1, self.entries[self._paged :]))
            self._paged = len(self.entries)
        return {"outputs": self.entries[self._paged :], **({"pages": self._pages} if self._pages else {})}


def entry_of(file: OutputFile) -> dict[str, Any]:
    output = file.output
    entry = {"path": output.path, "bytes": output.size, "records": file.records, "digest": output.digest}
    return {**entry, "removed_by": file.removed_by} if file.aside else entry
