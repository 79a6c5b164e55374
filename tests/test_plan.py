"""Sharding, and the plan file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagger.errors import StaggerError
from stagger.pipeline.document import Shard, ShardBy
from stagger.plan.sharding import assign
from stagger.ranks import format_ranks, parse_ranks
from stagger.rundir.plan_file import encode_plan, read_all, read_rank
from stagger.storage.storage import Storage

sizes = st.lists(st.integers(0, 10**12), max_size=60)


@given(sizes, st.integers(1, 20), st.sampled_from(["count", "bytes"]))
def test_every_shard_goes_to_exactly_one_rank(sizes: list[int], tasks: int, shard_by: ShardBy) -> None:
    shards = [Shard(f"{i:03d}", size) for i, size in enumerate(sizes)]
    ranks = assign(shards, tasks, shard_by)
    assert len(ranks) == tasks
    assert sorted(shard for rank in ranks for shard in rank) == shards
    assert all(rank == sorted(rank) for rank in ranks)


@given(sizes.filter(any), st.integers(1, 20))
def test_bytes_are_evened_out(sizes: list[int], tasks: int) -> None:
    """Graham's bound, against the two things that no assignment can beat."""
    ranks = assign([Shard(f"{i:03d}", size) for i, size in enumerate(sizes)], tasks, "bytes")
    fullest = max(sum(shard.size for shard in rank) for rank in ranks)
    largest = sorted(sizes, reverse=True)
    pair = largest[tasks - 1] + largest[tasks] if len(largest) > tasks else 0
    assert fullest <= (4 / 3) * max(sum(sizes) / tasks, largest[0], pair) + sum(sizes) / tasks * 1e-9 + largest[0] / 3


def test_round_robin_is_datatroves_rule() -> None:
    shards = [Shard(name, 1) for name in "abcdefg"]
    assert [[s.name for s in rank] for rank in assign(shards, 3, "count")] == [list("adg"), list("be"), list("cf")]


@given(st.sets(st.integers(0, 3000)))
def test_ranks_survive_being_written(ranks: set[int]) -> None:
    assert parse_ranks(format_ranks(ranks)) == sorted(ranks)


class CountingStorage(Storage):
    def __init__(self) -> None:
        super().__init__()
        self.reads: list[int] = []

    def read_range(self, path: str, start: int, end: int) -> bytes:
        self.reads.append(end - start)
        return super().read_range(path, start, end)

    def read(self, path: str) -> bytes:
        raise AssertionError("a task never reads the whole plan")


STEPS = [{"use": "read_jsonl", "params": {"path": "/data"}}]


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    shards = [Shard(f"näme \n{i}", i * 10) for i in range(2500)]
    path = tmp_path / "plan"
    path.write_bytes(encode_plan("stage", "f00d", STEPS, assign(shards, 100, "count")))
    return path


def test_a_task_needs_two_range_reads(plan: Path) -> None:
    storage = CountingStorage()
    mine = read_rank(storage, str(plan), "f00d", 42)
    assert (mine.stage, mine.rank, mine.world_size, mine.steps) == ("stage", 42, 100, STEPS)
    assert [shard.size for shard in mine.shards] == list(range(420, 25000, 1000))
    assert len(storage.reads) == 2
    assert storage.reads[0] == 16


def test_all_ranks_can_be_read_back(plan: Path) -> None:
    ranks = read_all(Storage(), str(plan))
    assert [rank.rank for rank in ranks] == list(range(100))
    assert sum(len(rank.shards) for rank in ranks) == 2500


def test_a_damaged_plan_is_refused_and_named(plan: Path) -> None:
    whole = plan.read_bytes()
    for damage in (whole[:-3], whole[:20], b"", whole[:24] + b"\xff" * 16 + whole[40:], whole[:-9] + bytes(9)):
        plan.write_bytes(damage)
        rank = 0 if len(damage) == len(whole) and damage[24:40] != whole[24:40] else 99
        with pytest.raises(StaggerError, match=r"plan .*/plan is damaged .*launch the pipeline again"):
            read_rank(Storage(), str(plan), "f00d", rank)


def test_a_plan_of_another_run_is_refused(plan: Path) -> None:
    with pytest.raises(StaggerError, match=r"found rank 3 of f00d in place of rank 3 of beef"):
        read_rank(Storage(), str(plan), "beef", 3)


def test_a_rank_beyond_the_plan_is_refused(plan: Path) -> None:
    with pytest.raises(StaggerError, match="is damaged"):
        read_rank(Storage(), str(plan), "f00d", 100)


def test_a_missing_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(StaggerError, match=r"plan .*/nothing is missing"):
        read_rank(Storage(), str(tmp_path / "nothing"), "f00d", 0)
