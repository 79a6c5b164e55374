"""Plans the stages that are ready, and checks before a launch that the plans fit the run directory."""

from __future__ import annotations

import os
import stat
import time
from typing import Any

from stagger.errors import StaggerError, agreeing, plural
from stagger.pipeline.names import add_import_path
from stagger.plan.stage_plan import StagePlan, steps_of, with_plans
from stagger.plan.stage_steps import create_steps
from stagger.plan.step_checks import output_folders
from stagger.progress import busy
from stagger.ranks import format_ranks, named_ranks
from stagger.rundir.output_names import OutputNames
from stagger.rundir.plan_file import read_all
from stagger.rundir.run_folder import RunFolder, RunRecord, Stage
from stagger.rundir.stage_folder import StageFolder
from stagger.spec.blocks import HOST_STEP
from stagger.spec.models import RunSpec
from stagger.status.look import Look
from stagger.storage.ownership import foreign, user_name
from stagger.storage.secrecy import REFERENCE
from stagger.storage.storage import expand_variables, join
from stagger.terminal import logger


def continued(run: RunFolder, spec: RunSpec) -> RunSpec:
    """The run with the numbers of ranks that an earlier launch decided, for stages with `tasks: auto`."""
    if RunRecord(spec).is_sized or (before := run.load()) is None:
        return spec
    return spec.sized_as(before.spec)


def check_fingerprints(folder: RunFolder, record: RunRecord, plans: dict[str, StagePlan]) -> None:
    """Raise StaggerError, naming the changes, when the run directory was made with other steps, tasks or inputs.

    Args:
        folder: the run directory.
        record: its run.json.
        spec: the run of this launch.
        plans: the plans of this launch, by stage name.
    """
    for name, plan in plans.items():
        old = record.fingerprints.get(name)
        if old is None or old == plan.fingerprint:
            continue
        changes = difference(folder.stage(record, name), old, plan)
        raise StaggerError(
            f"{folder.path} holds another run of stage {name}: {'; '.join(changes)}. Give this one a new run_dir,"
            f" continue the old one unchanged with: stagger retry {folder.path}, or start over with: stagger launch"
            " FILE --fresh (in Python: fresh=True), which removes what the old one has written."
        )


def refuse_other_stages(folder: RunFolder, before: RunRecord, spec: RunSpec) -> None:
    """Raise StaggerError when the run directory was made with other stages: a folder of its own for each of several."""
    old, new = ([stage.name for stage in one.stages] for one in (before.spec, spec))
    if set(old) != set(new):
        part = [name for name in new if name in old] if len(old) > 1 else []
        raise StaggerError(
            f"{folder.path} holds another run, with the {plural(len(old), 'stage')} {', '.join(old)}, and this"
            f" one has {', '.join(new)}; give this one a new run_dir, start over with --fresh (in Python: fresh=True)"
            + (
                f", or continue a stage of the other with: stagger retry {folder.path} --stage {part[0]}"
                if part
                else "."
            )
        )


def save_plans(
    folder: RunFolder,
    before: RunRecord | None,
    spec: RunSpec,
    plans: dict[str, StagePlan],
    outputs: dict[str, list[str]],
    names: dict[str, list[OutputNames]],
) -> RunRecord:
    """Write missing and outdated plans, and run.json with the settings of this launch. `before` is the previous one.

    The record returned has the numbers of ranks that the plans decided.
    """
    fingerprints = dict(before.fingerprints) if before else {}
    inputs = dict(before.inputs) if before else {}
    for name, plan in plans.items():
        path = folder.stage(RunRecord(spec), name).folder.plan(plan.fingerprint)
        same = fingerprints.get(name) == plan.fingerprint and inputs[name] == plan.input
        if not same or folder.storage.entry(path) is None:
            with busy(f"{name}: writing the plan"):
                plan.write(folder.storage, path)
        fingerprints[name], inputs[name] = plan.fingerprint, plan.input
    spec = with_plans(spec, plans)
    created, pickles = (before.created, before.pickles) if before else (time.time(), {})
    record = RunRecord(spec, fingerprints, inputs, outputs, names, created, pickles)
    folder.save(record)
    return record


def warn_of_new_times(look: Look, before: RunRecord, plan: StagePlan) -> None:
    """Warn about local input files that were modified since the last launch, but still have the same size.

    They may only have been touched, or copied again, so the launch goes on and plans them as they are now.
    """
    name = plan.stage.name
    if before.fingerprints.get(name) != plan.fingerprint or before.inputs[name].times == plan.input.times:
        return
    now = set(map(hash, plan.ranks.table))
    old = read_all(look.stage.folder.storage, look.stage.folder.plan(plan.fingerprint))
    changed = {
        one.rank: gone for one in old if (gone := [shard.name for shard in one.shards if hash(shard) not in now])
    }
    done = sorted(changed.keys() & look.done)
    first, count = min(min(names) for names in changed.values()), sum(map(len, changed.values()))
    logger.warning(
        f"{name}: {count} input file{'s have' if count > 1 else ' has'} the same size as when the run was planned, but"
        f" {'were' if count > 1 else 'was'} replaced or modified since: {first}{', ...' if count > 1 else ''}; ranks"
        f" that are not done read {'them as they are' if count > 1 else 'it as it is'} now"
        + (
            f". {named_ranks(done, 'is').capitalize()} done and {agreeing(len(done), 'has')} read the earlier ones; to"
            f" run them again: stagger retry {look.stage.run.path} --stage {name} --rank {format_ranks(done)} --again"
            if done
            else ""
        )
    )


def check_variables(stage: Stage) -> None:
    """Raise StaggerError when a variable that the tasks of a stage need is not set, or moves their outputs."""
    spec = stage.record.spec
    expand_variables(spec.storage_options, ("storage_options",))
    if not spec.pickled and any(REFERENCE.search(f"{step.params} {step.removed}") for step in stage.spec.pipeline):
        refuse_moved_outputs(stage.record, {stage.name: output_folders(stage.spec, create_steps(stage.spec))})


def refuse_moved_outputs(before: RunRecord, outputs: dict[str, list[str]]) -> None:
    """Raise StaggerError when a planned stage of the run would write to other folders than before."""
    for name, folders in outputs.items():
        old = before.outputs.get(name, folders)
        if name in before.fingerprints and old != folders:
            raise StaggerError(
                f"{name}: its outputs would go to {', '.join(folders)}, but this run has {', '.join(old)}: a"
                " variable in its steps, or the folder of the launch, differs from before. Restore it, or use a new"
                " run_dir."
            )


def refuse_foreign_completions(look: Look, plan: StagePlan) -> None:
    """Raise StaggerError when a run directory without a run.json has completion records of another plan.

    Looks in the folder of this stage, and where a run with one stage, or with several, would have put its records.
    """
    run = look.stage.run
    elsewhere = {run.path, join(run.path, plan.stage.name)} - {look.stage.folder.path}
    for stage_folder in (look.stage.folder, *(StageFolder(run.storage, path) for path in elsewhere)):
        ranks = look.done if stage_folder is look.stage.folder else stage_folder.done()
        for record in stage_folder.completions(ranks):
            if record["fingerprint"] != plan.fingerprint:
                raise StaggerError(
                    f"{stage_folder.path} has completion records of another run, but no run.json; give this run a new"
                    " run_dir, or restore the run.json."
                )


def warn_of_foreign_code(spec: RunSpec) -> None:
    """Warn when modules come from a folder that all users may write to, or, for root, from another user's folder."""
    for folder in spec.import_path:
        info = os.stat(folder)
        if info.st_mode & stat.S_IWOTH:
            logger.warning(f"Steps are imported from {folder}, and all users may put modules there.")
        elif os.geteuid() == 0 and foreign(info):
            logger.warning(
                f"Steps are imported from {folder}, which belongs to {user_name(info.st_uid)}: their code runs as root."
            )


def enter(spec: RunSpec) -> None:
    """Change into the folder the run was launched from: relative paths and modules of its steps are resolved there.

    Raises StaggerError when that is not possible.
    """
    try:
        os.chdir(spec.cwd)
    except OSError as error:
        raise StaggerError(
            f"Cannot change into {spec.cwd}, the folder the run was launched from: {error}. Restore it."
        ) from error
    warn_of_foreign_code(spec)
    add_import_path(spec.import_path)


def difference(stage: Stage, old: str, new: StagePlan) -> list[str]:
    """The changes from the run's plan, with fingerprint `old`, to the plan of this launch: one phrase each."""
    changes = []
    for key in ("tasks", "shard_by"):
        before, after = getattr(stage.spec, key), getattr(new.stage, key)
        if before != after:
            changes.append(f"{key}: {before} before, {after} now")
    if not changes and stage.spec.ranks_dealt != new.stage.ranks_dealt:
        before, after = stage.spec.ranks_dealt, new.stage.ranks_dealt
        changes.append(f"ranks_per_job: {before} before, {after} now, and shard_by: bytes evens out jobs")
    before_steps, after_steps = steps_of(stage.spec), steps_of(new.stage)
    if len(before_steps) != len(after_steps):
        changes.append(f"steps: {len(before_steps)} before, {len(after_steps)} now")
    for number, (one, other) in enumerate(zip(before_steps, after_steps, strict=False), 1):
        if one["use"] == other["use"] == HOST_STEP:
            settings = one["params"]["settings"], other["params"]["settings"]
            changes += [
                f"blocks.{key}: {settings[0].get(key)!r} before, {value!r} now"
                for key, value in settings[1].items()
                if value != settings[0].get(key)
            ]
        elif one != other:
            changes.append(f"step {number}: {_step_text(one)} before, {_step_text(other)} now")
    before_shards = {s.name: s for rank in read_all(stage.folder.storage, stage.folder.plan(old)) for s in rank.shards}
    after_shards = {s.name: s for s in new.ranks.table}
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
