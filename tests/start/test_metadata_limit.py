"""`metadata_limit`: the window that keeps the file-system calls of starts below it, and what a plan says of them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from stagger.doctor.start import start_check
from stagger.executor.slurm_start import SlurmStart
from stagger.plan.metadata import KNOWN_CALLS, calls_of_start, keep_calls
from stagger.rundir.run_folder import StageInput
from stagger.spec.models import RunSpec
from stagger.start.delays import loads
from stagger.start.forecast import start_plan
from stagger.start.herd import Herd, metadata_waits
from tests.conftest import Cli, PipelineFiles


@pytest.fixture(autouse=True)
def unmeasured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def start(executor: dict[str, Any] | None = None, **stage: Any) -> SlurmStart:
    """A stage of 8000 ranks on local paths."""
    steps = [{"use": "read_jsonl", "params": {"path": "/in"}}, {"use": "write_jsonl", "params": {"path": "/out"}}]
    content = {"name": "run", "tasks": 8000, "pipeline": steps, "executor": {"type": "slurm", **(executor or {})}}
    spec = RunSpec.model_validate({"name": "run", "run_dir": "/run", "cwd": "/", "stages": [{**content, **stage}]})
    return SlurmStart(spec, spec.stages[0], StageInput())


def test_the_window_keeps_calls_below_the_limit() -> None:
    limited = start(metadata_limit=50_000)
    assert limited.stage.start_policy == "spread"
    assert limited.window(8000) == 40  # 8000 * 200 / (0.8 * 50,000)
    assert limited.hold(8000) == 0
    throttled = start({"workers": 1000}, metadata_limit=50_000)
    assert (throttled.window(8000), throttled.hold(8000)) == (5, 5)


def test_each_process_that_a_job_starts_counts() -> None:
    crew = start({"ranks_per_job": 64, "ranks_at_once": 16})
    assert crew.operations(8000) == 17 * KNOWN_CALLS  # 16 workers, and the process that gives them their ranks.
    assert start({"nodes_per_task": 4}).operations(8000) == 4 * KNOWN_CALLS
    assert start({"ranks_per_job": 64}).operations(8000) == KNOWN_CALLS


def test_the_limit_that_needs_the_longer_window_decides() -> None:
    herd = Herd(8000, "spread", 0, requests=4, limit=3500, operations=200, metadata_limit=50_000)
    assert [load.key for load in herd.loads] == ["backend_limit", "metadata_limit"]
    found = start_plan(herd, 8000, exact=True)
    assert found.row("limit").window_s == 40
    assert found.recommended == {"start_policy": "spread", "backend_limit": 3500, "metadata_limit": 50_000}
    assert found.reason == "8,000 jobs with 200 file-system calls each, over 40 s, use 0.8 of the limit"
    assert found.row("limit").operations_peak_1s <= 50_000
    assert found.row("none").operations_peak_1s == 1_600_000
    assert found.row("none").last_start_s == pytest.approx(32, abs=0.5)
    assert loads(0, 3500, 200, None) == []


def test_a_file_system_answers_one_start_after_another() -> None:
    waited_s, answered_s = metadata_waits([0.0, 0.0, 10.0], 100, 50)
    assert (waited_s, answered_s) == (2 + 4 + 2, 12)
    assert metadata_waits([0.0, 1.0], 100, None) == (0, 0)


def test_a_plan_names_the_calls(cli: Cli) -> None:
    shown = cli("plan", "--tasks", 100, "--metadata-limit", 1000, "--operations", 5000, "--requests", 0, check=0).out
    assert "5,000 file-system calls per job at its start, metadata limit 1,000 calls/s" in shown
    assert "executor:" in shown  # 100 jobs at once would sleep too long.
    file_or_tasks = cli("plan", "--tasks", 8000, "--json", check=0).json["plans"][0]
    assert file_or_tasks["operations"] == KNOWN_CALLS


def test_a_limit_that_needs_more_than_a_day_is_refused(cli: Cli, pipeline_file: PipelineFiles) -> None:
    file = pipeline_file(executor={"type": "slurm"}, metadata_limit=0.001)
    assert "metadata_limit 0.001 would spread 4 starts" in cli("launch", file, "--dry-run", check=2).err


def test_what_was_measured_counts_for_this_python_and_version_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert calls_of_start() == (KNOWN_CALLS, False)
    path = keep_calls(170)
    assert calls_of_start() == (170, True)
    with monkeypatch.context() as other:
        other.setattr(sys, "executable", "/another/python")
        assert calls_of_start() == (KNOWN_CALLS, False)
    path.write_text("damaged")
    assert calls_of_start() == (KNOWN_CALLS, False)


def test_doctor_measures_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    check = start_check()
    calls, measured = calls_of_start()
    assert check.state == "ok"
    assert f"{calls} file-system calls" in check.text
    assert measured
    assert 100 < calls <= KNOWN_CALLS
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert start_check().text.startswith("there is no strace on this machine")
