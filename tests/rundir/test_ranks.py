"""Sets of ranks as text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stagger.ranks import format_ranks, parse_ranks


@given(st.sets(st.integers(0, 3000)))
def test_ranks_survive_being_written(ranks: set[int]) -> None:
    assert parse_ranks(format_ranks(ranks)) == sorted(ranks)
