"""How many processors each rank has."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from stagger.executor.local import LocalRunner
from stagger.executor.slurm import SlurmRunner
from stagger.spec.load import load_file
from stagger.spec.models import RunSpec


def spec(folder: Path, **executor: object) -> RunSpec:
    file = folder / "p.yaml"
    file.write_text(json.dumps({"name": "p", "run_dir": "run", "pipeline": ["builtins:print"], "executor": executor}))
    return load_file(str(file))


def test_a_local_run_divides_its_processors_among_the_ranks_that_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    for workers, ranks, cpus in ((1, 100, 8), (3, 100, 2), (8, 100, 1), (16, 100, 1), (8, 2, 4), (8, 0, 8)):
        run = spec(tmp_path, type="local", workers=workers)
        assert LocalRunner(run, run.stages[0]).cpus(ranks) == cpus


def test_a_rank_on_slurm_has_those_that_its_job_requests_for_it(tmp_path: Path) -> None:
    run = spec(tmp_path, type="slurm", cpus_per_task=2, ranks_per_job=8, ranks_at_once=4)
    assert SlurmRunner(run, run.stages[0]).cpus(100) == 2
