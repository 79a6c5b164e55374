"""Stages on the cluster: each launches the next, and reports at its end the resources that it used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import Cli, PipelineFiles, output_ids
from tests.kit.runs import EVERYTHING, SLURM, launches


def test_the_end_of_a_stage_says_what_it_used(slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    run = tmp_path / "run"
    executor = {**SLURM, "mem_per_cpu_gb": 0.25}
    slurm_cli("launch", pipeline_file(executor=executor, randomize_start_duration=1), "--wait", check=0)
    found = json.loads((run / "stats.json").read_text())["efficiency"]
    assert (found["jobs"], found["memory"]["asked_mib"], found["time"]["limit_s"]) == (4, 256, 600)
    assert 0 < found["cpu"]["share"] <= 1
    assert 0 < found["memory"]["share"] < 1
    line = f"sufficient: mem_per_cpu_gb: {found['enough']['mem_per_cpu_gb']}, time: {found['enough']['time']}"
    assert line in slurm_cli("status", run, check=0).out
    assert line in (run / "report.html").read_text()
    (printed,) = (run / "launches" / "1" / "slurm").glob("finalize-*.out")
    assert line in printed.read_text()


@pytest.mark.each_version
def test_stages_launch_one_another_and_one_that_fails_holds_the_next_back(
    slurm_cli: Cli, tmp_path: Path, pipeline_file: PipelineFiles
) -> None:
    flag = tmp_path / "flag"
    middle, end = str(tmp_path / "middle"), str(tmp_path / "end")
    failing = {"my_steps:fail_on": {"ranks": [1], "flag": str(flag)}}
    source = {"read_jsonl": {"path": str(pipeline_file.shards)}}
    stages = [
        {"name": "first", "tasks": 3, "pipeline": [source, failing, {"write_jsonl": {"path": middle}}]},
        {
            "name": "second",
            "depends": ["first"],
            "tasks": 2,
            "pipeline": [{"read_jsonl": {"path": middle}}, {"write_jsonl": {"path": end}}],
        },
    ]
    file = tmp_path / "p.yaml"
    run = tmp_path / "run"
    content = {"name": "p", "run_dir": str(run), "executor": SLURM, "randomize_start_duration": 0, "stages": stages}
    file.write_text(json.dumps(content))
    slurm_cli("launch", file, "--wait", check=1)
    assert list(Path(end).iterdir()) == []
    assert not (run / "second" / "launches").exists()
    shutil.copy(f"{middle}/00000.jsonl.zst", f"{middle}/00007.jsonl.zst")  # No record lists it: it is no input.
    flag.touch()
    slurm_cli("retry", run, "--wait", check=0)  # The end job launches the next stage; this command only follows.
    assert output_ids(Path(end)) == EVERYTHING
    document = slurm_cli("status", run, "--json", check=0).json
    assert [(stage["name"], stage["done"]) for stage in document["stages"]] == [("first", 3), ("second", 2)]


def test_failing_stages_are_not_launched_again_while_they_are_followed(
    slurm_cli: Cli, tmp_path: Path, pipeline_file: PipelineFiles
) -> None:
    source = {"read_jsonl": {"path": str(pipeline_file.shards)}}
    failing = {"my_steps:fail_on": {"ranks": [0, 1]}}
    stages = [
        {"name": "a", "tasks": 2, "pipeline": [source, failing]},
        {"name": "b", "tasks": 2, "pipeline": [source, failing], "executor": {"type": "local"}},
        {"name": "c", "tasks": 2, "pipeline": [source], "depends": ["a"], "executor": {"type": "local"}},
    ]
    content = {"name": "p", "run_dir": "run", "executor": SLURM, "randomize_start_duration": 0, "stages": stages}
    (tmp_path / "p.yaml").write_text(json.dumps(content))
    slurm_cli("launch", "p.yaml", "--wait", check=1)
    assert [len(launches(tmp_path / "run" / name)) for name in "abc"] == [1, 1, 0]
