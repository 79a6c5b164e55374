"""The shards of a stage in columns, about 100 bytes each: a launch may plan ten million. No task imports this."""

from __future__ import annotations

import heapq
import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate, islice, pairwise
from typing import TYPE_CHECKING, overload

from stagger.errors import StaggerError
from stagger.pipeline import Shard
from stagger.storage import Files, ascending

if TYPE_CHECKING:
    #: Numbers of rows in a table; a range goes up.
    Rows = range | array[int]

#: Rows that are Python objects at a time, when all rows are passed through.
AT_ONCE = 1000


class Texts:
    """A column of strings, as UTF-8 in one buffer."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._offsets = array("Q", [0])  # Where each string begins, and where the last one ends.

    def extend(self, texts: Sequence[str]) -> None:
        """Add strings at the end. Raises UnicodeEncodeError, and adds none, if UTF-8 cannot hold one of them."""
        joined = "".join(texts)
        if joined.isascii():
            data, sizes = joined.encode(), map(len, texts)
        else:
            encoded = [text.encode() for text in texts]
            data, sizes = b"".join(encoded), map(len, encoded)
        self._bytes += data
        self._offsets.extend(islice(accumulate(sizes, initial=self._offsets[-1]), 1, None))

    def pick(self, rows: Rows) -> list[str]:
        offsets = self._offsets
        with memoryview(self._bytes) as view:
            if not isinstance(rows, range):
                return [str(view[offsets[row] : offsets[row + 1]], "utf-8") for row in rows]
            if rows.step == 1:
                first = offsets[rows.start]
                text = str(view[first : offsets[rows.stop]], "utf-8")
                if len(text) == offsets[rows.stop] - first:  # ASCII: characters are where the bytes are.
                    ends = offsets[rows.start : rows.stop + 1]
                    return [text[start - first : end - first] for start, end in pairwise(ends)]
            starts = offsets[rows.start : rows.stop : rows.step]
            ends = offsets[rows.start + 1 : rows.stop + 1 : rows.step]
            return [str(view[start:end], "utf-8") for start, end in zip(starts, ends, strict=True)]

    def buffers(self) -> tuple[bytearray, array[int]]:
        """The UTF-8 of all strings, and the offset at which each begins and the last one ends."""
        return self._bytes, self._offsets


class ShardTable(Sequence[Shard]):
    """Shards in columns, which behave as a sequence of `Shard`, in the order in which they were added.

    >>> table = ShardTable([Shard("b", 7), Shard("a", 1, "v")])
    >>> table[0], list(table.in_order())
    (Shard(name='b', size=7, version=''), [Shard(name='a', size=1, version='v'), Shard(name='b', size=7, version='')])
    """

    def __init__(self, shards: Iterable[Shard] = ()) -> None:
        self.names = Texts()
        self.sizes = array("q")
        self.versions = Texts()
        self._runs: list[int] = []  # The rows whose names are not greater than the one before.
        self._last: str | None = None
        rest = iter(shards)
        while some := list(islice(rest, AT_ONCE)):
            self.add(Files.of(some))

    def add(self, files: Files) -> None:
        """Add rows at the end. Raises StaggerError for a name that is not UTF-8: neither JSON nor S3 can hold it."""
        if not files.names:
            return
        self._notice_order(files.names)
        try:
            self.names.extend(files.names)
        except UnicodeEncodeError as error:
            raise StaggerError(f"The name of the input {odd_name(files.names)!a} is not UTF-8; rename it.") from error
        self.sizes.extend(files.sizes)
        self.versions.extend(files.versions)

    def _notice_order(self, names: Sequence[str]) -> None:
        if self._last is not None and names[0] <= self._last:
            self._runs.append(len(self))
        if not ascending(names):
            self._runs += [len(self) + row for row, (one, after) in enumerate(pairwise(names), 1) if after <= one]
        self._last = names[-1]

    def in_order(self) -> ShardTable:
        """The shards in the order of their names: by code points, which is that of UTF-8's bytes."""
        if not self._runs:
            return self
        bounds = pairwise([0, *self._runs, len(self)])
        return ShardTable(heapq.merge(*(self.objects(range(start, stop)) for start, stop in bounds)))

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, place: int) -> Shard: ...
    @overload
    def __getitem__(self, place: slice) -> list[Shard]: ...
    def __getitem__(self, place: int | slice) -> Shard | list[Shard]:
        rows = range(len(self))[place]
        if isinstance(rows, range):
            return list(self.objects(rows if rows.step > 0 else array("Q", rows)))
        return next(self.objects(range(rows, rows + 1)))

    def __iter__(self) -> Iterator[Shard]:
        return self.objects(range(len(self)))

    def objects(self, rows: Rows) -> Iterator[Shard]:
        """The shards of some rows."""
        new_shard = partial(tuple.__new__, Shard)  # Half the time of Shard(...).
        for start in range(0, len(rows), AT_ONCE):
            yield from map(new_shard, zip(*self.pick(rows[start : start + AT_ONCE]), strict=True))

    def pick(self, rows: Rows) -> Files:
        """The columns of some rows, as Python objects."""
        of = self.sizes
        sizes = of[rows.start : rows.stop : rows.step] if isinstance(rows, range) else [of[row] for row in rows]
        return Files(self.names.pick(rows), list(sizes), self.versions.pick(rows))

    def parts(self) -> Iterator[Files]:
        """The columns of all rows, AT_ONCE rows at a time."""
        for start in range(0, len(self), AT_ONCE):
            yield self.pick(range(start, min(start + AT_ONCE, len(self))))


class RankShards(Sequence[Sequence[Shard]]):
    """The shards of every rank: rows of one table. Behaves as a sequence that holds the shards of rank r at r."""

    def __init__(self, table: ShardTable, rows: Sequence[Rows]) -> None:
        self.table = table
        self._rows = rows

    def pick(self, rank: int) -> Files:
        """The columns of a rank's shards."""
        return self.table.pick(self._rows[rank])

    @property
    def idle(self) -> int:
        """The number of ranks without a shard."""
        return sum(not rows for rows in self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, rank: int) -> list[Shard]: ...
    @overload
    def __getitem__(self, rank: slice) -> list[Sequence[Shard]]: ...
    def __getitem__(self, rank: int | slice) -> list[Shard] | list[Sequence[Shard]]:
        if isinstance(rank, slice):
            return [self[each] for each in range(len(self))[rank]]  # type: ignore[return-value] # A list is invariant.
        return list(map(Shard._make, zip(*self.pick(rank), strict=True)))


def shuffled(shards: Sequence[Shard], seed: int) -> ShardTable:
    """The shards in an order by chance, which `seed` decides."""
    rows = array("Q", range(len(shards)))
    random.Random(seed).shuffle(rows)  # noqa: S311
    table = shards if isinstance(shards, ShardTable) else ShardTable(shards)
    return ShardTable(table.objects(rows))


def odd_name(names: Sequence[str]) -> str:
    """The first of these names that UTF-8 cannot hold."""
    return next(name for name in names if any(map(is_surrogate, name)))


def is_surrogate(letter: str) -> bool:
    return "\ud800" <= letter <= "\udfff"
