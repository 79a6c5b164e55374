"""Documents pass a model: they go in, and come out in the same order, with what the model made of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

import numpy
import torch

from stagger.errors import StaggerError
from stagger.models.batches import Batcher, Piece, Pieces, Row
from stagger.models.engine import Engine
from stagger.models.microbatch import Microbatch
from stagger.models.shapes import Shapes
from stagger.pipeline import Document, count

#: A text's tokens: int64 [tokens].
Tokenize = Callable[[str], numpy.ndarray[Any, numpy.dtype[numpy.int64]]]


class Work(Protocol):
    """What a step wants of the hidden states.

    layers: whose states it wants, as for `Engine.run`. fewest: documents of fewer tokens do not pass the model.
    """

    @property
    def layers(self) -> Collection[int]: ...

    @property
    def fewest(self) -> int: ...

    def kept(self, batch: Microbatch, layer: int, hidden: torch.Tensor, pieces: Sequence[Piece]) -> list[Any]:
        """What is kept of a layer's states [rows, length, hidden], for each of the pieces in the first rows."""

    def put(self, document: Document, tokens: int, found: Sequence[dict[int, Any]]) -> None:
        """Add the results to a document of `tokens` tokens: `found` has, for each piece, what was kept by layer."""


@dataclass
class Held:
    """A document on its way: its number of tokens, the pieces that are missing yet, and what was kept of each."""

    document: Document
    tokens: int
    missing: int
    found: list[dict[int, Any]] = field(default_factory=list)


@dataclass
class Passage:
    """Takes documents through an engine.

    pieces, shapes, window: how they become microbatches (batches.py).
    vocabulary: one more than the largest token that the model has.
    """

    engine: Engine
    tokenize: Tokenize
    work: Work
    pieces: Pieces
    shapes: Shapes
    window: int
    vocabulary: int

    def __post_init__(self) -> None:
        self._held: deque[Held] = deque()
        self._rows: dict[int, Sequence[Row]] = {}

    def run(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The documents with their results. Raises StaggerError, naming the document, for one that cannot pass."""
        microbatches = self._microbatches(documents)
        first = next(microbatches, None)
        passes = () if first is None else self.engine.run(chain((first,), microbatches), self.work.layers, self._kept)
        for batch, found in passes:
            for number, row in enumerate(self._rows.pop(batch.number)):
                held, piece = row.of
                held.found[piece] = {layer: kept[number] for layer, kept in found.items()}
                held.missing -= 1
            yield from self._complete()
        yield from self._complete()

    def _kept(self, batch: Microbatch, layer: int, hidden: torch.Tensor) -> list[Any]:
        return self.work.kept(batch, layer, hidden, [row.piece for row in self._rows[batch.number]])

    def _complete(self) -> Iterator[Document]:
        """The documents that are complete, up to the first that is not."""
        while self._held and not self._held[0].missing:
            held = self._held.popleft()
            self.work.put(held.document, held.tokens, held.found)
            yield held.document

    def _microbatches(self, documents: Iterable[Document]) -> Iterator[Microbatch]:
        batcher = Batcher(self.shapes, self.window)
        for document in documents:
            for batch, rows in chain.from_iterable(map(batcher.add, self._enter(document))):
                yield self._counted(batch, rows)
        for batch, rows in batcher.rest():
            yield self._counted(batch, rows)

    def _counted(self, batch: Microbatch, rows: Sequence[Row]) -> Microbatch:
        count("places", batch.tokens.numel())
        self._rows[batch.number] = rows
        return batch

    def _enter(self, document: Document) -> list[Row]:
        """The rows of a document, which is held from now on."""
        tokens = self._tokens_of(document)
        if len(tokens) < self.work.fewest:
            self._held.append(Held(document, len(tokens), 0))
            return []
        try:
            pieces = self.pieces.of(len(tokens))
        except StaggerError as error:
            raise StaggerError(f"The document {document.id!r} is too long: {error}.") from None
        if len(pieces) > 1:
            count("windows", len(pieces))
        elif pieces[0].end < len(tokens):
            count("truncated")
            tokens = tokens[: pieces[0].end]
        held = Held(document, len(tokens), len(pieces), [{} for _ in pieces])
        self._held.append(held)
        return [Row((held, number), piece, tokens[piece.begin : piece.end]) for number, piece in enumerate(pieces)]

    def _tokens_of(self, document: Document) -> numpy.ndarray[Any, numpy.dtype[numpy.int64]]:
        text: Any = document.text
        if not isinstance(text, str):
            raise StaggerError(
                f"The text of the document {document.id!r} is not a string, but {type(text).__name__}; correct the"
                " reader or the step that made it."
            )
        try:
            tokens = self.tokenize(text)
        except UnicodeError as error:
            raise StaggerError(
                f"The text of the document {document.id!r} is not valid Unicode ({error}); correct the step that made"
                " it."
            ) from error
        if len(tokens) and int(tokens.max()) >= self.vocabulary:
            raise StaggerError(
                f"The tokenizer makes the token {int(tokens.max())} of the document {document.id!r}, but the model has"
                f" the tokens 0 to {self.vocabulary - 1}: give the tokenizer of this model."
            )
        return tokens
