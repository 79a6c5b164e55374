"""A failing step fails only its rank, which is reported and can be rerun."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import Cli, PipelineFiles, contents, output_ids
from tests.kit.runs import EVERYTHING, counts, status


def test_a_failing_rank_stops_no_other_and_is_found(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    file = pipeline_file(steps=({"my_steps:fail_on": {"ranks": [1, 3], "flag": str(flag)}},), tasks=6)
    ran = cli("launch", file, check=1)
    assert f"2 ranks of {tmp_path}/run failed" in ran.err
    assert "stagger logs" in ran.err
    assert "stagger retry" in ran.err
    assert sorted(contents(tmp_path / "run-output")) == [f"{rank:05d}.jsonl.zst" for rank in (0, 2, 4, 5)]
    stage = status(cli, tmp_path / "run")
    assert counts(stage) == (4, 2, 0, 0)
    assert stage["failed_ranks"] == [1, 3]
    assert stage["reasons"] == {"ValueError in my_steps:fail_on": 2}
    assert json.loads((tmp_path / "run" / "stats.json").read_text())["missing_ranks"] == "1,3"
    failure = json.loads((tmp_path / "run" / "failures" / "00003.1.json").read_text())
    assert failure["error"] == "ValueError in my_steps:fail_on: rank 3 cannot go on"
    assert "Traceback" in failure["traceback"]
    logs = cli("logs", tmp_path / "run", "--failed", check=0).out
    assert "rank 1: ValueError in my_steps:fail_on: rank 1 cannot go on" in logs

    flag.touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    cli.folder = elsewhere
    cli("retry", tmp_path / "run", check=0)
    assert output_ids(tmp_path / "run-output") == EVERYTHING
    attempts = [json.loads(data)["attempt"] for data in contents(tmp_path / "run" / "completions").values()]
    assert attempts == ["1", "2", "1", "2", "1", "1"]
    assert (tmp_path / "run" / "logs" / "00001" / "1.log").exists()
    assert counts(status(cli, tmp_path / "run")) == (6, 0, 0, 0)


def test_an_error_that_a_step_swallows_fails_the_rank_all_the_same(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, shards: Path
) -> None:
    whole = (shards / "shard-01.jsonl.gz").read_bytes()
    (shards / "shard-01.jsonl.gz").write_bytes(whole[:-20])
    cli("launch", pipeline_file(steps=("my_steps:swallow",)), check=1)
    assert status(cli, tmp_path / "run")["failed_ranks"] == [1]
    assert not (tmp_path / "run-output" / "00001.jsonl.zst").exists()
    assert "truncated" in cli("logs", tmp_path / "run", "--failed").out
