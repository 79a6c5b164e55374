"""The log of an attempt."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from stagger.task.attempt_log import open_spool
from tests.conftest import Cli, PipelineFiles, until


def test_a_log_can_be_followed_and_holds_all_that_a_step_prints(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    (tmp_path / "talk.py").write_text(
        "import os, sys, warnings\n"
        "from loguru import logger\n"
        "def talk(data, rank, world_size):\n"
        "    print('printed'); logger.info('logged'); os.system('echo from a child'); warnings.warn('warned')\n"
        "    sys.stderr.write('to stderr\\n')\n"
        "    yield from data\n"
    )
    flag = tmp_path / "flag"
    file = pipeline_file(steps=("talk:talk", {"my_steps:hold": {"flag": str(flag)}}), tasks=1)
    running = cli.start("launch", file)
    until((tmp_path / "flag-0").exists, "the rank to hold")
    follower = cli.start("logs", tmp_path / "run", "--rank", "0", "--follow")
    assert follower.stdout is not None
    text = follower.stdout.readline()
    flag.touch()
    running.communicate(timeout=60)
    text += follower.stdout.read()
    follower.communicate(timeout=60)
    for said in ("rank 0, attempt 1", "printed", "logged", "from a child", "warned", "to stderr", "600 records in"):
        assert said in text
    assert "There is no rank 7" in cli("logs", tmp_path / "run", "--rank", "7", check=2).err


def test_a_spooled_log_has_no_name_that_others_could_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a kill leave it behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    descriptor = open_spool()
    os.write(descriptor, b"said")
    assert os.pread(descriptor, 10, 0) == b"said"
    assert list(tmp_path.iterdir()) == []
    os.close(descriptor)
