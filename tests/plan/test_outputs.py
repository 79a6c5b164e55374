"""Outputs that would replace one another, or an input, are found at launch, without holding all their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagger.errors import StaggerError
from stagger.pipeline import Shard
from stagger.pipeline.shard_table import RankShards, ShardTable
from stagger.plan.step_checks import check_outputs


@dataclass
class Reads:
    folder: str
    input_folder: str = ""

    def path_of(self, shard: Shard) -> str:
        return f"{self.folder}/{shard.name}"


@dataclass
class Writes:
    paths: list[str]

    def planned_outputs(self, ranks: Sequence[Sequence[Shard]]) -> Iterator[tuple[str, str]]:
        yield from ((path, f"part {number} of {len(ranks)}") for number, path in enumerate(self.paths))


paths = st.lists(st.sampled_from(["/a", "/b", "s3://c/d"]) | st.text("ab/", max_size=4).map("/{}".format), max_size=6)


@given(
    paths, paths, st.lists(st.text("ab", min_size=1, max_size=2), max_size=5, unique=True), st.sampled_from(["/a", ""])
)
def test_it_is_refused_if_and_only_if_paths_meet(
    first: list[str], second: list[str], names: list[str], folder: str
) -> None:
    table = ShardTable(Shard(name, 1) for name in names)
    ranks = RankShards(table, [range(len(table))])
    outputs = first + second
    inputs = {f"/a/{name}" for name in names}
    meet = len(set(outputs)) < len(outputs) or not inputs.isdisjoint(outputs)
    meet = meet or any(path.rpartition("/")[0] in outputs for path in outputs)
    readers: list[Any] = [Reads("/a", folder)]
    writers: list[Any] = [Writes(first), Writes(second)]
    if meet:
        with pytest.raises(StaggerError, match="would"):
            check_outputs(ranks, readers, writers)
    else:
        assert check_outputs(ranks, readers, writers) == sum(path.startswith("s3:") for path in outputs)


def test_hashes_that_meet_by_chance_refuse_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagger.plan.step_checks.hash", lambda path: 7, raising=False)
    ranks = RankShards(ShardTable([Shard("x", 1)]), [range(1)])
    writers: list[Any] = [Writes(["/out/a", "/out/b", "/in/y"])]
    readers: list[Any] = [Reads("/in")]
    assert check_outputs(ranks, readers, writers) == 0
