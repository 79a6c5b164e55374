"""What a status needs of a stage's completion records, in columns: 100,000 dicts take seconds and half a gigabyte."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields
from functools import lru_cache, partial
from operator import itemgetter, lt
from sys import intern
from typing import Any, NamedTuple, TypeAlias

from stagger.errors import counted

#: The columns that are numbers of a record as they are.
INTEGERS = ("launch", "restart", "peak_rss_mb", "shards", "bytes_in", "records_in", "records_out", "bytes_out")
NUMBERS = ("delay_s", "script_started", "started", "ended", "cpu_s")

#: The columns that are fields which most records lack.
RARE = ("gpus", "left_out", "dropped", "counts")

#: The columns that are notes which most records lack.
NOTED = ("schemas", "models")

#: The keys that every step has in a completion record.
STEP_KEYS = 3

#: What reading the fields of a record raises whose values have wrong types, or that lacks some.
MALFORMED = (KeyError, TypeError, AttributeError, ValueError, OverflowError)

#: Columns of numbers: lists take three times the memory, and as long to be freed as to be filled.
integers: partial[array[int]] = partial(array, "q")
numbers: partial[array[float]] = partial(array, "d")

_fields = itemgetter(*INTEGERS, *NUMBERS, "job", "host", "steps", "retried", "bad_records", "outputs")
_step_fields = itemgetter("records", "seconds")

#: A column: of numbers, or of anything.
Column: TypeAlias = "array[Any] | list[Any]"


class OtherSteps(Exception):
    """The record of `rank` has another number of steps than those of the ranks before; `reason` is a clause."""

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(reason)
        self.rank = rank


class OutputFolders(NamedTuple):
    """The folders of a rank's outputs, and of the documents that its steps removed, each once."""

    kept: tuple[str, ...]
    removed: tuple[str, ...]


@dataclass
class StepColumns:
    """One step. `statistics` has what it counted and measured, as in a `StepRecord`; None where that is nothing."""

    name: str
    records: array[int] = field(default_factory=integers)
    seconds: array[float] = field(default_factory=numbers)
    statistics: list[Any] = field(default_factory=list)


@dataclass
class CompletionTable:
    """Columns of completion records, all of the same length. Units and names are those of `Completion`.

    rank: by the name of the record's file.
    identity: identifies the content of that file (`Storage.identities`); empty where that is not known.
    waited_s, requests: of `retried`; requests, bad_records, and the columns of RARE and NOTED are None for none.
    folders: the number of the rank's folders in `folder_sets`.
    steps: the columns of each step.
    """

    rank: array[int] = field(default_factory=integers)
    identity: list[str] = field(default_factory=list)
    launch: array[int] = field(default_factory=integers)
    restart: array[int] = field(default_factory=integers)
    job: list[str] = field(default_factory=list)
    host: list[str] = field(default_factory=list)
    delay_s: array[float] = field(default_factory=numbers)
    script_started: array[float] = field(default_factory=numbers)
    started: array[float] = field(default_factory=numbers)
    ended: array[float] = field(default_factory=numbers)
    cpu_s: array[float] = field(default_factory=numbers)
    peak_rss_mb: array[int] = field(default_factory=integers)
    shards: array[int] = field(default_factory=integers)
    bytes_in: array[int] = field(default_factory=integers)
    records_in: array[int] = field(default_factory=integers)
    records_out: array[int] = field(default_factory=integers)
    bytes_out: array[int] = field(default_factory=integers)
    waited_s: array[float] = field(default_factory=numbers)
    requests: list[Any] = field(default_factory=list)
    bad_records: list[Any] = field(default_factory=list)
    gpus: list[Any] = field(default_factory=list)
    left_out: list[Any] = field(default_factory=list)
    dropped: list[Any] = field(default_factory=list)
    counts: list[Any] = field(default_factory=list)
    schemas: list[Any] = field(default_factory=list)
    models: list[Any] = field(default_factory=list)
    folders: array[int] = field(default_factory=integers)
    folder_sets: dict[OutputFolders, int] = field(default_factory=dict)
    steps: list[StepColumns] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rank)

    def append(self, ranks: Sequence[int], identities: Sequence[str], records: Sequence[Mapping[str, Any]]) -> None:
        """Add the records of some ranks. Adds none, and raises one of MALFORMED, when one is not as it should be.

        Raises OtherSteps when one has another number of steps than those before.
        """
        steps = len(self.steps) if self.rank else len(records[0]["steps"])
        rows = _Rows.of(ranks, records, steps)
        folders = [self.folder_sets.setdefault(one, len(self.folder_sets)) for one in rows.folders]
        self.rank.extend(ranks)
        self.identity += identities
        for name, column in rows.columns.items():
            getattr(self, name).extend(column)
        self.folders.extend(folders)
        self.steps = self.steps or [StepColumns(step.name) for step in rows.steps]
        for mine, new in zip(self.steps, rows.steps, strict=True):
            mine.records += new.records
            mine.seconds += new.seconds
            mine.statistics += new.statistics

    def columns(self) -> list[Column]:
        """All columns, those of the steps included."""
        plain = [getattr(self, one.name) for one in fields(self) if one.name not in ("folder_sets", "steps")]
        return plain + [column for step in self.steps for column in (step.records, step.seconds, step.statistics)]

    def take(self, rows: Sequence[int]) -> None:
        """Keep the rows with these numbers, in this order."""
        for column in self.columns():
            taken = [column[row] for row in rows]
            column[:] = array(column.typecode, taken) if isinstance(column, array) else taken

    def keep(self, ranks: AbstractSet[int]) -> None:
        """Keep the rows of `ranks`, ascending by rank."""
        rank = self.rank
        if all(map(lt, rank, rank[1:])) and set(rank) <= ranks:
            return
        self.take([row for row in sorted(range(len(rank)), key=rank.__getitem__) if rank[row] in ranks])

    def forget(self, ranks: set[int]) -> None:
        """Drop the rows of `ranks`."""
        self.keep(set(self.rank) - ranks)


@dataclass
class _Rows:
    """New rows of a table."""

    columns: dict[str, Column]
    folders: list[OutputFolders]
    steps: list[StepColumns]

    @classmethod
    def of(cls, ranks: Sequence[int], records: Sequence[Mapping[str, Any]], steps: int) -> _Rows:
        *plain, found, retried, bad, outputs = zip(*map(_fields, records), strict=True)
        if any(len(one) != steps for one in found):
            rank, one = next((rank, one) for rank, one in zip(ranks, found, strict=True) if len(one) != steps)
            raise OtherSteps(rank, f"it has {counted(len(one), 'step')}, other records of the stage {steps}")
        columns: dict[str, Column] = dict(zip(INTEGERS, map(integers, plain), strict=False))
        columns |= zip(NUMBERS, map(numbers, plain[len(INTEGERS) :]), strict=False)
        columns |= {"job": list(plain[-2]), "host": list(map(intern, plain[-1]))}
        columns["waited_s"] = numbers(list(map(itemgetter("waited_s"), retried)))
        columns["requests"] = [one["requests"] or None for one in retried]
        columns["bad_records"] = [one if one["skipped"] else None for one in bad]
        columns |= {key: [record.get(key) or None for record in records] for key in RARE}
        notes = [record.get("notes") for record in records]
        columns |= {key: [one.get(key) if one else None for one in notes] for key in NOTED}
        return cls(columns, list(map(_folders, outputs)), [_step(mine) for mine in zip(*found, strict=True)])


def _step(records: Sequence[Any]) -> StepColumns:
    """The columns of one step, from its parts of completion records."""
    statistics = [record if len(record) > STEP_KEYS else None for record in records]
    counts, seconds = zip(*map(_step_fields, records), strict=True)
    return StepColumns(records[0]["name"], integers(counts), numbers(seconds), statistics)


def _folders(outputs: Sequence[Any]) -> OutputFolders:
    """The folders of a rank's outputs."""
    if len(outputs) == 1 and "removed_by" not in outputs[0]:  # Those of most ranks.
        return _only(outputs[0]["path"].rpartition("/")[0])
    kept = {output["path"].rpartition("/")[0] for output in outputs if "removed_by" not in output}
    removed = {output["path"].rpartition("/")[0] for output in outputs if "removed_by" in output}
    return OutputFolders(tuple(sorted(kept)), tuple(sorted(removed)))


@lru_cache
def _only(folder: str) -> OutputFolders:
    return OutputFolders((folder,), ())
