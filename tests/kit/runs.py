"""The counts and records of runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import Cli, PipelineFiles, Ran

#: An executor on the tests' Slurm cluster.
SLURM = {"type": "slurm", "partition": "cpu", "time": 10}

#: Ids of all documents of the fixture `shards`.
EVERYTHING = sorted(f"doc-{i}" for i in range(600))


def status(cli: Callable[..., Ran], run: Path | str) -> dict[str, Any]:
    (stage,) = cli("status", run, "--json").json["stages"]
    return dict(stage)


def counts(stage: dict[str, Any]) -> tuple[int, int, int, int]:
    running, pending = stage["running"] + stage["sleeping"], stage["pending"] + stage["requeued"]
    assert stage["done"] + stage["failed"] + running + pending == stage["tasks"]
    return stage["done"], stage["failed"], running, pending


def launches(run: Path) -> list[dict[str, Any]]:
    paths = sorted(run.glob("launches/*/launch.json"), key=lambda path: int(path.parent.name))
    return [json.loads(path.read_text()) for path in paths]


def completions(run: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((run / "completions").iterdir())]


def failing_run(cli: Cli, files: PipelineFiles, folder: Path, *ranks: int) -> Path:
    """Launch a local run of four ranks in which `ranks` fail until the returned file exists."""
    flag = folder / "flag"
    cli("launch", files(steps=({"my_steps:fail_on": {"ranks": list(ranks), "flag": str(flag)}},)), check=1)
    return flag
