"""Before anything is launched: the plans of the stages that are ready, and whether they fit the run directory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from stagger.errors import StaggerError
from stagger.pipeline.chain import Step, add_import_path
from stagger.plan.stage_plan import StagePlan, make_plan, steps_of
from stagger.progress import busy
from stagger.rundir.plan_file import read_all
from stagger.rundir.run_folder import RunFolder, RunRecord
from stagger.rundir.stage_folder import StageFolder
from stagger.spec.models import RunSpec, StageSpec
from stagger.storage.storage import Storage, join


def plan_ready_stages(spec: RunSpec, folder: RunFolder, objects: Sequence[Step] | None) -> dict[str, StagePlan]:
    """The plans of the stages whose input is there: those that depend on nothing, or on stages that are done."""
    add_import_path(spec.import_path)
    plans: dict[str, StagePlan] = {}
    for stage in spec.stages:
        if all(is_done(folder, spec, spec.stage(name)) for name in stage.depends):
            plans[stage.name] = make_plan(folder.storage, stage, objects)
    return plans


def is_done(folder: RunFolder, spec: RunSpec, stage: StageSpec) -> bool:
    return len(folder.stage(spec, stage).done()) >= stage.tasks


def check_fingerprints(folder: RunFolder, plans: dict[str, StagePlan]) -> None:
    """Refuse a run directory that was made with other steps, tasks or inputs. The message says what changed."""
    record = folder.load()
    if record is None:
        for plan in plans.values():
            refuse_foreign_completions(folder, plan)
        return
    for name, plan in plans.items():
        old = record.fingerprints.get(name)
        if old is None or old == plan.fingerprint:
            continue
        old_stage = record.spec.stage(name)
        changes = difference(folder.storage, folder.stage(record.spec, old_stage), old_stage, old, plan)
        raise StaggerError(
            f"{folder.path} holds another run of stage {name}: {'; '.join(changes)}. Give this one a new run_dir,"
            f" continue the old one as it was with: stagger retry {folder.path}, or remove the folder."
        )
    old_names = [stage.name for stage in record.spec.stages]
    if not plans.keys() <= set(old_names):
        raise StaggerError(
            f"{folder.path} holds another run, with the stages {', '.join(old_names)}; give this one a new run_dir."
        )


def save_plans(
    folder: RunFolder, spec: RunSpec, plans: dict[str, StagePlan], outputs: dict[str, list[str]]
) -> RunRecord:
    """Write the plans that are not there yet, and run.json with the settings of this launch."""
    before = folder.load()
    fingerprints = dict(before.fingerprints) if before else {}
    inputs = dict(before.inputs) if before else {}
    for name, plan in plans.items():
        path = folder.stage(spec, plan.stage).plan(plan.fingerprint)
        if fingerprints.get(name) != plan.fingerprint or folder.storage.entry(path) is None:
            with busy(f"{name}: writing the plan"):
                folder.storage.write(path, plan.encode())
        fingerprints[name], inputs[name] = plan.fingerprint, plan.input
    record = RunRecord(spec, fingerprints, inputs, outputs, before.created if before else time.time())
    folder.save(record)
    return record


def refuse_foreign_completions(folder: RunFolder, plan: StagePlan) -> None:
    """Refuse completion records that are there without a run.json and of another plan: they are not this run's."""
    for stage_folder in (
        StageFolder(folder.storage, folder.path),
        StageFolder(folder.storage, join(folder.path, plan.stage.name)),
    ):
        for record in stage_folder.completions(stage_folder.done()):
            if record.get("fingerprint") != plan.fingerprint:
                raise StaggerError(
                    f"{stage_folder.path} has completion records of another run, and no run.json; give this run a new"
                    " run_dir, or restore the run.json."
                )


def difference(storage: Storage, folder: StageFolder, old_stage: StageSpec, old: str, new: StagePlan) -> list[str]:
    """What changed between the plan that the run was made with and the one that this launch found."""
    changes = []
    for key in ("tasks", "shard_by"):
        before, after = getattr(old_stage, key), getattr(new.stage, key)
        if before != after:
            changes.append(f"{key}: {before} before, {after} now")
    before_steps, after_steps = steps_of(old_stage), steps_of(new.stage)
    if len(before_steps) != len(after_steps):
        changes.append(f"steps: {len(before_steps)} before, {len(after_steps)} now")
    for number, (one, other) in enumerate(zip(before_steps, after_steps, strict=False), 1):
        if one != other:
            changes.append(f"step {number}: {_step_text(one)} before, {_step_text(other)} now")
    before_shards = {s.name: s for rank in read_all(storage, folder.plan(old)) for s in rank.shards}
    after_shards = {s.name: s for shards in new.ranks for s in shards}
    for what, names in (
        ("new", after_shards.keys() - before_shards.keys()),
        ("gone", before_shards.keys() - after_shards.keys()),
        ("changed", {n for n in after_shards.keys() & before_shards if after_shards[n] != before_shards[n]}),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            changes.append(f"input: {min(names)}{more} {'is' if len(names) == 1 else 'are'} {what}")
    return changes


def _step_text(step: dict[str, Any]) -> str:
    return f"{step['use']}({', '.join(f'{key}={value!r}' for key, value in step['params'].items())})"
