"""The settings that a launch passes to its tasks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from stagger.task import TaskSettings
from tests.conftest import Cli, PipelineFiles


def test_settings_are_read_from_a_file_or_given_as_they_are(tmp_path: Path) -> None:
    settings = TaskSettings("/run dir", "f00d", 3, "/", ["/a"], {"s3": {"endpoint_url": "http://x"}}, window_s=9)
    (tmp_path / "settings.json").write_text(settings.to_json())
    assert TaskSettings.of(settings.to_json()) == settings
    assert TaskSettings.of(str(tmp_path / "settings.json")) == settings


def test_the_settings_in_the_launch_record_run_a_rank_by_hand(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    cli("launch", pipeline_file(), "--limit", 1, check=0)
    record = json.loads((tmp_path / "run" / "launches" / "1" / "launch.json").read_text())
    for rank, settings in enumerate((record["settings"], tmp_path / "run" / "launches" / "1" / "settings.json"), 1):
        subprocess.run([sys.executable, "-I", "-m", "stagger.task", settings, str(rank)], check=True)
        assert (tmp_path / "run" / "completions" / f"{rank:05d}.json").exists()


def test_a_task_that_cannot_read_its_settings_says_so(tmp_path: Path) -> None:
    (tmp_path / "settings.json").mkdir()
    task = [sys.executable, "-I", "-m", "stagger.task", str(tmp_path / "settings.json"), "0"]
    done = subprocess.run(task, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "The task's settings cannot be read: " in done.stderr
    assert "Traceback" not in done.stderr
