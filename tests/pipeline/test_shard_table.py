"""A table of shards is the list of them, whatever their names."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stagger.errors import StaggerError
from stagger.pipeline import Shard
from stagger.pipeline.shard_table import AT_ONCE, RankShards, ShardTable
from stagger.storage import Files

#: Names with any character that UTF-8 can hold: NUL, line ends, separators, and those beyond 16 bits.
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    ["", "\0", "\n", "a\0b", "a\nb", "é" * 512, "\uffff", "\U0001f600", "\U0010ffff", "x" * 1024, "/", '"', "\\"]
)
shard_lists = st.lists(st.builds(Shard, names, st.integers(-1, 2**62), names), max_size=12)


@given(shard_lists, st.data())
@example([Shard("\uffff", 1), Shard("\U00010000", 2)], None)
def test_it_is_a_sequence_of_its_shards(shards: list[Shard], data: st.DataObject | None) -> None:
    table = ShardTable(shards)
    assert (len(table), list(table), table[:]) == (len(shards), shards, shards)
    assert all(type(shard) is Shard for shard in table)
    if data is not None and shards:
        place = data.draw(st.integers(-len(shards), len(shards) - 1))
        some = data.draw(st.slices(len(shards)))
        assert (table[place], table[some]) == (shards[place], shards[some])
        assert table.index(shards[place]) == shards.index(shards[place])


@given(shard_lists)
def test_it_is_put_in_the_order_of_utf_8(shards: list[Shard]) -> None:
    table = ShardTable(shards).in_order()
    assert list(table) == sorted(shards)
    assert [shard.name for shard in table] == sorted((shard.name for shard in shards), key=str.encode)


@given(st.lists(shard_lists, max_size=6))
def test_parts_of_a_listing_are_put_together(parts: list[list[Shard]]) -> None:
    table = ShardTable()
    for part in parts:
        table.add(Files.of(sorted(part)))
    assert list(table) == [shard for part in parts for shard in sorted(part)]
    assert list(table.in_order()) == sorted(shard for part in parts for shard in part)


@given(shard_lists, st.integers(1, 5), st.data())
def test_the_shards_of_ranks_are_rows_of_it(shards: list[Shard], tasks: int, data: st.DataObject) -> None:
    table = ShardTable(shards)
    rows = [range(rank, len(shards), tasks) for rank in range(tasks)]
    ranks = RankShards(table, rows)
    assert list(ranks) == [shards[rank::tasks] for rank in range(tasks)]
    assert ranks.idle == sum(not shards[rank::tasks] for rank in range(tasks))
    some = data.draw(st.slices(tasks))
    assert ranks[some] == [shards[rank::tasks] for rank in range(tasks)][some]


def test_many_rows_are_passed_through_a_part_at_a_time() -> None:
    shards = [Shard(f"{number:05d}", number) for number in range(2 * AT_ONCE + 1)]
    table = ShardTable(iter(shards))
    assert list(table) == shards
    assert [len(part.names) for part in table.parts()] == [AT_ONCE, AT_ONCE, 1]
    assert list(ShardTable([*shards[7:], *shards[:7]]).in_order()) == shards


def test_a_name_that_is_not_utf_8_is_refused_and_shown() -> None:
    table = ShardTable([Shard("a", 1)])
    with pytest.raises(StaggerError, match=r"The name of the input 'b\\udcff' is not UTF-8; rename it."):
        table.add(Files(["ä", "b\udcff", "c"], [1, 2, 3], ["", "", ""]))
    assert list(table) == [Shard("a", 1)]
