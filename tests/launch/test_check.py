"""Checks before a launch."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from stagger.errors import StaggerError
from stagger.storage.storage import Storage
from tests.conftest import Cli, PipelineFiles


@pytest.mark.parametrize(
    ("steps", "tasks", "said"),
    [
        (({"write_jsonl": {"path": "x", "filename": "all.jsonl"}},), 4, "is the same for all 4 ranks"),
        (({"write_jsonl": {"path": "x", "filename": "../{rank}"}},), 1, "contains a '/'; set the folder in `path`"),
        (({"read_jsonl": {"path": "input"}},), 1, "pipeline[1] (read_jsonl) is a reader"),
        (({"my_steps:Upper": {"suffix": {1: 2}}},), 1, "a key must be text; put 1 in quotes"),
        (({"my_steps:Upper": {"suffix": float("inf")}},), 1, "JSON cannot hold this value"),
        (("quits:step",), 1, "'quits:step' cannot be imported: SystemExit"),
    ],
)
def test_what_would_lose_data_is_refused_at_launch(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, steps: tuple[Any, ...], tasks: int, said: str
) -> None:
    (tmp_path / "quits.py").write_text("import sys\nsys.exit(0)\n")
    file = pipeline_file(steps=steps, tasks=tasks)
    text = file.read_text().replace('{"1": 2}', "{1: 2}").replace("Infinity", ".1e999")
    file.write_text(text)
    assert said in cli("launch", file, check=2).err
    assert not (tmp_path / "run").exists()


def tree(folder: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": "/no/such/folder"}, "Nothing in /no/such/folder matches"),
        ({"run_dir": "/proc/nothing/run"}, "/proc/nothing/run cannot be"),
        ({"output": "/proc/nothing/out"}, "/proc/nothing/out cannot be"),
        ({"run_dir": "nonesuch://x"}, "Cannot open nonesuch:// paths"),
        ({"steps": ("no_such_module:step",)}, "pipeline[1]: 'no_such_module:step' cannot be imported"),
    ],
)
def test_a_launch_that_cannot_work_launches_nothing(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    file = pipeline_file(**change)
    before = tree(tmp_path)
    ran = cli("launch", file, check=2, PYTHONDONTWRITEBYTECODE="1")
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert tree(tmp_path) == before


def test_a_file_in_place_of_the_run_directory_is_said(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    assert "run is not a folder" in cli("launch", pipeline_file(), check=2).err


def test_an_unwritable_run_directory_is_said(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    """Root may write anywhere, so a user without rights does the check."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    file = pipeline_file(run_dir=str(closed / "run"))
    if os.geteuid():
        assert "no permission in" in cli("launch", file, check=2).err
        return
    for folder in (closed, *closed.parents):
        if folder.is_relative_to(tmp_path.parents[1]):
            folder.chmod(0o555)
    context = multiprocessing.get_context("fork")
    said = context.SimpleQueue()
    process = context.Process(target=_check_as_nobody, args=(str(closed / "run"), said))
    process.start()
    process.join()
    for folder in closed.parents:
        if folder.is_relative_to(tmp_path.parents[1]):
            folder.chmod(0o700)
    assert f"no permission in {closed}" in said.get()


def _check_as_nobody(folder: str, said: multiprocessing.SimpleQueue[str]) -> None:
    os.setuid(65534)
    try:
        Storage().check_writable(folder)
        said.put("writable")
    except StaggerError as error:
        said.put(str(error))
