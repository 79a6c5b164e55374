"""Counts the file-system calls of a task's start: `stagger doctor --measure-start`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from stagger.bundle import task_arguments
from stagger.doctor.check import Check
from stagger.plan.metadata import KNOWN_CALLS, keep_calls

#: A pipeline of two ranks over two small files. `launch` runs the first; the second is traced.
PIPELINE = """name: measure-start
run_dir: {folder}/run
tasks: 2
pipeline:
  - read_jsonl: {{path: {folder}/input}}
  - write_jsonl: {{path: {folder}/output, compression: null}}
"""


def start_check() -> Check:
    """Run one task under strace, and record its calls until its first read for `stagger plan`."""
    if shutil.which("strace") is None:
        text = f"there is no strace on this machine: plans count the known {KNOWN_CALLS} file-system calls per start."
        return Check("start", "warning", text)
    try:
        with tempfile.TemporaryDirectory(prefix="stagger-start-") as folder:
            calls = counted(folder)
        path = keep_calls(calls)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return Check("start", "warning", f"a start could not be measured: {error}")
    return Check("start", "ok", f"{calls} file-system calls until a task's first read; kept for plans in {path}")


def counted(folder: str) -> int:
    """The calls of one start. Raises OSError, CalledProcessError or ValueError when it cannot be run."""
    os.mkdir(f"{folder}/input")
    for rank in range(2):
        Path(f"{folder}/input/shard-{rank}.jsonl").write_text('{"text": "", "id": "0"}\n')
    Path(f"{folder}/pipeline.yaml").write_text(PIPELINE.format(folder=folder))
    launch = [sys.executable, "-m", "stagger", "launch", f"{folder}/pipeline.yaml", "--limit", "1", "--profile", "none"]
    subprocess.run(launch, check=True, capture_output=True, cwd=folder)
    task = [sys.executable, *task_arguments(), f"{folder}/run/launches/1/settings.json", "1"]
    trace = ["strace", "-f", "-e", "trace=%file,getdents64", "-o", f"{folder}/trace"]
    subprocess.run([*trace, *task], check=True, capture_output=True)
    lines = Path(f"{folder}/trace").read_text(errors="replace").splitlines()
    calls = [line for line in lines if re.match(r"\d+ +\w+\(", line)]
    return next(number for number, line in enumerate(calls) if "/input/shard-" in line)
