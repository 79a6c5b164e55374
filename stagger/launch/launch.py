"""Launches a run: plan, check, lock, look, then hand each ready stage to its executor."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from stagger.errors import StaggerError
from stagger.executor.kinds import runner_of
from stagger.launch import background
from stagger.launch.check import (
    check_fingerprints,
    continued,
    refuse_foreign_completions,
    refuse_moved_outputs,
    refuse_other_stages,
    save_plans,
    warn_of_foreign_code,
    warn_of_new_times,
)
from stagger.launch.follow import follow, pending_stages
from stagger.launch.foreign import Foreign, find_foreign, recorded, refuse_foreign, remove_foreign, unfinished
from stagger.launch.launched import Launched
from stagger.launch.leaving import ending, said
from stagger.launch.plans import NO_OBJECTS, Pipeline, plan_stages, ready_stages
from stagger.launch.stages import check_room, completions_of, lost_results, run_stages
from stagger.launch.start_over import PastStage, as_new, described, past_of, refuse_if_running, undo_all
from stagger.launch.stored_steps import pickled, store_steps
from stagger.pipeline.chain import Step
from stagger.pipeline.names import add_import_path
from stagger.plan.stage_plan import StagePlan, with_plans
from stagger.rundir.access import share_folder
from stagger.rundir.remembered import remember
from stagger.rundir.run_folder import RunFolder, RunRecord, Stage, open_storage
from stagger.spec.models import RunSpec
from stagger.status.look import Look, done_ranks, look_at_run
from stagger.storage.storage import Storage, is_local
from stagger.terminal import logger


@dataclass(frozen=True)
class Wishes:
    """What a launch is asked for.

    limit: launch only the first `limit` ranks of each stage.
    wait: return when all Slurm jobs have ended.
    overwrite: remove files in the output folders that have names of the run's outputs but are none of them.
    fresh: start over: undo all ranks of earlier launches, and remove their records and outputs.
    in_background: run local ranks in a process of their own, and return when it has begun.
    confirm: called before anything is removed, once it is logged what; raises to remove and launch nothing.
    """

    limit: int | None = None
    wait: bool = False
    overwrite: bool = False
    fresh: bool = False
    in_background: bool = False
    confirm: Callable[[], None] = lambda: None


NO_WISHES = Wishes()


def launch(spec: RunSpec, wishes: Wishes = NO_WISHES, objects: Mapping[str, Sequence[Step]] = NO_OBJECTS) -> Launched:
    """Launch the ranks of a run that are not done.

    Args:
        spec: the run.
        wishes: which ranks to launch, how long to wait, and what may be removed.
        objects: stage -> its steps, of a run made of Python objects.

    Raises:
        StaggerError: the run cannot be launched as requested; nothing was launched.
    """
    run = RunFolder(open_storage(spec), spec.run_dir)
    with run.changing(RunRecord(spec)):
        record, launched, waiting = _launch(run, spec, objects, wishes)
        if waiting:
            background.start(run, record, limit=wishes.limit)
        return follow(run, record, launched, wishes.limit) if wishes.wait else launched


def _launch(
    run: RunFolder, spec: RunSpec, objects: Mapping[str, Sequence[Step]], wishes: Wishes
) -> tuple[RunRecord, Launched, list[str]]:
    """Launch what can start now. Returns the run's record, the launch, and the local stages left to the background."""
    storage = run.storage
    warn_of_foreign_code(spec)
    add_import_path(spec.import_path)
    if not wishes.fresh:
        spec = continued(run, spec)
    made = Pipeline.create(spec, objects)
    made.check_needs(storage)
    spec = made.spec
    plans = plan_stages(storage, ready_stages(spec, done=[]), made, completions_of({}))
    spec = with_plans(spec, plans)
    made = replace(made, spec=spec)
    check_runners(spec, plans)
    storage.check_writable(spec.run_dir)
    foreign = None
    if (before := run.load()) is None:
        foreign = foreign_files(run, made, plans, done_ranks, [], wishes)  # Before there is a run directory.
    elif not wishes.fresh:
        refuse_other_stages(run, before, spec)
        check_fingerprints(run, before, plans)
    payloads = pickled(objects)
    run.create(spec)
    remember(run.path, spec.storage_options)
    with run.lock.held():
        before = run.load()  # Read again: another launch may have created the run since.
        past = past_of(run, before, RunRecord(spec, outputs=made.outputs)) if wishes.fresh else []
        refuse_if_running(past)
        looks = look_at_run(run, RunRecord(spec))
        if wishes.fresh:
            looks = {name: as_new(look) for name, look in looks.items()}
        lost = lost_results(looks, looks)
        done = {name for name, look in looks.items() if look.is_done and name not in lost}
        ready = [stage for stage in ready_stages(spec, done) if stage.name not in plans]
        plans |= plan_stages(storage, ready, made, completions_of(looks))
        spec = with_plans(spec, plans)
        made = replace(made, spec=spec)
        looks = {name: replace(look, stage=run.stage(RunRecord(spec), name)) for name, look in looks.items()}
        check_runners(spec, plans)
        check_plans(run, before, made, plans, looks, fresh=wishes.fresh)
        if foreign is None or before is not None:
            foreign = foreign_files(run, made, plans, lambda stage: looks[stage.name].done, past, wishes)
        if past or foreign:
            refuse_own_input(past, made.inputs(plans))
            check_room(spec, looks, lost, wishes.limit)
            clear(storage, past, foreign, wishes)
        for path in (path for paths in made.outputs.values() for path in paths):
            make_output_folder(run, spec, path)
        record = save_plans(run, None if wishes.fresh else before, spec, plans, made.outputs, made.names)
        record = store_steps(run, record, looks, payloads)
        if payloads:
            run.save(record)
        looks = {name: replace(look, stage=run.stage(record, name)) for name, look in looks.items()}
        stages = {stage.name: stage.executor.type for stage in spec.stages}
        local = {name for name, kind in stages.items() if kind == "local"} if wishes.in_background else set()
        launched = run_stages(run, record, looks, limit=wishes.limit, only=stages.keys() - local, lost=lost)
        return record, launched, [name for name in pending_stages(record, looks) if name in local]


def foreign_files(
    run: RunFolder,
    made: Pipeline,
    plans: dict[str, StagePlan],
    done: Callable[[Stage], set[int]],
    past: Sequence[PastStage],
    wishes: Wishes,
) -> list[Foreign]:
    """The files in the output folders that mix with the run's outputs. Raises StaggerError unless they may be removed.

    `done` gives the ranks of a stage that are done; `past` is what will be undone of the run.
    """
    folder = RunFolder(run.storage, run.path) if wishes.fresh else run  # What it reads is kept, and is undone here.
    stages = folder.stages(RunRecord(made.spec))
    own: list[Callable[[], Iterable[str]]] = [lambda: made.inputs(plans)]
    if past:
        own += [lambda: itertools.chain.from_iterable(one.files for one in past)]
    else:
        own += [lambda: recorded(stages, done), lambda: unfinished(stages, done)]
    own.append(lambda: made.later_inputs(run.storage, plans.keys()))
    found = find_foreign(run.storage, made.names, own)
    if not wishes.overwrite:
        refuse_foreign(found)
    return found


def check_plans(
    run: RunFolder,
    before: RunRecord | None,
    made: Pipeline,
    plans: dict[str, StagePlan],
    looks: dict[str, Look],
    *,
    fresh: bool,
) -> None:
    """Raise StaggerError when the plans do not fit what the run directory holds, or ranks are active.

    `before` is its run.json. With `fresh`, what it holds will be undone.
    """
    if before is None:
        for name, plan in plans.items():
            refuse_foreign_completions(looks[name], plan)
    elif not fresh:
        refuse_other_stages(run, before, made.spec)
        check_fingerprints(run, before, plans)
        refuse_moved_outputs(before, made.outputs)
    for name, plan in plans.items():
        refuse_if_active(looks[name])
        if before is not None and not fresh:
            warn_of_new_times(looks[name], before, plan)


def clear(storage: Storage, past: Sequence[PastStage], foreign: Sequence[Foreign], wishes: Wishes) -> None:
    """Say what will be removed, let the user confirm it, and remove it."""
    if said := removals(past, foreign):
        for line in said:
            logger.warning(line)
        wishes.confirm()
        undo_all(past)
        remove_foreign(storage, foreign)


def refuse_own_input(past: Sequence[PastStage], inputs: Iterable[str]) -> None:
    """Raise StaggerError when a stage would read what `--fresh` removes."""
    files = set().union(*(one.files for one in past))
    if path := next((path for path in inputs if path in files), None):
        raise StaggerError(
            f"{path} is an output of an earlier launch, which --fresh would remove, and input of this one: leave it out"
            " with glob, or choose another folder for the output."
        )


def removals(past: Sequence[PastStage], foreign: Sequence[Foreign]) -> list[str]:
    """What a launch will remove, one sentence each."""
    said = [described(past)] if any(one.outputs for one in past) else []
    return said + ([f"--overwrite removes {'; '.join(map(str, foreign))}"] if foreign else [])


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


def refuse_if_active(look: Look) -> None:
    path = look.stage.run.path
    if told := ending(look):
        raise StaggerError(
            f"{said(look, told)}. Launch again once they have ended, or let a command wait for them: stagger retry"
            f" {path}"
        )
    if look.activity.ranks:
        raise StaggerError(
            f"{path} is already running: {', '.join(look.activity.holders)}. Follow it with: stagger status"
            f" {path}; launch ranks that are neither done nor active with: stagger retry {path}; stop it with:"
            f" stagger cancel {path}"
        )
