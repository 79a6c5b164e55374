"""Outputs committed per shard: the next attempt resumes after the last committed shard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli, PipelineFiles, contents
from tests.kit.runs import completions, counts, status

BY_SHARD: dict[str, Any] = {"commit": "shard", "tasks": 2, "writer": {"filename": "{stem}.jsonl"}}


def visible(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if not name.startswith(".")}


def interrupted(cli: Cli, files: PipelineFiles, folder: Path) -> Path:
    """Launch a run whose ranks fail at their fourth and third shard. Returns the file that stops them from failing."""
    flag = folder / "flag"
    steps = ({"my_steps:fail_from": {"first": 250, "flag": str(flag)}},)
    cli("launch", files(steps=steps, **BY_SHARD), check=1)
    assert counts(status(cli, folder / "run")) == (0, 2, 0, 0)
    assert sorted(visible(folder / "run-output")) == [f"shard-{index:02d}.jsonl.zst" for index in range(5)]
    return flag


def test_the_next_attempt_goes_on_after_the_last_committed_shard(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    flag = interrupted(cli, pipeline_file, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run-output").iterdir()}
    flag.touch()
    cli("retry", tmp_path / "run", check=0)
    assert {path: path.stat().st_mtime_ns for path in before} == before  # No output was rewritten.
    cli("launch", pipeline_file("undisturbed", **BY_SHARD), check=0)
    assert visible(tmp_path / "run-output") == visible(tmp_path / "undisturbed-output")
    for rank, (record, other) in enumerate(
        zip(completions(tmp_path / "run"), completions(tmp_path / "undisturbed"), strict=True)
    ):
        for key in ("shards", "records_in", "records_out", "bytes_in", "bytes_out"):
            assert record[key] == other[key], (rank, key)
        assert [output["records"] for output in record["outputs"]] == [50] * 6
        assert [step["records"] for step in record["steps"]] == [300, 300, 300]
    log = (tmp_path / "run" / "logs" / "00000" / "2.log").read_text()
    assert "resumes after 3 shards, committed by attempt 1" in log


def test_a_rank_whose_committed_output_is_gone_starts_over(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    interrupted(cli, pipeline_file, tmp_path).touch()
    (tmp_path / "run-output" / "shard-02.jsonl.zst").unlink()
    cli("retry", tmp_path / "run", check=0)
    assert "is gone or changed; the rank starts over" in (tmp_path / "run" / "logs" / "00000" / "2.log").read_text()
    assert sorted(visible(tmp_path / "run-output")) == [f"shard-{index:02d}.jsonl.zst" for index in range(12)]
    assert [record["records_out"] for record in completions(tmp_path / "run")] == [300, 300]


def test_progress_that_is_damaged_is_said(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    interrupted(cli, pipeline_file, tmp_path).touch()
    (tmp_path / "run" / "progress" / "00001.json").write_text("{")
    cli("retry", tmp_path / "run", check=1)
    assert "00001.json is damaged" in cli("logs", tmp_path / "run", "--failed").out
    assert counts(status(cli, tmp_path / "run")) == (1, 1, 0, 0)


def test_without_an_output_for_each_shard_it_is_refused(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    ran = cli("launch", pipeline_file(commit="shard"), check=2)
    assert "commit: shard needs an output for each shard: put {stem} into the filename" in ran.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"shards": "x"},
        {"shards": -1},
        {"shards": 99},
        {"outputs": 5},
        {"outputs": [{"path": 3, "bytes": 1, "records": 1}]},
        {"steps": []},
        {"bad_records": {"skipped": {"x": "y"}, "examples": []}},
        {"attempt": None},
    ],
    ids=str,
)
def test_progress_with_an_odd_value_is_named(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, change: dict[str, Any]
) -> None:
    interrupted(cli, pipeline_file, tmp_path).touch()
    path = tmp_path / "run" / "progress" / "00001.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    cli("retry", tmp_path / "run", check=1)
    assert f"{path} is damaged" in cli("logs", tmp_path / "run", "--failed").out


@pytest.fixture
def paged(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> Path:
    """A run of one rank that failed at shard 230 of 250. Its progress record has two pages of a hundred outputs."""
    (tmp_path / "many").mkdir()
    for shard in range(250):
        (tmp_path / "many" / f"{shard:03d}.jsonl").write_text(json.dumps({"text": "x", "id": f"doc-{shard}"}) + "\n")
    steps = ({"my_steps:fail_from": {"first": 230, "flag": str(tmp_path / "flag")}},)
    cli("launch", pipeline_file(steps=steps, **{**BY_SHARD, "tasks": 1}, source=str(tmp_path / "many")), check=1)
    return tmp_path / "run"


def test_of_many_shards_each_is_recorded_once_and_all_are_in_the_end(cli: Cli, paged: Path) -> None:
    progress = sorted((paged / "progress").iterdir())
    assert [path.name for path in progress] == ["00000.1.1.json", "00000.1.2.json", "00000.json"]
    listed = [[Path(one["path"]).name for one in json.loads(path.read_text())["outputs"]] for path in progress]
    assert [len(some) for some in listed] == [100, 100, 30]
    assert [name for some in listed for name in some] == [f"{shard:03d}.jsonl.zst" for shard in range(230)]
    (paged.parent / "flag").touch()
    cli("retry", paged, check=0)
    (record,) = completions(paged)
    assert [Path(one["path"]).name for one in record["outputs"]] == [f"{shard:03d}.jsonl.zst" for shard in range(250)]
    assert (record["shards"], record["records_out"]) == (250, 250)
    assert record["bytes_out"] == sum(path.stat().st_size for path in (paged.parent / "run-output").iterdir())
    assert "resumes after 230 shards" in (paged / "logs" / "00000" / "2.log").read_text()
    cli("launch", paged.parent / "run.yaml", "--fresh", "--yes", check=0)
    assert not list((paged / "progress").glob("00000.1.*"))


@pytest.mark.parametrize("damage", ["gone", "{", '{"outputs": []}', '{"outputs": [{}]}'])
def test_a_page_that_is_damaged_is_named_and_nothing_is_done(cli: Cli, paged: Path, damage: str) -> None:
    page = paged / "progress" / "00000.1.1.json"
    page.unlink() if damage == "gone" else page.write_text(damage)
    (paged.parent / "flag").touch()
    cli("retry", paged, check=1)
    said = cli("logs", paged, "--failed").out
    assert f"{paged / 'progress' / '00000'}" in said
    assert "is damaged" in said
    assert counts(status(cli, paged)) == (0, 1, 0, 0)
