"""The files of a writer that divides documents by their metadata: one for each value, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from stagger.errors import StaggerError
from stagger.pipeline import Document
from stagger.pipeline.task_context import OutputFile
from stagger.steps.file_names import Field

#: Bytes of records that wait in memory, of all files together.
WAITING_BYTES = 64 * 2**20

#: Maximum different values of a rank: each has a file.
MOST_VALUES = 100_000


class Waiting(Protocol):
    """What of a file waits in memory: the records of a codec, or the rows of a row group."""

    @property
    def waiting(self) -> int:
        """Bytes."""

    def spill(self) -> None:
        """Pass them on to the file."""


@dataclass(slots=True)
class Series:
    """The files for the documents with the same values: one, or several if they have a maximum size."""

    names: dict[str, str]
    part: int = 0
    file: OutputFile | None = None
    waiting: Waiting | None = None


class SplitFiles:
    """The files for each combination of values. `open_file` opens the next one of a series, with what waits for it.

    At most `most` of them hold a compressor and a descriptor. The others are paused: when they go on, a file that is
    compressed begins another frame or member.
    """

    def __init__(
        self,
        fields: list[Field],
        default: str | None,
        most: int,
        max_bytes: int | None,
        open_file: Callable[[dict[str, str], int], tuple[OutputFile, Waiting]],
    ) -> None:
        self._fields = fields
        self._default = default
        self._most = most
        self._max_bytes = max_bytes
        self._open_file = open_file
        self._series: dict[tuple[str, ...], Series] = {}
        self._active: OrderedDict[int, OutputFile] = OrderedDict()
        self._waiting = 0

    def series_for(self, document: Document, size: int) -> Series:
        """The series of a document, its file open for the next `size` bytes."""
        values = tuple([field.value(document, self._default) for field in self._fields])
        series = self._series.get(values)
        if series is None:
            series = self._new(values)
        if series.file is not None and self._max_bytes is not None and series.file.size + size > self._max_bytes:
            self._close(series)
        if series.file is None:
            series.file, series.waiting = self._open_file(series.names, series.part)
            series.part += 1
            self._use(series.file)
        return series

    def _new(self, values: tuple[str, ...]) -> Series:
        if len(self._series) == MOST_VALUES:
            keys = ", ".join(field.key for field in self._fields)
            raise StaggerError(
                f"The documents of this rank have more than {MOST_VALUES:,} values of {keys}, and each needs a"
                " file: give filename keys with fewer values."
            )
        series = Series({field.key: field.in_path(text) for field, text in zip(self._fields, values, strict=True)})
        self._series[values] = series
        return series

    def wrote(self, series: Series, before: int) -> None:
        """Keep the bounds after a record was written to a series, of which `before` bytes had waited."""
        assert series.file is not None
        assert series.waiting is not None
        now = series.waiting.waiting
        self._waiting += now - before
        if now <= before:  # It has spilled.
            self._use(series.file)
        if self._waiting > WAITING_BYTES:
            self._spill_largest()

    def _spill_largest(self) -> None:
        """Spill those for which most waits, until half of the limit waits."""
        found = [one for one in self._series.values() if one.waiting is not None and one.waiting.waiting]
        for series in sorted(found, key=lambda one: -one.waiting.waiting if one.waiting else 0):
            assert series.file is not None
            assert series.waiting is not None
            self._waiting -= series.waiting.waiting
            series.waiting.spill()
            self._use(series.file)
            if self._waiting <= WAITING_BYTES // 2:
                return

    def _use(self, file: OutputFile) -> None:
        self._active[id(file)] = file
        self._active.move_to_end(id(file))
        while len(self._active) > self._most:
            _, longest_unused = self._active.popitem(last=False)
            longest_unused.pause()

    def _close(self, series: Series) -> None:
        assert series.file is not None
        assert series.waiting is not None
        self._waiting -= series.waiting.waiting
        self._active.pop(id(series.file), None)
        series.file.finish()
        series.file = series.waiting = None

    def close(self) -> None:
        """Finish all files; the next document begins new ones."""
        for series in self._series.values():
            if series.file is not None:
                self._close(series)
        self._series.clear()
