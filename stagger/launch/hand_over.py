"""Hands the ranks of a stage to its executor, and the settings to its tasks."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stagger.blocks.swarm_place import SwarmPlace
from stagger.errors import agreeing, counted
from stagger.executor.base import StageLaunch, StageRunner
from stagger.executor.kinds import runner_of
from stagger.launch.bad_nodes import nodes_to_avoid
from stagger.launch.check import check_variables
from stagger.launch.leftovers import remove_leftovers
from stagger.launch.plans import check_key
from stagger.launch.publish import publish
from stagger.launch.retry_policy import decide
from stagger.launch.stored_steps import stored_steps
from stagger.ranks import named_ranks
from stagger.rundir.launch_records import Group, LaunchRecord
from stagger.rundir.run_folder import Stage
from stagger.spec.executors import SlurmSpec
from stagger.status.end_job import end_of
from stagger.status.look import Look
from stagger.status.report import write_stats
from stagger.task import TaskSettings
from stagger.terminal import logger


@dataclass(frozen=True)
class Factors:
    """The factors by which the jobs of a launch get more memory and time than the run's settings give them."""

    memory: float = 1.0
    time: float = 1.0

    def applied(self, group: Group) -> Group:
        memory, time = group.memory_scale * self.memory, group.time_scale * self.time
        return replace(group, memory_scale=memory, time_scale=time)


def launch_stage(stage: Stage, look: Look, ranks: list[int], factors: Factors) -> Look:
    """Hand `ranks`, which are neither done nor active, to the stage's executor. Returns the look after the launch."""
    if look.done:
        logger.info(
            f"{stage.name}: {len(look.done):,} of {counted(stage.spec.tasks, 'rank')}"
            f" {agreeing(len(look.done), 'is')} already done"
        )
    if not ranks:
        if active := look.activity.ranks - look.done:
            holders = ", ".join(look.activity.holders)
            logger.info(f"{stage.name}: {named_ranks(active, 'is')} queued, running or ending ({holders})")
        write_stats(look)
        if not look.activity.ranks:
            publish(look)
        return look
    if not look.activity.ranks:
        remove_leftovers(stage)
    look = look.after(start(stage, look, [factors.applied(group) for group in groups_of(look, ranks)]))
    if stage.spec.executor.type == "local" and (write_stats(look)["missing_ranks"] or stage.spec.blocks):
        remove_leftovers(stage)
    if stage.spec.executor.type == "local":
        publish(look)
    return look


def groups_of(look: Look, ranks: list[int]) -> list[Group]:
    """The groups in which a command launches `ranks`.

    If the end job did not launch the retries it had to, the command does that, with the resources of the retry policy.
    """
    whole, retries = [Group(ranks)], look.stage.spec.retries
    if retries is None or not look.has_started or (end := end_of(look)) is None or not end.fell_short:
        return whole
    again = decide(retries, [one for one in look.failed if one.rank in ranks]).again
    others = sorted(set(ranks).difference(*(group.ranks for group in again)))
    groups = [*again, *([Group(others)] if others else [])]
    return groups if len(groups) <= (look.stage.spec.executor.workers or len(groups)) else whole


def start(stage: Stage, look: Look, groups: list[Group]) -> LaunchRecord:
    """Hand the ranks of `groups` to the stage's executor, as the next launch of the stage."""
    runner = runner_of(stage.record.spec, stage.spec, stage.record.inputs[stage.name])
    number = len(look.launches) + 1
    settings = task_settings(stage, runner, number, sum(len(group.ranks) for group in groups))
    settings = with_pickle(settings, stage)
    check_variables(stage)
    check_key(stage.record.spec, stage.spec)
    runner.check()
    return runner.execute(StageLaunch(stage, number, groups, settings, nodes_to_avoid(look)))


def task_settings(stage: Stage, runner: StageRunner, number: int, ranks: int) -> TaskSettings:
    """The task settings for launch `number` of a stage, in which `ranks` ranks run."""
    run_record, run, spec = stage.record, stage.record.spec, stage.spec
    return TaskSettings(
        stage_dir=stage.folder.path,
        fingerprint=stage.record.fingerprints[stage.name],
        launch=number,
        cwd=run.cwd,
        import_path=list(run.import_path),
        storage_options=run.storage_options,
        start_policy=spec.start_policy,
        window_s=runner.window(ranks),
        hold_s=runner.hold(ranks),
        commit=spec.commit,
        max_requeues=spec.executor.max_requeues if isinstance(spec.executor, SlurmSpec) else 0,
        retry_seconds=run.retry_seconds,
        read_ahead_mb=run.read_ahead_mb,
        request_share=runner.share(ranks),
        cpus=runner.cpus(ranks),
        shared=run.shared is not None,
        run_dir=stage.run.path,
        uses={name: place_of(stage.run.stage(run_record, name)).fields() for name in spec.uses},
        users=[user.name for user in run.users_of(stage.name)],
    )


def place_of(swarm: Stage) -> SwarmPlace:
    """Where the users of a stage with blocks find its servers."""
    assert swarm.spec.blocks is not None
    return SwarmPlace.of(swarm.name, swarm.folder.path, swarm.spec.blocks)


def with_pickle(settings: TaskSettings, stage: Stage) -> TaskSettings:
    """The settings with the path and SHA-256 of the pickled steps; unchanged for a run of a pipeline file.

    Raises StaggerError when the steps were never stored.
    """
    if not stage.record.spec.pickled:
        return settings
    pickle = stored_steps(stage)
    return replace(settings, pickle_path=pickle.path, pickle_sha256=pickle.sha256)
