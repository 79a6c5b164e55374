"""Launches a run: plan, check, lock, look, then hand each ready stage to its executor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from stagger.errors import StaggerError
from stagger.executor.kinds import runner_of
from stagger.launch.check import (
    check_fingerprints,
    continued,
    plan_stages,
    ready_stages,
    refuse_foreign_completions,
    refuse_moved_outputs,
    save_plans,
    warn_of_foreign_code,
    warn_of_new_times,
)
from stagger.launch.follow import follow
from stagger.launch.launched import Launched
from stagger.launch.stages import run_stages
from stagger.pipeline.chain import Step, add_import_path
from stagger.pipeline.pickled import dump_pickle
from stagger.plan.stage_plan import StagePlan, output_folders, with_plans
from stagger.plan.stage_steps import create_steps
from stagger.rundir.access import share_folder
from stagger.rundir.remembered import remember
from stagger.rundir.run_folder import RunFolder, RunRecord, open_storage
from stagger.spec.models import RunSpec
from stagger.status.look import Look, look_at_run
from stagger.storage.storage import is_local, join
from stagger.terminal import logger


def launch(
    spec: RunSpec, objects: Sequence[Step] | None = None, *, limit: int | None = None, wait: bool = False
) -> Launched:
    """Launch the ranks of a run that are not done.

    Args:
        spec: the run.
        objects: the steps of a run made of Python objects.
        limit: launch only the first `limit` ranks of each stage.
        wait: return when all Slurm jobs have ended.

    Raises:
        StaggerError: the run cannot be launched as requested; nothing was launched.
    """
    run = RunFolder(open_storage(spec), spec.run_dir)
    with run.changing(RunRecord(spec)):
        return _launch(run, spec, objects, limit=limit, wait=wait)


def _launch(
    run: RunFolder, spec: RunSpec, objects: Sequence[Step] | None, *, limit: int | None, wait: bool
) -> Launched:
    storage = run.storage
    warn_of_foreign_code(spec)
    add_import_path(spec.import_path)
    spec = continued(run, spec)
    steps = {stage.name: create_steps(stage, objects) for stage in spec.stages}
    outputs = {stage.name: output_folders(stage, steps[stage.name]) for stage in spec.stages}
    plans = plan_stages(storage, ready_stages(spec, done=[]), steps)
    spec = with_plans(spec, plans)
    check_runners(spec, plans)
    storage.check_writable(spec.run_dir)
    if (before := run.load()) is not None:
        check_fingerprints(run, before, plans)
    payload = dump_pickle(objects) if objects else b""
    run.create(spec)
    remember(run.path, spec.storage_options)
    with run.lock.held():
        before = run.load()  # Read again: another launch may have created the run since.
        looks = look_at_run(run, RunRecord(spec))
        done = {name for name, look in looks.items() if look.is_done}
        plans |= plan_stages(storage, [stage for stage in ready_stages(spec, done) if stage.name not in plans], steps)
        spec = with_plans(spec, plans)
        looks = {name: replace(look, stage=run.stage(RunRecord(spec), name)) for name, look in looks.items()}
        check_runners(spec, plans)
        if before is None:
            for name, plan in plans.items():
                refuse_foreign_completions(looks[name], plan)
        else:
            check_fingerprints(run, before, plans)
            refuse_moved_outputs(before, outputs)
        for name, plan in plans.items():
            refuse_if_active(looks[name])
            if before is not None:
                warn_of_new_times(looks[name], before, plan)
            warn_of_foreign_outputs(looks[name], plan, outputs[name])
        for path in (path for paths in outputs.values() for path in paths):
            make_output_folder(run, spec, path)
        record = save_plans(run, before, spec, plans, outputs)
        launched = run_stages(run, record, looks, payload, limit=limit)
    return follow(run, record, launched, limit) if wait else launched


def make_output_folder(run: RunFolder, spec: RunSpec, path: str) -> None:
    """Create an output folder; for the run's group if the run is shared and the folder is new."""
    if spec.shared and is_local(path) and not os.path.isdir(path):
        run.storage.make_folder(path)
        share_folder(path, run.path)
    else:
        run.storage.make_folder(path)


def check_runners(spec: RunSpec, plans: dict[str, StagePlan]) -> None:
    """Raise StaggerError when this machine cannot run a stage, or its limits allow no start window."""
    for stage in spec.stages:
        runner = runner_of(spec, stage, plans[stage.name].input if stage.name in plans else None)
        runner.check()
        runner.window(stage.tasks)


def warn_of_foreign_outputs(look: Look, plan: StagePlan, folders: list[str]) -> None:
    """Warn about existing files that this run would overwrite but did not write."""
    with look.stage.folder.blaming():
        mine = {output["path"] for record in look.completions for output in record["outputs"]}
    there = [join(path, entry.name) for path in folders for entry in look.stage.folder.storage.list(path)]
    foreign = [path for path in there if path in plan.outputs and path not in mine]
    if foreign:
        logger.warning(
            f"{plan.stage.name}: {len(foreign)} of its output files already exist but were not written by this run;"
            f" they will be replaced: {foreign[0]}{', ...' if len(foreign) > 1 else ''}. Stop this run if another one"
            " writes there."
        )


def refuse_if_active(look: Look) -> None:
    path = look.stage.run.path
    if look.activity.ranks:
        raise StaggerError(
            f"{path} is already running: {', '.join(look.activity.holders)}. Follow it with: stagger status"
            f" {path}; launch ranks that are neither done nor active with: stagger retry {path}; stop it with:"
            f" stagger cancel {path}"
        )
