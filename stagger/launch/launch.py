"""Launches a run: plan, check, lock, look, then hand each ready stage to its executor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from stagger.errors import StaggerError
from stagger.executor.kinds import runner_of
from stagger.launch import background
from stagger.launch.check import (
    check_fingerprints,
    plan_stages,
    ready_stages,
    refuse_foreign_completions,
    refuse_moved_outputs,
    refuse_other_stages,
    save_plans,
    warn_of_foreign_code,
    warn_of_new_times,
)
from stagger.launch.follow import follow, pending_stages
from stagger.launch.launched import Launched
from stagger.launch.stages import run_stages
from stagger.launch.stored_steps import pickled, store_steps
from stagger.pipeline.chain import Step, add_import_path
from stagger.plan.stage_plan import StagePlan, output_folders
from stagger.plan.stage_steps import create_steps
from stagger.rundir.access import share_folder
from stagger.rundir.run_folder import RunFolder, RunRecord, open_storage
from stagger.spec.models import RunSpec
from stagger.status.look import Look, look_at_run
from stagger.storage.storage import is_local, join
from stagger.terminal import logger

#: The steps of a run of a pipeline file, which names them all.
NO_OBJECTS: Mapping[str, Sequence[Step]] = MappingProxyType({})


def launch(
    spec: RunSpec,
    objects: Mapping[str, Sequence[Step]] = NO_OBJECTS,
    *,
    limit: int | None = None,
    wait: bool = False,
    in_background: bool = False,
) -> Launched:
    """Launch the ranks of a run that are not done.

    Args:
        spec: the run.
        objects: stage -> its steps, of a run made of Python objects.
        limit: launch only the first `limit` ranks of each stage.
        wait: return when all Slurm jobs have ended.
        in_background: run local ranks in a process of their own, and return when it has begun.

    Raises:
        StaggerError: the run cannot be launched as requested; nothing was launched.
    """
    run = RunFolder(open_storage(spec), spec.run_dir)
    with run.changing(RunRecord(spec)):
        record, launched, waiting = _launch(run, spec, objects, limit=limit, in_background=in_background)
        if waiting:
            background.start(run, record, limit=limit)
        return follow(run, record, launched, limit) if wait else launched


def _launch(
    run: RunFolder,
    spec: RunSpec,
    objects: Mapping[str, Sequence[Step]],
    *,
    limit: int | None,
    in_background: bool,
) -> tuple[RunRecord, Launched, list[str]]:
    """Launch what can start now. Returns the run's record, the launch, and the local stages left to the background."""
    storage = run.storage
    warn_of_foreign_code(spec)
    add_import_path(spec.import_path)
    steps = {stage.name: create_steps(stage, objects.get(stage.name)) for stage in spec.stages}
    outputs = {stage.name: output_folders(stage, steps[stage.name]) for stage in spec.stages}
    plans = plan_stages(storage, ready_stages(spec, done=[]), steps)
    check_runners(spec, plans)
    storage.check_writable(spec.run_dir)
    if (before := run.load()) is not None:
        refuse_other_stages(run, before, spec)
        check_fingerprints(run, before, plans)
    payloads = pickled(objects)
    run.create(spec)
    with run.lock.held():
        before = run.load()  # Read again: another launch may have created the run since.
        looks = look_at_run(run, RunRecord(spec))
        done = {name for name, look in looks.items() if look.is_done}
        plans |= plan_stages(storage, [stage for stage in ready_stages(spec, done) if stage.name not in plans], steps)
        check_runners(spec, plans)
        if before is None:
            for name, plan in plans.items():
                refuse_foreign_completions(looks[name], plan)
        else:
            refuse_other_stages(run, before, spec)
            check_fingerprints(run, before, plans)
            refuse_moved_outputs(before, outputs)
        for name, plan in plans.items():
            refuse_if_active(looks[name])
            if before is not None:
                warn_of_new_times(looks[name], before, plan)
            warn_of_foreign_outputs(looks[name], plan, outputs[name])
        for path in (path for paths in outputs.values() for path in paths):
            make_output_folder(run, spec, path)
        record = store_steps(run, save_plans(run, before, spec, plans, outputs), looks, payloads)
        if payloads:
            run.save(record)
        local = {stage.name for stage in spec.stages if stage.executor.type == "local"} if in_background else set()
        launched = run_stages(run, record, looks, limit=limit, only={one.name for one in spec.stages} - local)
        return record, launched, [name for name in pending_stages(record, looks) if name in local]


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
