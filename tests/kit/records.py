"""Run files and launch records, made up."""

from __future__ import annotations

from typing import Any

from stagger.spec.models import RunSpec


def spec(executor: dict[str, Any], *names: str, **depends: list[str]) -> RunSpec:
    """A run of these stages, each with the stages that it depends on."""
    stages = [
        {"name": name, "pipeline": ["read_jsonl"], "executor": executor, "depends": depends.get(name, [])}
        for name in names
    ]
    return RunSpec.model_validate({"name": "p", "run_dir": "/run", "cwd": "/", "stages": stages})


def launch_record(number: int, ranks: str, *, ranks_per_job: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "launch": number,
        "executor": "slurm",
        "ranks": ranks,
        "ranks_per_job": ranks_per_job,
        "window_s": 60,
        "arrays": [{"job_id": "7", "name": f"a-{number}", "ranks": ranks}],
        "finalize": {"name": f"end-{number}"},
        **more,
    }
