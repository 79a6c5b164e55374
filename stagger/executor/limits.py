"""Whether Slurm's limits leave room for a launch, its end job included, and for what its end jobs launch later."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from stagger.errors import StaggerError, counted
from stagger.executor.arrays import throttles
from stagger.slurm import cluster
from stagger.slurm.answers import Limits
from stagger.slurm.command import wanted_clusters
from stagger.slurm.room import Charge, SubmitLimit, submit_limits
from stagger.spec.executors import SlurmSpec
from stagger.spec.models import RunSpec, StageSpec


class NoRoom(StaggerError):
    """Other jobs of the user take up a limit now; there is room for the launch once they have ended."""


@dataclass(frozen=True)
class Demand:
    """The jobs that stages need at once. `what` names them in messages; `later` is whether jobs launch them."""

    what: str
    jobs: int
    charge: Charge
    later: bool = False


def charge_of(spec: SlurmSpec) -> Charge:
    """What the jobs of a stage are charged to."""
    given = {key: spec.sbatch.get(key, getattr(spec, key)) for key in ("account", "partition", "qos")}
    return Charge(**{key: str(value) for key, value in given.items() if value})


def check_limits(spec: RunSpec, starting: Mapping[str, int], waiting: Mapping[str, int]) -> None:
    """Check the limits for the stages of a run. Asks Slurm for its configuration, and for limits if it enforces some.

    Args:
        spec: the run.
        starting: stage -> number of ranks that start now.
        waiting: stage -> number of ranks of the stages that start later.

    Raises:
        NoRoom: there will be room once other jobs have ended.
        StaggerError: there can never be room; says which limit to respect, and how.
    """
    stages = [stage for stage in spec.stages if isinstance(stage.executor, SlurmSpec)]
    now = [stage for stage in stages if starting.get(stage.name)]
    later = [stage for stage in stages if waiting.get(stage.name)]
    if not now:
        return
    assert isinstance(now[0].executor, SlurmSpec)
    limits, ranks = cluster.limits(clusters_of(now[0].executor)), {**waiting, **starting}
    for stage in (*now, *later):
        check_arrays(stage, ranks[stage.name], limits)
    demands = [*_now(now, starting), *(_later(spec, stage, waiting[stage.name]) for stage in later)]
    demands += [_retried(stage, ranks[stage.name]) for stage in (*now, *later) if may_retry(stage)]
    bounds = [(demand, SubmitLimit("the cluster's MaxJobCount", limits.max_job_count)) for demand in demands]
    if limits.enforced:
        known = {charge: submit_limits(charge) for charge in {demand.charge for demand in demands}}
        bounds += [(demand, limit) for demand in demands for limit in known[demand.charge]]
    for demand, limit in bounds:
        refuse_impossible(demand, limit)
    for demand, limit in bounds:
        refuse_for_now(demand, limit)


def clusters_of(spec: SlurmSpec) -> str:
    """The clusters, separated by commas, to which a stage's jobs go; empty for the submitting machine's own."""
    return str(spec.sbatch.get("clusters", "")) or wanted_clusters("", os.environ)


def may_retry(stage: StageSpec) -> bool:
    """Whether the end job of a stage launches retries."""
    return stage.retries is not None and isinstance(stage.executor, SlurmSpec) and stage.executor.nodes_submit


def jobs_of(stage: StageSpec, ranks: int) -> int:
    """The number of a stage's jobs that run `ranks` ranks."""
    assert isinstance(stage.executor, SlurmSpec)
    return math.ceil(ranks / stage.executor.ranks_per_job)


def check_arrays(stage: StageSpec, ranks: int, limits: Limits) -> None:
    """Raise StaggerError when a stage needs more arrays than its throttle allows jobs."""
    assert isinstance(stage.executor, SlurmSpec)
    count = math.ceil(jobs_of(stage, ranks) / limits.max_array_size)
    throttles(stage.executor.workers, [1] * count)


def _now(stages: list[StageSpec], ranks: Mapping[str, int]) -> list[Demand]:
    """What the stages that start together need: their jobs, and an end job each."""
    jobs: dict[Charge, int] = {}
    names: dict[Charge, list[str]] = {}
    for stage in stages:
        assert isinstance(stage.executor, SlurmSpec)
        charge = charge_of(stage.executor)
        jobs[charge] = jobs.get(charge, 0) + jobs_of(stage, ranks[stage.name]) + 1
        names.setdefault(charge, []).append(stage.name)
    return [Demand(f"The launch of {', '.join(names[charge])}", jobs[charge], charge) for charge in jobs]


def _later(spec: RunSpec, stage: StageSpec, ranks: int) -> Demand:
    """What a waiting stage needs: its jobs, its end job, and the end job that launches it, which still runs then."""
    assert isinstance(stage.executor, SlurmSpec)
    before = [spec.stage(name).executor for name in stage.depends]
    launched = any(isinstance(executor, SlurmSpec) and executor.nodes_submit for executor in before)
    return Demand(
        f"The stage {stage.name}", jobs_of(stage, ranks) + 1 + launched, charge_of(stage.executor), later=True
    )


def _retried(stage: StageSpec, ranks: int) -> Demand:
    """What a retry of all ranks of a stage needs."""
    assert isinstance(stage.executor, SlurmSpec)
    return Demand(f"A retry of {stage.name}", jobs_of(stage, ranks) + 2, charge_of(stage.executor), later=True)


def refuse_impossible(demand: Demand, limit: SubmitLimit) -> None:
    """Raise StaggerError when a demand exceeds a limit even without other jobs."""
    if demand.jobs <= limit.most:
        return
    end = "its end job and the one before" if demand.later else "end jobs"
    factor = math.ceil(demand.jobs / max(1, limit.most - 2))
    fewer = "" if demand.later else ", or launch fewer ranks with --limit"
    raise StaggerError(
        f"{demand.what} needs {counted(demand.jobs, 'job')} at once, {end} included, but {limit.name} is"
        f" {limit.most:,}: multiply executor.ranks_per_job by {factor:,}{fewer}."
    )


def refuse_for_now(demand: Demand, limit: SubmitLimit) -> None:
    """Raise NoRoom when a demand exceeds a limit together with the jobs that count against it now."""
    if not demand.later and demand.jobs + limit.used > limit.most:
        raise NoRoom(
            f"{demand.what} needs {counted(demand.jobs, 'job')}, end jobs included, but {limit.name} is {limit.most:,},"
            f" and {counted(limit.used, 'job', 'counts')} against it now: wait until some have ended, or set a larger"
            " executor.ranks_per_job."
        )
