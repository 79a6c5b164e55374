"""The digests of a stage's shards, which decide whether a launch goes on with what an earlier one has done."""

from __future__ import annotations

import tracemalloc

import pytest

from stagger.pipeline import Shard
from stagger.pipeline.shard_table import ShardTable
from stagger.plan.stage_plan import digests
from stagger.storage import MTIME


def table(count: int, versions: str, start: str = "") -> ShardTable:
    return ShardTable(Shard(f"{start}{number:06d}", number, f"{versions}{number}") for number in range(count))


def test_a_file_that_was_only_touched_has_another_time_and_the_same_content() -> None:
    content, times = digests(table(3000, f"{MTIME}1"))
    again, later = digests(table(3000, f"{MTIME}2"))
    assert again == content
    assert times
    assert later != times
    assert digests(table(3001, f"{MTIME}1"))[0] != content
    assert digests(table(3000, f"{MTIME}1", "other-"))[0] != content


def test_the_version_of_an_object_is_part_of_its_content() -> None:
    one, other = digests(table(3000, "etag-a")), digests(table(3000, "etag-b"))
    assert one[0] != other[0]
    assert one[1] == other[1] == ""


@pytest.mark.parametrize("versions", [MTIME, "etag"])
def test_the_shards_are_never_all_objects_at_once(versions: str) -> None:
    shards = table(50_000, versions)
    tracemalloc.start()
    try:
        digests(shards)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000
