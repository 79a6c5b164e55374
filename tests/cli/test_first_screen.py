"""The first screen of `stagger status`, 24 lines of 100 columns, says what matters and what to type next."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from stagger.cli import show
from stagger.ranks import format_ranks
from stagger.status.stage_status import StageStatus
from tests.conftest import Cli, PipelineFiles

LINES, COLUMNS = 24, 100

STARTS = {"peak_1s": 70, "peak_100ms": 9, "span_s": 180.0, "per_second": [44] * 180}

EFFICIENCY = {
    "cpu": {"used_s": 9.0, "asked_s": 10.0, "share": 0.9},
    "memory": {"peak_mib": 900, "asked_mib": 1000, "share": 0.9},
    "time": {"longest_s": 500.0, "limit_s": 3600, "share": 0.1},
    "asleep_s": 720_000.0,
    "waiting_s": 0.0,
    "enough": {"mem_per_cpu_gb": 1.2, "time": "0-00:11:00"},
}


def stage(name: str = "fineweb", **more: Any) -> StageStatus:
    """A stage of 8000 ranks, done unless `more` says otherwise, with everything that a status may show."""
    status = StageStatus(name, 8000, done=8000, records_in=10**9, records_out=10**8, bytes_out=10**12)
    status.starts = {"jobs": 8000, "measured": STARTS, "planned": STARTS}
    status.efficiency, status.slowest = EFFICIENCY, [(7, 900.0), (8, 800.0), (9, 700.0)]
    status.counts, status.retried = {"too_short": 12}, {"throttled": 99}
    status.output_folders = [f"s3://bucket/{name}"]
    status.places = {what: f"/lustre/me/runs/fineweb/{name}/{what}" for what in ("report", "stats", "logs")}
    for key, value in more.items():
        setattr(status, key, value)
    return status


def troubled() -> StageStatus:
    """3 % of the ranks failed with two kinds of errors, one rank was killed, and one can never start."""
    groups = [
        (range(3, 8000, 40), "KeyError in team_steps:parse: 'language' (team_steps.py:14)"),
        (range(5, 1600, 40), f"ValueError in team_steps:parse: {'no such label ' * 100} (team_steps.py:22)"),
        (range(44, 45), "its job was killed by SIGSEGV"),
    ]
    errors = [{"ranks": format_ranks(ranks), "count": len(ranks), "error": error} for ranks, error in groups]
    failed = sorted(rank for ranks, _ in groups for rank in ranks)
    why = {"ranks": "60", "count": 1, "job_id": "1", "reason": "PartitionConfig", "starts": "never"}
    why["message"] = "it requests more than its partition allows or its nodes have (executor.cpus_per_task, ...)"
    end = {"state": "left", "message": "end job 2 on n1: ranks are not done; nothing more starts by itself"}
    return stage(
        done=8000 - len(failed) - 1,
        failed=len(failed),
        pending=1,
        stuck=1,
        failed_ranks=failed,
        errors=errors,
        waiting=[why],
        end=end,
    )


def screen(capsys: pytest.CaptureFixture[str], *stages: StageStatus) -> str:
    show.status("/lustre/me/runs/fineweb", list(stages))
    said = capsys.readouterr().out
    assert sum(max(1, math.ceil(len(line) / COLUMNS)) for line in said.splitlines()) <= LINES, said
    return said


def test_four_kinds_of_trouble_are_named_with_their_ranks_and_the_commands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = screen(capsys, troubled())
    assert "8,000 ranks: 7,758 done, 1 pending (1 can never start), 241 failed" in said
    assert "failed: 200 ranks (3,43,83,123,163,203,243,283,...): KeyError in team_steps:parse: 'language'" in said
    assert "failed: 40 ranks (5,45,85,125,165,205,245,285,...): ValueError in team_steps:parse: no such label" in said
    assert "failed: 1 rank (44): its job was killed by SIGSEGV" in said
    assert "can never start: 1 rank (60): PartitionConfig: it requests more than" in said
    for command in ("logs /lustre/me/runs/fineweb --failed", "cancel /lustre/me/runs/fineweb --rank 60"):
        assert f"stagger {command} " in said
    assert "stagger retry /lustre/me/runs/fineweb --set executor.KEY=VALUE" in said


def test_a_finished_run_tells_how_long_it_took_and_where_everything_is(capsys: pytest.CaptureFixture[str]) -> None:
    said = screen(capsys, stage(took_s=7265.2))
    assert "8,000 ranks: 8,000 done in 2 h 1 min\n" in said
    assert "1,000,000,000 records in, 100,000,000 out, 1.0 TB written" in said
    assert "The result is in s3://bucket/fineweb\n" in said
    assert "The report is /lustre/me/runs/fineweb/fineweb/report\n" in said
    assert "next:" not in said


def test_three_stages_fit_too(capsys: pytest.CaptureFixture[str]) -> None:
    waits = StageStatus("merge", 0, "one rank for each output file of dedup", starts={"planned": {"span_s": 0}})
    said = screen(capsys, stage("filter", took_s=59.04), troubled(), waits)
    assert "filter   8,000 ranks: 8,000 done in 59 s\n" in said
    assert "merge    one rank for each output file of dedup, once the stage starts\n" in said
    assert "The result of filter is in s3://bucket/filter\n" in said
    assert "stagger cancel /lustre/me/runs/fineweb --stage fineweb --rank 60 " in said


def test_launch_status_and_logs_name_what_exists_one_for_each_stage(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    content = json.loads(pipeline_file().read_text())
    first, second = ({"name": name, "tasks": 2, "pipeline": content["pipeline"]} for name in "ab")
    second["pipeline"] = [content["pipeline"][0], {"write_jsonl": {"path": str(tmp_path / "second")}}]
    path = tmp_path / "two.yaml"
    rest = {"name": "two", "run_dir": str(tmp_path / "run"), "executor": content["executor"]}
    path.write_text(json.dumps({**rest, "stages": [first, second]}))
    expected = [f"The result of a is in {tmp_path}/run-output", f"The result of b is in {tmp_path}/second"]
    expected += [f"The report of {name} is {tmp_path}/run/{name}/report.html" for name in "ab"]
    ran = cli("launch", path, check=0)
    for said in (ran.out, cli("status", tmp_path / "run", check=0).out, cli("logs", tmp_path / "run", check=0).err):
        assert [line for line in expected if line not in said] == []
    assert f"The logs are in {tmp_path}/run/a/logs, {tmp_path}/run/b/logs" in ran.out
    for command in ("status", "logs"):
        found = cli(command, tmp_path / "run", "--json", check=0).json["stages"]
        assert [one["output_folders"] for one in found] == [[f"{tmp_path}/run-output"], [f"{tmp_path}/second"]]
        assert all(Path(place).exists() for one in found for place in one["places"].values())
        assert all(one["places"].keys() == {"report", "stats", "logs"} for one in found)
