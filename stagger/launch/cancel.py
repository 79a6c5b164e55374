"""Stops a run, one of its stages, or single ranks."""

from __future__ import annotations

from collections.abc import Sequence

from stagger.errors import StaggerError, agreeing
from stagger.executor.base import NotCancelled
from stagger.executor.kinds import LaunchedJobs
from stagger.launch.swarms import end_swarms
from stagger.rundir.launch_records import LaunchRecord, SlurmLaunch, read_launches
from stagger.rundir.lock import InUse
from stagger.rundir.run_folder import RunFolder, RunRecord, Stage
from stagger.spec.models import RunSpec, StageSpec
from stagger.status.look import look_at_run
from stagger.terminal import logger

#: Seconds for which a job of the run that holds its lock is waited for: it may be submitting other jobs.
SUBMITTING_S = 60.0


def cancel(run: RunFolder, record: RunRecord, stage: str | None, ranks: set[int] | None) -> list[str]:
    """Stop what is queued and running of a run, or only of one `stage`, or only `ranks` of a stage.

    Returns one sentence per job or process stopped, and per stage that does not start because of it. Raises as
    `cancel_stages` does.
    """
    specs = record.spec.chosen(stage) if ranks is None else [record.spec.only(stage)]
    stages = [run.stage(record, spec.name) for spec in specs]
    stopped = cancel_stages(stages, ranks)
    if not stopped:
        return []
    waiting = users_waiting(run, record, stages) if ranks is None else []
    return [*stopped, *held_back(stages), *waiting, *swarms_ended(run, record, stages)]


def swarms_ended(run: RunFolder, record: RunRecord, stages: Sequence[Stage]) -> list[str]:
    """End the swarms whose last user was cancelled, in sentences: nothing is left for their servers to do."""
    names = {name for stage in stages for name in stage.spec.uses} - {stage.name for stage in stages}
    if not names:
        return []
    looks = look_at_run(run, record)
    gone = {stage.name for stage in stages}
    return end_swarms(record.spec, looks, sorted(names), ended=gone)


def users_waiting(run: RunFolder, record: RunRecord, stages: Sequence[Stage]) -> list[str]:
    """One sentence for each of the cancelled swarms that others, which are at work, use: they wait for servers."""
    gone = {stage.name for stage in stages}
    users = {swarm: [one.name for one in record.spec.users_of(swarm) if one.name not in gone] for swarm in gone}
    if not any(users.values()):
        return []
    looks = look_at_run(run, record)
    found = []
    for swarm, names in users.items():
        if active := [name for name in names if looks[name].activity.ranks - looks[name].done]:
            found.append(
                f"{', '.join(active)} {agreeing(len(active), 'waits')} for servers of {swarm}: start these again with:"
                f" stagger retry {run.path}; or stop {active[0]}, too: stagger cancel {run.path} --stage {active[0]}"
            )
    return found


def cancel_stages(stages: Sequence[Stage], ranks: set[int] | None = None) -> list[str]:
    """Stop the queued and running ranks of `stages`, or only `ranks` of them.

    Returns one sentence per job or process stopped. Raises StaggerError when a stage does not have one of the ranks,
    and NotCancelled when Slurm refuses to cancel jobs, after all were tried.
    """
    for stage in stages:
        check_ranks(stage.spec, ranks or set())
    with stages[0].run.changing(stages[0].record):
        stopped = _cancel(stages, ranks)
        if stopped and ranks is None:  # An end job, or a server, may have launched others just before.
            if any(stage.spec.executor.type == "slurm" for stage in stages):
                await_submissions(stages[0].run)
            stopped += _cancel(stages, None, SlurmLaunch)
    return list(dict.fromkeys(stopped))


def await_submissions(run: RunFolder) -> None:
    """Wait until no job holds the run's lock: what it submits meanwhile would not be cancelled."""
    holder = run.lock.holder()
    if holder is None or not holder.job:
        return
    logger.info(f"waits for Slurm job {holder.job}, which holds the run's lock and may be submitting other jobs")
    try:
        with run.lock.held(wait_s=SUBMITTING_S):
            return
    except InUse:
        logger.warning(f"Job {holder.job} may still submit others: see stagger status {run.path}, and cancel again.")


def _cancel(stages: Sequence[Stage], ranks: set[int] | None, kind: type[LaunchRecord] = LaunchRecord) -> list[str]:
    """Stop jobs of launches of this `kind`, later stages first: an ending stage must not launch the next one."""
    launches = [[launch for launch in read_launches(stage.folder) if isinstance(launch, kind)] for stage in stages]
    jobs = LaunchedJobs([launch for mine in launches for launch in mine])
    stopped: list[str] = []
    refused: list[str] = []
    for stage, mine in reversed(list(zip(stages, launches, strict=True))):
        try:
            stopped += jobs.cancel(stage, mine, ranks)
        except NotCancelled as error:  # The jobs of other stages are cancelled all the same.
            stopped += error.stopped
            refused += error.refused
    if refused:
        raise NotCancelled(refused, stopped)
    return stopped


def held_back(stages: Sequence[Stage]) -> list[str]:
    """One sentence for each of the cancelled `stages` that keeps other stages, not among them, from starting."""
    names = {stage.name for stage in stages}
    found = []
    for stage in stages:
        if waiting := [name for name in stages_behind(stage.record.spec, stage.spec) if name not in names]:
            behind = ", ".join(waiting)
            found.append(f"{behind} will not start until {stage.name} is done: stagger retry {stage.run.path}")
    return found


def stages_behind(spec: RunSpec, stage: StageSpec) -> list[str]:
    """Stages that depend on this one, directly or through others."""
    behind: list[str] = []
    for other in spec.stages:
        if not {stage.name, *behind}.isdisjoint(other.depends):
            behind.append(other.name)
    return behind


def check_ranks(stage: StageSpec, ranks: set[int]) -> None:
    """Raise StaggerError when the stage does not have all of `ranks`."""
    if ranks and stage.sizing == "undecided":
        raise StaggerError(f"{stage.name} has no ranks yet: their number is decided when the stage starts.")
    if ranks and max(ranks) >= stage.tasks:
        raise StaggerError(f"There is no rank {max(ranks)}: the ranks of {stage.name} are 0 to {stage.tasks - 1}.")
