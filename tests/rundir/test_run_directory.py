"""The run directory matches its description, and rejects damaged records and those of another run."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from stagger.rundir.records import Completion
from stagger.rundir.stage_folder import COMPLETION_KEYS
from tests.conftest import Cli, PipelineFiles


def test_keys_of_a_completion_are_those_of_its_type() -> None:
    """Tasks know them without the type, whose import takes long."""
    assert ("fingerprint", *sorted(Completion.__required_keys__ - {"fingerprint"})) == COMPLETION_KEYS


def test_the_run_directory_is_as_described(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    cli("launch", pipeline_file(), check=0)
    run = tmp_path / "run"
    record = json.loads((run / "run.json").read_text())
    assert record["schema"] == 1
    assert (run / "plan" / record["fingerprint"]).is_file()
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    assert sorted(path.name for path in (run / "completions").iterdir()) == [f"{rank:05d}.json" for rank in range(4)]
    assert not (run / "failures").exists()
    assert not (run / "lock").exists()
    assert "rank 2" in (run / "logs" / "00002" / "1.log").read_text()
    launch = json.loads((run / "launches" / "1" / "launch.json").read_text())
    assert (launch["executor"], launch["ranks"], launch["window_s"]) == ("local", "0-3", 0)
    completion = json.loads((run / "completions" / "00001.json").read_text())
    assert completion["fingerprint"] == record["fingerprint"]
    assert (completion["attempt"], completion["delay_s"]) == ("1", 0)
    assert completion["script_started"] <= completion["started"] <= completion["first_read"] <= completion["ended"]
    assert completion["steps"][0]["records"] == completion["outputs"][0]["records"] == 150
    stats = json.loads((run / "stats.json").read_text())
    assert (stats["done"], stats["missing_ranks"], stats["records_out"]) == (4, "", 600)
    report = (run / "report.html").read_text()
    assert "4 of 4 ranks done" in report
    assert "<td>read_jsonl</td><td>600</td>" in report


def test_records_of_another_run_are_not_taken_for_this_ones(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, shards: Path
) -> None:
    cli("launch", pipeline_file(), check=0)
    (tmp_path / "run" / "run.json").unlink()
    (shards / "new.jsonl").write_text('{"text": "new", "id": "new"}\n')
    assert "has completion records of another run" in cli("launch", pipeline_file(), check=2).err


def test_a_damaged_record_is_named(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    cli("launch", pipeline_file(), check=0)
    record = tmp_path / "run" / "completions" / "00002.json"
    record.write_bytes(record.read_bytes()[:50])
    assert f"{record} is damaged" in cli("status", tmp_path / "run", check=2).err
    record.write_text("{}")
    assert f"{record} is damaged (it has no 'fingerprint')" in cli("status", tmp_path / "run", check=2).err
    (tmp_path / "run" / "run.json").write_text("{}")
    assert "schema None" in cli("status", tmp_path / "run", check=2).err
    assert "There is no run in" in cli("status", tmp_path, check=2).err
