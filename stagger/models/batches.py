"""Documents to microbatches, such that the numbers of a document depend on the document alone.

Matrix products of another shape can round otherwise. So the length of a row depends on its tokens alone, and the number
of rows on that length alone: who else is in a microbatch, and in which order, changes no shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy
import torch

from stagger.errors import StaggerError
from stagger.models.microbatch import Microbatch
from stagger.models.settings import OnLong
from stagger.models.shapes import Shapes

#: What a row counts at least, in tokens: a document takes memory beside its text, and so does an empty one.
LEAST_WEIGHT = 64


class Piece(NamedTuple):
    """Tokens of a document, from `begin` to `end`, in a row. Those from `new` on are in no earlier piece."""

    begin: int
    end: int
    new: int


@dataclass(frozen=True)
class Pieces:
    """How documents are cut that have more than `max_length` tokens.

    window: into overlapping windows, each of which begins `stride` tokens behind the one before. Every token counts in
    the first window that holds it; so those of later windows have at least `max_length - stride` tokens before them.
    """

    max_length: int
    on_long: OnLong
    stride: int

    def of(self, length: int) -> list[Piece]:
        """The pieces of a document of `length` tokens. Raises StaggerError if it is too long."""
        first = Piece(0, min(length, self.max_length), 0)
        if length <= self.max_length or self.on_long == "truncate":
            return [first]
        if self.on_long == "fail":
            raise StaggerError(
                f"it has {length:,} tokens, more than max_length, which is {self.max_length:,}; choose on_long: window"
                " or truncate, or a larger max_length"
            )
        pieces = [first]
        while (done := pieces[-1].end) < length:
            begin = pieces[-1].begin + self.stride
            pieces.append(Piece(begin, min(begin + self.max_length, length), done))
        return pieces


@dataclass(frozen=True)
class Row:
    """A piece of a document, in a microbatch. `of` is whatever the caller knows the document by."""

    of: Any
    piece: Piece
    tokens: numpy.ndarray[Any, numpy.dtype[numpy.int64]]


@dataclass
class _Bucket:
    """Rows of one length that wait for others. `since`: the weight of all that had come when the first of them came."""

    since: int
    rows: list[Row] = field(default_factory=list)


class Batcher:
    """Gathers rows of one length, until a microbatch is full.

    Rows wait until `window` tokens of later ones have come. A larger window fills microbatches better, and takes more
    memory. What a microbatch holds is a function of the rows, in their order, alone.
    """

    def __init__(self, shapes: Shapes, window: int) -> None:
        self._shapes = shapes
        self._window = window
        self._weight = 0
        self._buckets: dict[int, _Bucket] = {}
        self._made = 0

    def add(self, row: Row) -> Iterator[tuple[Microbatch, Sequence[Row]]]:
        """Add a row. Yields the microbatches that go now, each with the rows of documents in it, in their order."""
        self._weight += max(LEAST_WEIGHT, len(row.tokens))
        length = self._shapes.length(len(row.tokens))
        bucket = self._buckets.setdefault(length, _Bucket(self._weight))
        bucket.rows.append(row)
        if len(bucket.rows) == self._shapes.rows(length):
            yield self._take(length)
        while self._buckets:
            oldest = min(self._buckets, key=lambda one: self._buckets[one].since)
            if self._weight - self._buckets[oldest].since < self._window:
                return
            yield self._take(oldest)

    def rest(self) -> Iterator[tuple[Microbatch, Sequence[Row]]]:
        """The microbatches of all rows that still wait."""
        while self._buckets:
            yield self._take(min(self._buckets))

    def _take(self, length: int) -> tuple[Microbatch, Sequence[Row]]:
        rows = self._buckets.pop(length).rows
        tokens = torch.zeros((self._shapes.rows(length), length), dtype=torch.int64)
        for number, row in enumerate(rows):
            tokens[number, : len(row.tokens)] = torch.from_numpy(row.tokens)
        lengths = tuple(len(row.tokens) for row in rows) + (0,) * (len(tokens) - len(rows))
        self._made += 1
        return Microbatch(self._made - 1, tokens, lengths), rows
