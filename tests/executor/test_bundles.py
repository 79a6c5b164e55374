"""Which modules the bundle of a launch holds, and whose Python makes it."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from stagger.executor.bundles import interpreter_here, modules_of
from stagger.spec.executors import EnvSpec
from stagger.spec.models import RunSpec

S3 = "stagger.storage.s3"


@pytest.mark.parametrize(
    ("paths", "options", "storage"),
    [
        (("/in", "/out"), {}, []),
        (("s3://in", "/out"), {}, [f"{S3}.auto_engine", f"{S3}.store"]),
        (("s3://in", "s3://out"), {"s3": {"engine": "obstore"}}, [f"{S3}.obstore_engine", f"{S3}.store"]),
        (("memory://in", "/out"), {}, ["stagger.storage.fsspec_store"]),
    ],
)
def test_the_bundle_holds_what_the_steps_and_the_storage_of_a_stage_need(
    paths: tuple[str, str], options: dict[str, Any], storage: list[str]
) -> None:
    steps = [
        {"use": "read_jsonl", "params": {"path": paths[0]}},
        {"use": "my_steps:keep", "params": {"of": [{"path": "no path"}]}},
        {"use": "write_jsonl", "params": {"path": paths[1]}},
    ]
    stage = {"name": "run", "pipeline": steps}
    content = {"name": "run", "run_dir": "/run", "cwd": "/", "storage_options": options, "stages": [stage]}
    run = RunSpec.model_validate(content)
    mine = ["stagger.datatrove.patches", "stagger.datatrove.state", "stagger.pipeline.shard_boundaries"]
    assert modules_of(run, run.stages[0]) == sorted(["stagger.steps.jsonl", *mine, *storage])


def test_a_launch_runs_the_python_of_its_tasks_unless_their_jobs_have_to_set_it_up() -> None:
    assert interpreter_here(EnvSpec()) == sys.executable
    assert interpreter_here(EnvSpec(venv="/my/venv/bin/activate")) == "/my/venv/bin/python"
    assert interpreter_here(EnvSpec(venv="/my/venv")) == "/my/venv/bin/python"
    assert interpreter_here(EnvSpec(conda="mine")) is None
    assert interpreter_here(EnvSpec(container="image.sif")) is None
