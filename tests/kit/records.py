"""Made-up run files and launch records."""

from __future__ import annotations

from typing import Any

from stagger.ranks import parse_ranks
from stagger.rundir.launch_records import ArrayRecord, EndJobRecord, SlurmLaunch
from stagger.spec.models import RunSpec


def spec(executor: dict[str, Any], *names: str, **depends: list[str]) -> RunSpec:
    """A run with these stages; `depends` maps a stage to the stages that it depends on."""
    stages = [
        {"name": name, "pipeline": ["read_jsonl"], "executor": executor, "depends": depends.get(name, [])}
        for name in names
    ]
    return RunSpec.model_validate({"name": "p", "run_dir": "/run", "cwd": "/", "stages": stages})


def launch_record(number: int, ranks: str, *, ranks_per_job: int = 1, **more: Any) -> SlurmLaunch:
    return SlurmLaunch(
        launch=number,
        time=0.0,
        ranks=ranks,
        start_policy="uniform",
        window_s=60,
        settings="{}",
        ranks_per_job=ranks_per_job,
        resources={},
        log_dir="",
        arrays=(ArrayRecord("7", f"a-{number}", len(parse_ranks(ranks)), ranks),),
        finalize=EndJobRecord(None, f"end-{number}"),
        **more,
    )
