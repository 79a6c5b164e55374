"""Local runs: every document arrives once, whatever the steps do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Cli, PipelineFiles, contents, output_ids
from tests.kit.runs import EVERYTHING, counts, status


@pytest.mark.parametrize("shard_by", ["count", "bytes"])
@pytest.mark.parametrize("compression", ["zstd", "gzip", None])
def test_every_document_arrives_once(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, shard_by: str, compression: str | None
) -> None:
    file = pipeline_file(shard_by=shard_by, tasks=5, compression=compression)
    out = cli("launch", file, check=0).out
    assert f"The result is in {tmp_path}/run-output" in out
    assert output_ids(tmp_path / "run-output") == EVERYTHING
    suffix = {"zstd": ".zst", "gzip": ".gz", None: ""}[compression]
    assert sorted(contents(tmp_path / "run-output")) == [f"{rank:05d}.jsonl{suffix}" for rank in range(5)]
    stage = status(cli, tmp_path / "run")
    assert counts(stage) == (5, 0, 0, 0)
    assert (stage["records_in"], stage["records_out"]) == (600, 600)
    assert stage["bytes_out"] == sum(map(len, contents(tmp_path / "run-output").values()))


def test_what_is_done_is_not_run_again(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    file = pipeline_file()
    cli("launch", file, "--limit", 2, check=0)
    assert counts(status(cli, tmp_path / "run")) == (2, 0, 0, 2)
    before = contents(tmp_path / "run" / "completions")
    cli("launch", file, check=0)
    after = contents(tmp_path / "run" / "completions")
    assert {name: after[name] for name in before} == before
    assert len(after) == 4
    cli("launch", file, check=0)
    assert not (tmp_path / "run" / "launches" / "3").exists()
    assert contents(tmp_path / "run" / "completions") == after


def test_a_source_without_shards(cli: Cli, tmp_path: Path, pipeline_file: PipelineFiles) -> None:
    steps = [{"my_steps:numbers": {"count": 3}}, {"write_jsonl": {"path": "relative"}}]
    content = {"name": "n", "run_dir": "r", "tasks": 2, "pipeline": steps}
    (tmp_path / "n.yaml").write_text(json.dumps(content))
    cli("launch", "n.yaml", "--limit", 1, check=0)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    cli.folder = elsewhere
    cli("retry", tmp_path / "r", check=0)
    assert output_ids(tmp_path / "relative") == ["0-0", "0-1", "0-2", "1-0", "1-1", "1-2"]


def test_a_sink_that_returns_nothing_leaves_nothing_unread(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    (tmp_path / "sink.py").write_text("def sink(data, rank, world_size):\n    pass\n")
    file = pipeline_file()
    content = json.loads(file.read_text())
    content["pipeline"].append("sink:sink")
    file.write_text(json.dumps(content))
    cli("launch", file, check=0)
    assert output_ids(tmp_path / "run-output") == EVERYTHING


def test_a_step_that_goes_to_another_folder_takes_no_output_along(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    (tmp_path / "go.py").write_text(
        "import os\ndef go(data, rank, world_size):\n    os.chdir('/')\n    yield from data\n"
    )
    file = pipeline_file(steps=("go:go",), output="relative", executor={"type": "local", "workers": 1})
    cli("launch", file, check=0)
    assert output_ids(tmp_path / "relative") == EVERYTHING
