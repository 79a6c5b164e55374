"""Which settings of a run a retry may change."""

from __future__ import annotations

import pytest

from stagger.errors import StaggerError
from stagger.spec.changes import changed_spec
from stagger.spec.models import RunSpec
from tests.kit.records import spec


def test_settings_of_one_stage_are_changed_alone() -> None:
    run = spec({"type": "slurm"}, "a", "b")
    changed = changed_spec(run, ["executor.mem_per_cpu_gb=8", "randomize_start_duration=5"], "b")
    assert changed.stages[0] == run.stages[0]
    assert changed.stages[1].randomize_start_duration == 5
    assert changed.stages[1].executor.model_dump()["mem_per_cpu_gb"] == 8
    with pytest.raises(StaggerError, match="a retry cannot change depends"):
        changed_spec(run, ["depends=[]"], None)


def run_spec(*names: str) -> RunSpec:
    stages = [{"name": name, "pipeline": ["m:f"], "executor": {"type": "slurm", "mem_per_cpu_gb": 2}} for name in names]
    return RunSpec.model_validate({"name": "run", "run_dir": "/run", "cwd": "/", "stages": stages})


def test_a_retry_can_change_how_a_run_is_run_but_not_what_it_does() -> None:
    spec = run_spec("a", "b")
    changed = changed_spec(spec, ["executor.mem_per_cpu_gb=8", "retry_seconds=5"], "b")
    assert [stage.executor.mem_per_cpu_gb for stage in changed.stages] == [2, 8]  # type: ignore[union-attr]
    assert changed.retry_seconds == 5
    for assignment in ("tasks=7", "pipeline.0=m:g", "nonsense=1", "name=x"):
        with pytest.raises(StaggerError, match="a retry cannot change"):
            changed_spec(spec, [assignment], None)
    with pytest.raises(StaggerError, match="mem_per_cpu_gb"):
        changed_spec(spec, ["executor.mem_per_cpu_gb=lots"], None)
    with pytest.raises(StaggerError, match="There is no stage 'c'"):
        changed_spec(spec, ["executor.time=5"], "c")
