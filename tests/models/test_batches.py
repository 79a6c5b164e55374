"""Microbatches: their shapes depend on each document alone, and every token counts once."""

from __future__ import annotations

from collections import Counter

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagger.errors import StaggerError
from stagger.models.batches import LEAST_WEIGHT, Batcher, Piece, Pieces, Row
from stagger.models.shapes import Shapes


def rows_of(lengths: list[int]) -> list[Row]:
    return [Row(number, Piece(0, length, 0), numpy.full(length, 1 + number)) for number, length in enumerate(lengths)]


LENGTHS = st.lists(st.integers(1, 300), max_size=60)


@given(LENGTHS, st.integers(1, 700), st.integers(0, 3000))
def test_each_row_is_in_one_microbatch_whose_shape_follows_from_its_length(
    lengths: list[int], tokens: int, window: int
) -> None:
    shapes = Shapes(tokens)
    batcher = Batcher(shapes, window)
    made = [pair for row in rows_of(lengths) for pair in batcher.add(row)] + list(batcher.rest())
    assert [batch.number for batch, _ in made] == list(range(len(made)))
    seen: Counter[int] = Counter()
    for batch, rows in made:
        length = shapes.length(len(rows[0].tokens))
        assert length % 64 == 0
        assert batch.tokens.shape == (max(1, tokens // length), length)
        assert batch.lengths == tuple(len(row.tokens) for row in rows) + (0,) * (len(batch.lengths) - len(rows))
        for number, row in enumerate(rows):
            seen[row.of] += 1
            assert shapes.length(len(row.tokens)) == length
            assert batch.tokens[number].tolist() == row.tokens.tolist() + [0] * (length - len(row.tokens))
    assert seen == Counter(range(len(lengths)))


@given(LENGTHS, st.integers(0, 3000))
def test_a_row_waits_for_no_more_than_the_window(lengths: list[int], window: int) -> None:
    batcher = Batcher(Shapes(1024), window)
    waiting: dict[int, int] = {}
    come = 0
    for row in rows_of(lengths):
        come += max(LEAST_WEIGHT, len(row.tokens))
        waiting[row.of] = come
        for _, gone in batcher.add(row):
            for one in gone:
                del waiting[one.of]
        assert all(come - since < window for since in waiting.values())


def test_the_length_of_a_row_is_never_beyond_the_positions_of_the_model() -> None:
    assert [Shapes(64, 100).length(tokens) for tokens in (1, 64, 65, 100)] == [64, 64, 100, 100]


@given(st.integers(1, 200), st.integers(2, 40), st.data())
def test_every_token_of_a_long_document_is_new_in_one_window_with_enough_before_it(
    length: int, most: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, most - 1))
    pieces = Pieces(most, "window", stride).of(length)
    assert [place for piece in pieces for place in range(piece.new, piece.end)] == list(range(length))
    assert all(piece.end - piece.begin <= most for piece in pieces)
    assert all(piece.new - piece.begin >= min(most - stride, piece.begin + 1) for piece in pieces[1:])


def test_long_documents_are_cut_or_refused() -> None:
    assert Pieces(10, "truncate", 5).of(25) == [Piece(0, 10, 0)]
    assert Pieces(10, "fail", 5).of(10) == [Piece(0, 10, 0)]
    with pytest.raises(StaggerError, match="it has 25 tokens, more than max_length, which is 10; choose on_long"):
        Pieces(10, "fail", 5).of(25)
