"""The staggered start of local workers."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from stagger.start.delays import spread_delay_ms
from tests.conftest import Cli, PipelineFiles, contents


def test_a_local_run_sleeps_only_when_asked_to(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    cli("launch", pipeline_file(tasks=6, randomize_start_duration=1), check=0)
    records = [json.loads(data) for data in contents(tmp_path / "run" / "completions").values()]
    assert {record["window_s"] for record in records} == {1}
    assert {record["delay_s"] for record in records} <= {0, 1}
    by_worker = {record["pid"]: record["delay_s"] for record in records}
    assert all(by_worker[record["pid"]] == record["delay_s"] for record in records)
    for record in records:
        assert record["started"] - record["script_started"] >= record["delay_s"]


def test_local_workers_take_their_slots(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    shown = cli("launch", pipeline_file(start_policy="spread", randomize_start_duration=1), "--dry-run", check=0).out
    assert "  start    over 1 s (spread)\n" in shown
    assert "  start    at once\n" in cli("launch", pipeline_file(), "--dry-run", check=0).out
    cli("launch", pipeline_file(start_policy="spread", randomize_start_duration=1), check=0)
    records = [json.loads(path.read_text()) for path in (tmp_path / "run" / "completions").iterdir()]
    salt = zlib.crc32(records[0]["fingerprint"].encode())
    assert {record["delay_s"] for record in records} <= {spread_delay_ms(worker, 1, salt) / 1000 for worker in range(2)}
