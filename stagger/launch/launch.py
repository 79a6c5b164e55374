"""Launching a run: plan, check, lock, then hand each stage that is ready to its executor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from loguru import logger

from stagger.blocks.step import clear_registry
from stagger.errors import RunFailed, StaggerError, StorageError
from stagger.executor.base import StageLaunch, StageRunner
from stagger.executor.kinds import runner_of
from stagger.launch.cancel import check_ranks
from stagger.launch.check import check_fingerprints, is_done, plan_ready_stages, save_plans
from stagger.launch.follow import wait_for_slurm
from stagger.pipeline.chain import Step, add_import_path
from stagger.pipeline.pickled import dump_pickle, sha256
from stagger.plan.stage_plan import StagePlan, make_plan, output_folders
from stagger.ranks import format_ranks
from stagger.rundir.launch_records import Group, read_launches
from stagger.rundir.run_folder import RunFolder, RunRecord, open_storage
from stagger.rundir.stage_folder import StageFolder
from stagger.rundir.task_settings import TaskSettings
from stagger.spec.changes import changed_spec
from stagger.spec.models import RunSpec, StageSpec
from stagger.status.report import write_stats
from stagger.status.stage_status import StageStatus, activity_of, stage_status, status_of
from stagger.storage.storage import join
from stagger.task.upload_notes import abort_left_uploads

#: Seconds that a stage's end waits for the lock: a stage that runs locally holds it for as long as it runs.
LOCK_WAIT_S = 6 * 3600.0


@dataclass
class Launched:
    """How a launch left the run. `submitted` when Slurm jobs are still to run."""

    run_dir: str
    stages: list[StageStatus] = field(default_factory=list)
    submitted: bool = False
    lost_outputs: list[str] = field(default_factory=list)
    unfinished: dict[str, list[int]] = field(default_factory=dict)

    @property
    def failed_ranks(self) -> dict[str, list[int]]:
        return {stage.name: stage.failed_ranks for stage in self.stages if stage.failed_ranks}

    def raise_if_failed(self) -> None:
        """Raise RunFailed when ranks failed, or outputs of ranks that were done are gone; it names them."""
        if self.lost_outputs:
            count = len(self.lost_outputs)
            raise RunFailed(
                f"{count} of the outputs of ranks that are done are gone or"
                f" changed: {self.lost_outputs[0]}{', ...' if count > 1 else ''}. Put them back; or remove the"
                f" completion records of those ranks in {self.run_dir} and launch again.",
                self.failed_ranks,
            )
        if self.failed_ranks:
            count = sum(map(len, self.failed_ranks.values()))
            raise RunFailed(
                f"{count} rank{'s' if count > 1 else ''} of {self.run_dir} failed; see why with: stagger logs"
                f" {self.run_dir} --failed; run them again with: stagger retry {self.run_dir}",
                self.failed_ranks,
            )
        if self.unfinished:
            names = "; ".join(f"{name}: {format_ranks(ranks)}" for name, ranks in self.unfinished.items())
            raise RunFailed(
                f"Ranks of {self.run_dir} were stopped before they were done ({names}); launch them again with:"
                f" stagger retry {self.run_dir}"
            )


def launch(
    spec: RunSpec, objects: Sequence[Step] | None = None, *, limit: int | None = None, wait: bool = False
) -> Launched:
    """Launch whatever of the run is not done. `objects` are the steps of a run made of Python objects.

    Raises StaggerError when the request is wrong: nothing was launched then.
    """
    storage = open_storage(spec)
    folder = RunFolder(storage, spec.run_dir)
    outputs = {stage.name: output_folders(stage, objects) for stage in spec.stages}
    plans = plan_ready_stages(spec, folder, objects)
    for stage in spec.stages:
        planned = plans[stage.name].input if stage.name in plans else None
        executor = runner_of(spec, stage, planned)
        executor.check()
        executor.window(stage.tasks)  # Refuses a limit that says nothing.
    storage.check_writable(spec.run_dir)
    check_fingerprints(folder, plans)
    payload = dump_pickle(objects) if objects else b""
    folder.create()
    for path in (path for paths in outputs.values() for path in paths):
        storage.make_folder(path)
    with folder.lock():
        check_fingerprints(folder, plans)  # Once more: another launch may have made the run since.
        for name, plan in plans.items():
            refuse_if_active(folder, spec, spec.stage(name))
            warn_of_foreign_outputs(folder.stage(spec, plan.stage), plan, outputs[name])
        record = save_plans(folder, spec, plans, outputs)
        launched = run_stages(folder, record, payload, limit=limit)
    return follow(folder, record, launched, limit) if wait else launched


def warn_of_foreign_outputs(folder: StageFolder, plan: StagePlan, folders: list[str]) -> None:
    """Say what outputs are there already that no rank of this run has written: they will be replaced."""
    mine = {output["path"] for record in folder.completions(folder.done()) for output in record["outputs"]}
    there = [join(path, entry.name) for path in folders for entry in folder.storage.list(path)]
    foreign = [path for path in there if path in plan.outputs and path not in mine]
    if foreign:
        logger.warning(
            f"{plan.stage.name}: {len(foreign)} of its outputs are there already, written by something else, and will"
            f" be replaced: {foreign[0]}{', ...' if len(foreign) > 1 else ''}. Stop this if another run writes there."
        )


def retry(
    folder: RunFolder,
    record: RunRecord,
    *,
    stage: str | None = None,
    ranks: set[int] | None = None,
    failed_only: bool = False,
    changes: Sequence[str] = (),
    wait: bool = False,
) -> Launched:
    """Launch again whatever of a run is neither done nor active.

    Or of it only a `stage`, only `ranks`, only those that failed; with `changes` (`a.b=c`) of the settings, which stay.
    """
    enter(record.spec)
    with folder.lock():
        record = folder.load() or record
        if changes:
            record = replace(record, spec=changed_spec(record.spec, changes, stage))
        chosen = {one.name: chosen_ranks(folder, record, one, ranks, failed_only) for one in record.spec.chosen(stage)}
        if changes:
            folder.save(record)
        launched = run_stages(folder, record, b"", limit=None, only=set(chosen), ranks=chosen)
    return follow(folder, record, launched, None, chosen) if wait else launched


def chosen_ranks(
    folder: RunFolder, record: RunRecord, stage: StageSpec, ranks: set[int] | None, failed_only: bool
) -> set[int] | None:
    """The ranks of a stage that a retry is about, None for all. Raises StaggerError for what cannot be run again."""
    stage_folder = folder.stage(record.spec, stage)
    if ranks is not None:
        check_ranks(stage, ranks)
        if done := ranks & stage_folder.done():
            raise StaggerError(
                f"Ranks {format_ranks(done)} of {stage.name} are done; a completed rank is never run again."
            )
        if active := ranks & activity_of(stage_folder, read_launches(stage_folder), folder.path).ranks:
            raise StaggerError(
                f"Ranks {format_ranks(active)} of {stage.name} are queued or running; stop them first, with: stagger"
                f" cancel {folder.path} --rank {format_ranks(active)}"
            )
    if failed_only:
        failed = set(stage_status(stage_folder, stage, folder.path).failed_ranks)
        ranks = failed if ranks is None else ranks & failed
    return ranks


def enter(spec: RunSpec) -> None:
    """Take the place that the run was launched from: its steps' relative paths and modules start there."""
    try:
        os.chdir(spec.cwd)
    except OSError as error:
        raise StaggerError(f"The folder {spec.cwd}, which the run was launched from, is gone: {error}.") from error
    add_import_path(spec.import_path)


def follow(
    folder: RunFolder,
    record: RunRecord,
    launched: Launched,
    limit: int | None,
    ranks: Mapping[str, set[int] | None] = MappingProxyType({}),
) -> Launched:
    """Wait until all Slurm jobs of the run have ended, those of stages that others launch included.

    Then run the local stages that waited for them. No stage is launched twice.
    """
    if all(stage.executor.type == "local" for stage in record.spec.stages):
        return launched
    while True:
        try:
            wait_for_slurm(folder, record)
        except KeyboardInterrupt:
            logger.warning(f"no longer waiting; the jobs go on: stagger status {folder.path}")
            raise
        ready = ready_stages(folder, record)
        fresh = {
            s.name for s in ready if s.executor.type == "local" and not read_launches(folder.stage(record.spec, s))
        }
        if not fresh:
            break
        with folder.lock():
            launched.lost_outputs += run_stages(
                folder, folder.load() or record, b"", limit=limit, only=fresh
            ).lost_outputs
        if launched.lost_outputs:
            break
    ended = Launched(folder.path, status_of(folder, record), lost_outputs=launched.lost_outputs)
    for stage in ready_stages(folder, record):
        if ranks.get(stage.name) is None:
            note_unfinished(ended, folder.stage(record.spec, stage), stage, limit)
    return ended


def ready_stages(folder: RunFolder, record: RunRecord) -> list[StageSpec]:
    """The stages that are not done, and wait for nothing."""
    done = {stage.name for stage in record.spec.stages if is_done(folder, record.spec, stage)}
    return [stage for stage in record.spec.stages if stage.name not in done and done.issuperset(stage.depends)]


def launch_dependents(folder: RunFolder, record: RunRecord, name: str) -> Launched:
    """Launch the stages that waited for stage `name`, now that it is done."""
    enter(record.spec)
    with folder.lock(wait_s=LOCK_WAIT_S):
        record = folder.load() or record
        waited = [stage for stage in record.spec.stages if name in stage.depends]
        # A stage for the local executor is not for this small job, but for the machine of whoever follows the run.
        return run_stages(folder, record, b"", limit=None, only={s.name for s in waited if s.executor.type == "slurm"})


def refuse_if_active(folder: RunFolder, spec: RunSpec, stage: StageSpec) -> None:
    stage_folder = folder.stage(spec, stage)
    activity = activity_of(stage_folder, read_launches(stage_folder), folder.path)
    if activity.ranks:
        raise StaggerError(
            f"{folder.path} is already running: {', '.join(activity.holders)}. Follow it with: stagger status"
            f" {folder.path}; launch what is neither done nor active with: stagger retry {folder.path}; stop it with:"
            f" stagger cancel {folder.path}"
        )


def run_stages(
    folder: RunFolder,
    record: RunRecord,
    payload: bytes,
    *,
    limit: int | None,
    only: set[str] | None = None,
    ranks: Mapping[str, set[int] | None] = MappingProxyType({}),
) -> Launched:
    """Launch each stage as far as it can go now. What waits for Slurm jobs is launched by their finalize job."""
    launched = Launched(folder.path)
    for stage in record.spec.stages:
        if only is not None and stage.name not in only:
            continue
        stage_folder = folder.stage(record.spec, stage)
        waiting = [n for n in stage.depends if not is_done(folder, record.spec, record.spec.stage(n))]
        for name in needed_stages(folder, record.spec, stage):
            lost = [] if name in waiting else lost_outputs(folder.stage(record.spec, record.spec.stage(name)))
            launched.lost_outputs += [path for path in lost if path not in launched.lost_outputs]
            if lost and name != stage.name:
                waiting.append(name)
        if waiting:
            how = "" if stage.executor.type == "slurm" else f"; call stagger retry {folder.path} here then"
            logger.info(f"{stage.name}: starts when {', '.join(waiting)} is done{how}")
        else:
            if stage.name not in record.fingerprints:
                plan = make_plan(folder.storage, stage, None)
                record = save_plans(folder, record.spec, {stage.name: plan}, record.outputs)
            submitted = launch_stage(folder, record, stage, payload, limit, ranks.get(stage.name))
            launched.submitted |= submitted
            if not submitted and ranks.get(stage.name) is None:
                note_unfinished(launched, stage_folder, stage, limit)
        launched.stages.append(stage_status(stage_folder, stage, folder.path))
    return launched


def needed_stages(folder: RunFolder, spec: RunSpec, stage: StageSpec) -> list[str]:
    """Whose outputs must be there to go on: the stage's own, and, while it is not done, those that it reads.

    What only stages read that are done may be removed, and often is.
    """
    readers = [other for other in spec.stages if stage.name in other.depends]
    spent = readers and all(is_done(folder, spec, other) for other in readers)
    return [*([] if is_done(folder, spec, stage) else stage.depends), *([] if spent else [stage.name])]


def wanted_ranks(stage: StageSpec, limit: int | None) -> range:
    return range(min(limit or stage.tasks, stage.tasks))


def note_unfinished(launched: Launched, folder: StageFolder, stage: StageSpec, limit: int | None) -> None:
    """Note what was to run here and is neither done nor active, whatever the reason: that is never success."""
    settled = activity_of(folder, read_launches(folder), launched.run_dir).ranks
    settled |= folder.done()
    if ranks := [rank for rank in wanted_ranks(stage, limit) if rank not in settled]:
        launched.unfinished[stage.name] = ranks


def lost_outputs(folder: StageFolder) -> list[str]:
    """Outputs of ranks that are done which are not there any more as they were committed: one listing a folder."""
    recorded = [output for record in folder.completions(folder.done()) for output in record["outputs"]]
    sizes: dict[str, int] = {}
    for parent in {output["path"].rpartition("/")[0] for output in recorded}:
        sizes |= {join(parent, entry.name): entry.size for entry in folder.storage.list(parent)}
    return [output["path"] for output in recorded if sizes.get(output["path"]) != output["bytes"]]


def launch_stage(
    folder: RunFolder,
    record: RunRecord,
    stage: StageSpec,
    payload: bytes,
    limit: int | None,
    only: set[int] | None = None,
) -> bool:
    """Hand a stage's ranks that are neither done nor active to its executor. True when Slurm jobs were submitted."""
    stage_folder = folder.stage(record.spec, stage)
    launches = read_launches(stage_folder)
    active = activity_of(stage_folder, launches, folder.path).ranks
    done = stage_folder.done()
    wanted = wanted_ranks(stage, limit) if only is None else sorted(only)
    ranks = [rank for rank in wanted if rank not in done and rank not in active]
    if done:
        logger.info(f"{stage.name}: {len(done)} of {stage.tasks} ranks are done already")
    if not ranks:
        write_stats(stage_folder, stage)
        return False
    if not active:
        remove_leftovers(stage_folder, record, stage)
    start(folder, record, stage, [Group(ranks)], payload)
    if stage.executor.type == "local" and (write_stats(stage_folder, stage)["missing_ranks"] or stage.blocks):
        remove_leftovers(stage_folder, record, stage)
    return stage.executor.type == "slurm"


def start(folder: RunFolder, record: RunRecord, stage: StageSpec, groups: list[Group], payload: bytes = b"") -> None:
    """Hand ranks to the stage's executor, as the next launch of it."""
    stage_folder = folder.stage(record.spec, stage)
    launches = read_launches(stage_folder)
    executor = runner_of(record.spec, stage, record.inputs[stage.name])
    number = len(launches) + 1
    settings = task_settings(record, stage, stage_folder, executor, number, sum(len(group.ranks) for group in groups))
    settings = with_pickle(settings, record.spec, stage_folder, launches, payload)
    executor.check()
    executor.execute(StageLaunch(stage, stage_folder, number, groups, settings, folder.path))


def start_again(folder: RunFolder, record: RunRecord, stage: StageSpec, groups: list[Group]) -> None:
    """Launch ranks of a stage once more, each group with its own resources, for the job that ends the stage."""
    enter(record.spec)
    with folder.lock(wait_s=LOCK_WAIT_S):
        record = folder.load() or record
        stage_folder = folder.stage(record.spec, stage)
        settled = stage_folder.done() | activity_of(stage_folder, read_launches(stage_folder), folder.path).ranks
        left = [replace(group, ranks=[rank for rank in group.ranks if rank not in settled]) for group in groups]
        if left := [group for group in left if group.ranks]:
            start(folder, record, record.spec.stage(stage.name), left)


def remove_leftovers(folder: StageFolder, record: RunRecord, stage: StageSpec) -> None:
    """Remove what killed attempts left behind, invisible as it is; only while nobody is writing for the stage."""
    try:
        for path in record.outputs[stage.name]:
            folder.storage.remove_leftovers(path, folder.tag)
        if count := abort_left_uploads(folder):
            logger.info(f"{stage.name}: aborted {count} unfinished uploads of tasks that were killed")
        if stage.blocks is not None:
            clear_registry(folder.storage, folder.path)
    except StorageError as error:
        logger.warning(f"{stage.name}: what killed tasks left behind cannot be removed: {error}")


def task_settings(
    record: RunRecord, stage: StageSpec, folder: StageFolder, executor: StageRunner, number: int, ranks: int
) -> TaskSettings:
    """What launch `number` of a stage, of so many ranks, tells its tasks."""
    return TaskSettings(
        stage_dir=folder.path,
        fingerprint=record.fingerprints[stage.name],
        launch=number,
        cwd=record.spec.cwd,
        import_path=list(record.spec.import_path),
        storage_options=record.spec.storage_options,
        start_policy=stage.start_policy,
        window_s=executor.window(ranks),
        hold_s=executor.hold(ranks),
        commit=stage.commit,
        max_requeues=getattr(stage.executor, "max_requeues", 0),
        retry_seconds=record.spec.retry_seconds,
        read_ahead_mb=record.spec.read_ahead_mb,
    )


def with_pickle(
    settings: TaskSettings, spec: RunSpec, folder: StageFolder, launches: list[dict[str, Any]], payload: bytes
) -> TaskSettings:
    """The settings with the pickled pipeline: this launch's, or, for a retry, the one of the launch before."""
    if not spec.pickled:
        return settings
    if payload:
        path, digest = folder.pickle(settings.launch), sha256(payload)
        folder.storage.write(path, payload, private=True)
    else:
        if not launches:
            raise StaggerError(
                f"The steps of {spec.run_dir} were never stored; launch it again from its Python script."
            )
        before = TaskSettings.from_json(launches[-1]["settings"])
        path, digest = before.pickle_path, before.pickle_sha256
    return TaskSettings(**{**vars(settings), "pickle_path": path, "pickle_sha256": digest})
