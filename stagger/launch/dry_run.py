"""What a launch would do, down to the job scripts. Touches nothing."""

from __future__ import annotations

from typing import Any

from stagger.executor.base import StageLaunch
from stagger.executor.kinds import runner_of
from stagger.launch.check import check_fingerprints, plan_ready_stages
from stagger.launch.launch import task_settings, wanted_ranks
from stagger.plan.stage_plan import StagePlan
from stagger.rundir.launch_records import Group, read_launches
from stagger.rundir.run_folder import RunFolder, RunRecord, open_storage, run_fingerprint
from stagger.spec.models import RunSpec, StageSpec


def dry_run(spec: RunSpec, *, limit: int | None = None) -> dict[str, Any]:
    """The document that `stagger launch --dry-run --json` prints. Raises StaggerError as a launch would."""
    folder = RunFolder(open_storage(spec), spec.run_dir)
    plans = plan_ready_stages(spec, folder, None)
    folder.storage.check_writable(spec.run_dir)
    check_fingerprints(folder, plans)
    fingerprints = {name: plan.fingerprint for name, plan in plans.items()}
    stages = [dry_stage(folder, spec, stage, plans.get(stage.name), limit) for stage in spec.stages]
    return {"run_dir": spec.run_dir, "fingerprint": run_fingerprint(fingerprints), "stages": stages}


def dry_stage(
    folder: RunFolder, spec: RunSpec, stage: StageSpec, plan: StagePlan | None, limit: int | None
) -> dict[str, Any]:
    executor = runner_of(spec, stage, plan.input if plan else None)
    stage_folder = folder.stage(spec, stage)
    done = stage_folder.done()
    number = len(read_launches(stage_folder)) + 1
    ranks = [rank for rank in wanted_ranks(stage, limit) if rank not in done]
    fingerprint = plan.fingerprint if plan else ""
    record = RunRecord(spec, {stage.name: fingerprint}, {}, {}, 0)
    settings = task_settings(record, stage, stage_folder, executor, number, len(ranks))
    launch = StageLaunch(stage, stage_folder, number, [Group(ranks)], settings, folder.path)
    arrays = executor.arrays(launch) if ranks else []
    return {
        "name": stage.name,
        "executor": stage.executor.type,
        "depends": list(stage.depends),
        "tasks": stage.tasks,
        "ranks": len(ranks),
        "shards": plan.shards if plan else None,
        "bytes": plan.size if plan else None,
        "jobs": sum(len(array.ranks) for array in arrays),
        "arrays": [{"jobs": len(a.ranks), "throttle": a.throttle, "script": a.script} for a in arrays],
        "start": {
            "policy": stage.start_policy,
            "window_s": settings.window_s,
            "summary": executor.start_summary(len(ranks)) if ranks else "",
        },
    }
