"""A stage reads the recorded outputs of the stages ahead, and whatever has other names."""

from __future__ import annotations

import pytest

from stagger.pipeline import Shard
from stagger.pipeline.shard_table import ShardTable
from stagger.plan.upstream import Upstream, recorded_only
from stagger.rundir.output_names import OutputNames
from stagger.steps.jsonl import WriteJsonl

FIRST = Upstream("first", [OutputNames("/out", ["{rank}.jsonl"])], ["/out/00000.jsonl"])
STEMS = Upstream("stems", [OutputNames("/out", ["{stem}.jsonl"])], ["/out/en/a.jsonl"])


@pytest.mark.parametrize(
    ("upstream", "names", "kept"),
    [
        ([FIRST], ["00000.jsonl", "00001.jsonl"], ["00000.jsonl"]),
        ([FIRST], ["more.jsonl", "00001.jsonl", "1.jsonl"], ["more.jsonl", "1.jsonl"]),
        ([FIRST], ["en/00001.jsonl"], ["en/00001.jsonl"]),
        ([STEMS], ["en/a.jsonl", "en/b.jsonl", "a.jsonl", "a.txt"], ["en/a.jsonl", "a.txt"]),
        ([FIRST, STEMS], ["00000.jsonl", "en/a.jsonl", "00001.jsonl"], ["00000.jsonl", "en/a.jsonl"]),
        ([], ["00001.jsonl"], ["00001.jsonl"]),
    ],
)
def test_what_is_kept(upstream: list[Upstream], names: list[str], kept: list[str]) -> None:
    shards = ShardTable(Shard(name, 1) for name in names)
    found, foreign = recorded_only(shards, lambda shard: f"/out/{shard.name}", upstream)
    assert [shard.name for shard in found] == kept
    assert {path for path, _ in foreign} == {f"/out/{name}" for name in names} - {f"/out/{name}" for name in kept}


@pytest.mark.parametrize(
    ("writer", "fits", "others"),
    [
        ({}, ["00000.jsonl.zst", "100000.jsonl", "00001.jsonl.gz", "00001-00002.jsonl.zst"], ["a.jsonl", "0001.jsonl"]),
        ({"filename": "a-{rank}.jsonl"}, ["a-00000.jsonl.zst"], ["b-00000.jsonl.zst", "00000.jsonl.zst"]),
        ({"filename": "{rank}-{part}.txt", "max_bytes": 9}, ["00000-00007.txt", "00000.txt.gz"], ["00000-7.txt"]),
        ({"filename": "p{part}-{rank}.txt", "max_bytes": 9}, ["p00000-00007.txt.zst"], ["p-00007.txt", "00007.txt"]),
        ({"filename": "{stem}.jsonl"}, ["a.jsonl.zst", "en/_y=1/a.jsonl"], [".a.jsonl", "en/_a.jsonl", "a.jsonl.bz2"]),
        ({"filename": "all.jsonl"}, ["all.jsonl.zst", "all-00000.jsonl"], ["xall.jsonl", "allxjsonl"]),
    ],
)
def test_the_names_of_a_writers_files(writer: dict[str, object], fits: list[str], others: list[str]) -> None:
    names = OutputNames("/out", WriteJsonl("/out", **writer).output_names)  # type: ignore[arg-type]
    assert [name for name in (*fits, *others) if names.fits(name)] == fits
