"""Shows what a launch would do, down to the job scripts. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stagger.executor.base import StageLaunch
from stagger.executor.kinds import runner_of
from stagger.executor.limits import check_limits
from stagger.launch.check import check_fingerprints, continued, refuse_other_stages
from stagger.launch.hand_over import task_settings
from stagger.launch.launch import Wishes, foreign_files, removals
from stagger.launch.plans import NO_OBJECTS, plan_for_show
from stagger.launch.stages import wanted_ranks
from stagger.launch.start_over import past_of
from stagger.launch.stored_steps import pickled
from stagger.pipeline.chain import Step
from stagger.plan.stage_plan import StagePlan, with_plans
from stagger.rundir.launch_records import Group, read_launches
from stagger.rundir.run_folder import RunFolder, RunRecord, Stage, open_storage, run_fingerprint
from stagger.spec.models import RunSpec
from stagger.status.stage_status import undecided_ranks
from stagger.terminal import logger


def dry_run(spec: RunSpec, wishes: Wishes, objects: Mapping[str, Sequence[Step]] = NO_OBJECTS) -> dict[str, Any]:
    """The document that `stagger launch --dry-run --json` prints. Raises StaggerError as a launch would.

    `objects` maps stages to their steps, in a run made of Python objects. Logs what the launch would remove.
    """
    run = RunFolder(open_storage(spec), spec.run_dir)
    if not wishes.fresh:
        spec = continued(run, spec)
    made, plans, done = plan_for_show(run, spec, objects, fresh=wishes.fresh)
    made.check_needs(run.storage)
    pickled(objects)
    spec = with_plans(spec, plans)
    run.storage.check_writable(spec.run_dir)
    before = run.load()
    if before is not None and not wishes.fresh:
        refuse_other_stages(run, before, spec)
        check_fingerprints(run, before, plans)
    past = past_of(run, before, RunRecord(spec, outputs=made.outputs)) if wishes.fresh else []
    for line in removals(past, foreign_files(run, made, plans, lambda stage: done[stage.name], past, wishes)):
        logger.info(f"the launch would remove files: {line}")
    fingerprints = {name: plan.fingerprint for name, plan in plans.items()}
    record = RunRecord(spec, {**dict.fromkeys((stage.name for stage in spec.stages), ""), **fingerprints})
    ranks = {
        one.name: [rank for rank in wanted_ranks(one, wishes.limit) if rank not in done[one.name]]
        for one in spec.stages
    }
    starting = {name: len(ranks[name]) for name in plans}
    check_limits(
        spec, starting, {} if wishes.limit else {name: len(ranks[name]) for name in ranks.keys() - plans.keys()}
    )
    assumed: list[str] = []
    stages = [dry_stage(stage, plans.get(stage.name), ranks[stage.name], assumed) for stage in run.stages(record)]
    for sentence in dict.fromkeys(assumed):
        logger.warning(sentence)
    return {
        "run_dir": spec.run_dir,
        "fingerprint": run_fingerprint(fingerprints),
        "profile": spec.profile,
        "origins": spec.origins,
        "stages": stages,
    }


def dry_stage(stage: Stage, plan: StagePlan | None, ranks: list[int], assumed: list[str]) -> dict[str, Any]:
    """The entry of one stage, of which `ranks` would be launched. Adds to `assumed` what the cluster does not say.

    While its number of ranks is undecided, the scripts are those for one rank.
    """
    spec = stage.spec
    runner = runner_of(stage.record.spec, spec, plan.input if plan else None)
    number = len(read_launches(stage.folder)) + 1
    settings = task_settings(stage, runner, number, len(ranks))
    launch = StageLaunch(stage, number, [Group(ranks)], settings)
    arrays = runner.arrays(launch) if ranks else []
    assumed += [runner.assumed] if runner.assumed else []
    undecided = undecided_ranks(spec)
    return {
        "name": spec.name,
        "executor": spec.executor.type,
        "depends": list(spec.depends),
        "uses": list(spec.uses),
        "tasks": None if undecided else spec.tasks,
        "ranks": None if undecided else len(ranks),
        "undecided": undecided,
        "shards": plan.shards if plan else None,
        "bytes": plan.input.bytes if plan else None,
        "jobs": None if undecided else sum(len(array.ranks) for array in arrays),
        "arrays": [{"jobs": len(a.ranks), "throttle": a.throttle, "script": a.script} for a in arrays],
        "end_script": runner.end_script(launch) if ranks else "",
        "start": {
            "policy": spec.start_policy,
            "window_s": settings.window_s,
            "hold_s": settings.hold_s,
            "summary": runner.start_summary(len(ranks)) if ranks and not undecided else "",
        },
    }
