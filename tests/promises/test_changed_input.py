"""Pipelines, inputs and outputs that change between launches are rejected, or fail their ranks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli, PipelineFiles, contents, output_ids
from tests.kit.runs import EVERYTHING, status


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tasks": 5}, "tasks: 4 before, 5 now"),
        ({"shard_by": "bytes"}, "shard_by: count before, bytes now"),
        ({"steps": ({"my_steps:Upper": {"suffix": "!"}},)}, "steps: 2 before, 3 now"),
        ({"compression": "gzip"}, "compression='zstd'.* before, write_jsonl.*compression='gzip'.* now"),
    ],
)
def test_another_pipeline_in_the_same_run_directory_is_refused(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    import re

    cli("launch", pipeline_file(), check=0)
    before = contents(tmp_path / "run" / "completions")
    err = cli("launch", pipeline_file(**change), check=2).err
    assert re.search(said, err)
    assert "new run_dir" in err
    assert contents(tmp_path / "run" / "completions") == before


def test_changed_input_is_refused_and_retry_goes_on_with_the_old(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, shards: Path
) -> None:
    file = pipeline_file()
    cli("launch", file, "--limit", 2, check=0)
    (shards / "new.jsonl").write_text('{"text": "new", "id": "new"}\n')
    assert "input: new.jsonl is new" in cli("launch", file, check=2).err
    cli("retry", tmp_path / "run", check=0)
    assert output_ids(tmp_path / "run-output") == EVERYTHING


def test_a_shard_that_changed_since_the_plan_fails_its_rank(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, shards: Path
) -> None:
    file = pipeline_file()
    cli("launch", file, "--limit", 1, check=0)
    with (shards / "shard-06.jsonl").open("a") as shard:
        shard.write('{"text": "late", "id": "late"}\n')
    (shards / "shard-03.jsonl").unlink()
    cli("retry", tmp_path / "run", check=1)
    assert status(cli, tmp_path / "run")["failed_ranks"] == [2, 3]
    logs = cli("logs", tmp_path / "run", "--failed", check=0).out
    assert "shard-06.jsonl has changed" in logs
    assert "shard-03.jsonl is gone" in logs


def test_outputs_that_vanished_are_never_passed_over(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    file = pipeline_file()
    cli("launch", file, check=0)
    (tmp_path / "run-output" / "00001.jsonl.zst").unlink()
    with (tmp_path / "run-output" / "00002.jsonl.zst").open("ab") as output:
        output.write(b"x")
    for command in (("launch", file), ("retry", tmp_path / "run")):
        err = cli(*command, check=1).err
        assert "2 of the output files of completed ranks are missing or changed" in err
        assert "run-output/00001.jsonl.zst" in err
    for rank in (1, 2):
        (tmp_path / "run" / "completions" / f"{rank:05d}.json").unlink()
    cli("launch", file, check=0)
    assert output_ids(tmp_path / "run-output") == EVERYTHING


def replace(shard: Path) -> None:
    """Replace a shard by another file of the same size."""
    shard.with_suffix(".new").write_bytes(shard.read_bytes().replace(b"document", b"DOCUMENT"))
    os.replace(shard.with_suffix(".new"), shard)


def test_a_shard_replaced_by_one_of_the_same_size_fails_its_rank_until_the_next_launch(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, shards: Path
) -> None:
    file = pipeline_file()
    cli("launch", file, "--limit", 1, check=0)
    os.utime(shards / "shard-03.jsonl", ns=(1, 1))
    replace(shards / "shard-06.jsonl")
    cli("retry", tmp_path / "run", check=1)
    assert status(cli, tmp_path / "run")["failed_ranks"] == [2, 3]
    logs = cli("logs", tmp_path / "run", "--failed", check=0).out
    assert "shard-06.jsonl, record 1, byte 0: the file has been replaced or modified since the plan was made" in logs
    err = cli("launch", file).err
    assert "2 input files have the same size as when the run was planned, but were replaced or modified since" in err
    assert "shard-03.jsonl, ..." in err
    assert "are done and have read" not in err
    assert status(cli, tmp_path / "run")["done"] == 4


def test_a_done_rank_whose_input_was_touched_is_named_once_and_not_run_again(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, shards: Path
) -> None:
    file = pipeline_file()
    cli("launch", file, check=0)
    before = contents(tmp_path / "run" / "completions")
    (shards / "shard-00.jsonl").touch()
    assert "Rank 0 is done and has read the earlier ones" in cli("launch", file, check=0).err
    assert "modified since" not in cli("launch", file, check=0).err
    assert contents(tmp_path / "run" / "completions") == before
