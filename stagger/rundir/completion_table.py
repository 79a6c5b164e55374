"""What a status needs of a stage's completion records, in columns: 100,000 dicts take seconds and half a gigabyte."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields
from functools import lru_cache, partial
from itertools import chain
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

_count, _seconds = itemgetter("records"), itemgetter("seconds")

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
    identity: identifies the content of that file (`Storage.identities`); 0 where that is not known.
    waited_s, requests: of `retried`; requests, bad_records, and the columns of RARE and NOTED are None for none.
    folders: the number of the rank's folders in `folder_sets`.
    steps: the columns of each step.
    """

    rank: array[int] = field(default_factory=integers)
    identity: array[int] = field(default_factory=integers)
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

    def append(
        self,
        ranks: Sequence[int],
        identities: Sequence[int],
        records: Sequence[Mapping[str, Any]],
        found: Mapping[str, Sequence[Any]],
    ) -> None:
        """Add the records of some ranks. `found` are the columns of the fields that each has.

        Adds none, and raises one of MALFORMED, when one is not as it should be. Raises OtherSteps when one has another
        number of steps than those before.
        """
        rows = len(self)
        try:
            if not rows:
                self.steps = [StepColumns(step["name"]) for step in found["steps"][0]]
            self._append_steps(ranks, found["steps"])
            self._append_fields(found)
            self._append_rare(records, len(found))
            self.rank.extend(ranks)
            self.identity.extend(identities)
        except BaseException:
            for column in self.columns():
                del column[rows:]
            raise

    def _append_fields(self, found: Mapping[str, Sequence[Any]]) -> None:
        """Add the fields that each record has, but for its steps."""
        for key in INTEGERS:
            getattr(self, key).extend(integers(found[key]))
        for key in NUMBERS:
            getattr(self, key).extend(numbers(found[key]))
        self.job.extend(found["job"])
        self.host.extend(list(map(intern, found["host"])))
        self.waited_s.extend([one["waited_s"] for one in found["retried"]])
        self.requests.extend([one["requests"] or None for one in found["retried"]])
        self.bad_records.extend([one if one["skipped"] else None for one in found["bad_records"]])
        folders = list(map(_folders, found["outputs"]))
        numbered = {one: self.folder_sets.setdefault(one, len(self.folder_sets)) for one in dict.fromkeys(folders)}
        self.folders.extend([numbered[one] for one in folders])

    def _append_steps(self, ranks: Sequence[int], records: Sequence[Sequence[Any]]) -> None:
        """Add the steps of each record."""
        steps = len(self.steps)
        if set(map(len, records)) != {steps}:
            rank, one = next(one for one in zip(ranks, records, strict=True) if len(one[1]) != steps)
            raise OtherSteps(rank, f"it has {counted(len(one), 'step')}, other records of the stage {steps}")
        every = list(chain.from_iterable(records))
        counts, seconds = integers(list(map(_count, every))), numbers(list(map(_seconds, every)))
        statistics: list[Any] = [None] * len(every)
        if set(map(len, every)) != {STEP_KEYS}:
            statistics = [one if len(one) > STEP_KEYS else None for one in every]
        for number, step in enumerate(self.steps):
            step.records.extend(counts[number::steps])
            step.seconds.extend(seconds[number::steps])
            step.statistics.extend(statistics[number::steps])

    def _append_rare(self, records: Sequence[Mapping[str, Any]], usual: int) -> None:
        """Add the fields and notes that most records lack. `usual` is the number of fields that each has."""
        if set(map(len, records)) == {usual}:
            for key in (*RARE, *NOTED):
                getattr(self, key).extend([None] * len(records))
            return
        for key in RARE:
            getattr(self, key).extend([record.get(key) or None for record in records])
        notes = [record.get("notes") or {} for record in records]
        for key in NOTED:
            getattr(self, key).extend([one.get(key) for one in notes])

    def attempts(self) -> Sequence[Hashable]:
        """What tells the attempt at a job apart by which a rank was done from those of other ranks."""
        if len(set(self.job)) == len(self):  # One rank each, as most jobs.
            return self.job
        return list(zip(self.job, self.launch, self.restart, strict=True))

    def columns(self) -> list[Column]:
        """All columns, those of the steps included."""
        plain = [getattr(self, one.name) for one in fields(self) if one.name not in ("folder_sets", "steps")]
        return plain + [column for step in self.steps for column in (step.records, step.seconds, step.statistics)]

    def take(self, rows: Sequence[int]) -> None:
        """Keep the rows with these numbers, in this order."""
        for column in self.columns():
            taken = [column[row] for row in rows]
            if isinstance(column, array):
                column[:] = array(column.typecode, taken)
            else:
                column[:] = taken

    def keep(self, ranks: AbstractSet[int]) -> None:
        """Keep the rows of `ranks`, ascending by rank."""
        rank = self.rank
        if all(map(lt, rank, rank[1:])) and set(rank) <= ranks:
            return
        self.take([row for row in sorted(range(len(rank)), key=rank.__getitem__) if rank[row] in ranks])

    def forget(self, ranks: set[int]) -> None:
        """Drop the rows of `ranks`."""
        self.keep(set(self.rank) - ranks)


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
