"""The examples run as their first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def run(name: str, folder: Path) -> list[str]:
    """Run an example as a user would. Returns the lines that it prints."""
    command = [sys.executable, str(ROOT / "examples" / name)]
    done = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.splitlines()


def test_the_pipeline_in_python(tmp_path: Path) -> None:
    assert run("local_run.py", tmp_path)[0].endswith("/runs/shout: 8 of 8 ranks are done")


def test_two_stages_a_handle_and_a_retry(tmp_path: Path) -> None:
    failed, *status, first, second = run("two_stages.py", tmp_path)
    assert failed.startswith("4 ranks failed at two_stages.py:")
    assert "No such file or directory" in failed
    assert [line.split() for line in status[1:]] == [["clean", "4", "done"], ["measure", "2", "done"]]
    assert (Path(first).name, Path(second).name) == ("00000.jsonl.zst", "00001.jsonl.zst")
