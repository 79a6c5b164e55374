"""A full disk: the rank fails and leaves no files."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Cli, PipelineFiles, documents, jsonl, missing


def test_a_full_disk_fails_the_rank_and_leaves_nothing(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(small)], check=False).returncode:
        missing("the right to mount a small file system")
    try:
        ran = cli("launch", pipeline_file(output=str(small), compression=None, tasks=2), check=1)
        assert "2 ranks" in ran.err
        assert list(small.iterdir()) == []
        assert f"No space left on device: '{small}/0000" in cli("logs", tmp_path / "run", "--failed").out
    finally:
        subprocess.run(["umount", str(small)], check=True)


GOOD = jsonl(documents(0, 3000))

LINES = GOOD.splitlines(keepends=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_leaves_no_output_and_the_rank_runs_when_there_is_room(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, small_disk: Path
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(900_000))
    source = tmp_path / "some"
    source.mkdir()
    (source / "a.jsonl").write_bytes(GOOD)
    (source / "b.jsonl").write_bytes(LINES[0])
    alone = {"type": "local", "workers": 1}  # Beside rank 0, which fills the disk, rank 1 would fail, too.
    out = str(small_disk / "out")
    file = pipeline_file(source=str(source), output=out, compression=None, tasks=2, executor=alone)
    cli("launch", file, check=1)
    failure = json.loads((tmp_path / "run" / "failures" / "00000.1.json").read_text())
    assert f"No space left on device: '{small_disk}/out/00000.jsonl'" in failure["error"]
    assert [path.name for path in (small_disk / "out").iterdir()] == ["00001.jsonl"]
    ballast.unlink()
    cli("retry", tmp_path / "run", check=0)
    assert (small_disk / "out" / "00000.jsonl").stat().st_size > 100_000


def test_a_run_directory_on_a_full_disk_is_said_in_one_sentence(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, small_disk: Path
) -> None:
    (small_disk / "ballast").write_bytes(os.urandom(2**20 - 4096 * 3))
    ran = cli("launch", pipeline_file(run_dir=str(small_disk / "run")))
    assert ran.status != 0
    assert re.search(rf"No space left on device: '{small_disk}/run/\S+'", ran.err)
    assert "Traceback" not in ran.err
