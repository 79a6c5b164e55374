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
    why = "ValueError in my_steps:fail_on: rank 1 cannot go on (my_steps.py:27), and 1 more like it"
    assert f"2 ranks (1,3): {why}" in logs
    assert "rank 3: ValueError in my_steps:fail_on: rank 3 cannot go on" in logs
    assert f"2 ranks of {tmp_path}/run failed: {why}" in ran.err

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


def test_a_cause_is_shown_once_with_its_ranks_and_the_users_own_lines(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    (tmp_path / "team_steps.py").write_text(
        "def language(document):\n"
        "    return document.metadata['language']\n"
        "def keep(data, rank, world_size):\n"
        "    for document in data:\n"
        "        if rank == 7:\n"
        "            raise ValueError('seven')\n"
        "        if rank != 3 and language(document):\n"
        "            yield document\n"
    )
    file = pipeline_file(steps=("team_steps:keep",), tasks=12)
    ran = cli("launch", file, check=1)
    assert f"11 ranks of {tmp_path}/run failed, 10 of them: KeyError in team_steps:keep: 'language'" in ran.err
    said = cli("status", tmp_path / "run").out
    assert "failed: 10 ranks (0-2,4-6,8-11): KeyError in team_steps:keep: 'language' (team_steps.py:2)" in said
    assert "failed: 1 rank (7): ValueError in team_steps:keep: seven (team_steps.py:6)" in said
    logs = cli("logs", tmp_path / "run", "--failed", check=0).out
    assert logs.count("Traceback") == 2
    assert "10 ranks (0-2,4-6,8-11): KeyError in team_steps:keep: 'language' (team_steps.py:2)" in logs
    shown = [line for line in logs.splitlines() if line.startswith("      ")]
    assert "frames of stagger" in shown[0]
    assert 'team_steps.py", line 7, in keep' in shown[1]
    assert "stagger/pipeline" not in logs


def test_an_error_that_a_step_swallows_fails_the_rank_all_the_same(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, shards: Path
) -> None:
    whole = (shards / "shard-01.jsonl.gz").read_bytes()
    (shards / "shard-01.jsonl.gz").write_bytes(whole[:-20])
    cli("launch", pipeline_file(steps=("my_steps:swallow",)), check=1)
    assert status(cli, tmp_path / "run")["failed_ranks"] == [1]
    assert not (tmp_path / "run-output" / "00001.jsonl.zst").exists()
    assert "truncated" in cli("logs", tmp_path / "run", "--failed").out
