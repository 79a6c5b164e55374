"""The plan file: a task needs two reads, and any damage is an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stagger.errors import StaggerError
from stagger.pipeline import Shard
from stagger.pipeline.shard_table import ShardTable
from stagger.plan.sharding import assign
from stagger.rundir.plan_file import read_all, read_rank, write_plan
from stagger.storage.storage import Storage
from tests.pipeline.test_shard_table import shard_lists


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
    shards = ShardTable(Shard(f"näme \n{i}", i * 10) for i in range(2500))
    path = tmp_path / "plan"
    write_plan(Storage(), str(path), "stage", "f00d", STEPS, assign(shards, 100, "count"))
    return path


def test_a_task_needs_two_range_reads(plan: Path) -> None:
    storage = CountingStorage()
    mine = read_rank(storage, str(plan), "f00d", 42)
    assert (mine.stage, mine.rank, mine.world_size, mine.steps) == ("stage", 42, 100, STEPS)
    assert [shard.size for shard in mine.shards] == list(range(420, 25000, 1000))
    assert len(storage.reads) == 2
    assert storage.reads[0] == 16


def test_all_ranks_can_be_read_back(plan: Path) -> None:
    ranks = list(read_all(Storage(), str(plan)))
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


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shard_lists, st.integers(1, 9))
def test_what_was_planned_is_read_whatever_the_names(tmp_path: Path, shards: list[Shard], tasks: int) -> None:
    path = str(tmp_path / "any")
    write_plan(Storage(), path, "stage", "f00d", STEPS, assign(ShardTable(shards), tasks, "count"))
    wanted = [shards[rank::tasks] for rank in range(tasks)]
    assert [one.shards for one in read_all(Storage(), path)] == wanted
    assert [read_rank(Storage(), path, "f00d", rank).shards for rank in range(tasks)] == wanted
