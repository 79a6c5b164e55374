"""Stopping a run, a stage of it, or single ranks."""

from __future__ import annotations

from stagger.errors import StaggerError
from stagger.executor.kinds import LaunchedJobs
from stagger.rundir.launch_records import read_launches
from stagger.rundir.run_folder import RunFolder, RunRecord
from stagger.spec.models import RunSpec, StageSpec


def cancel_run(
    folder: RunFolder, record: RunRecord, stages: list[StageSpec] | None = None, ranks: set[int] | None = None
) -> list[str]:
    """Stop whatever of the run, of `stages`, or of their `ranks`, is queued or running.

    One sentence for each thing that was stopped. Later stages first: a stage that ends must not launch the ones behind
    it. Raises StaggerError for ranks that a stage does not have.
    """
    chosen = list(record.spec.stages) if stages is None else stages
    for stage in chosen:
        check_ranks(stage, ranks or set())
    stopped = [line for stage in reversed(chosen) for line in cancel_stage(folder, record, stage, ranks)]
    if stopped and ranks is None:  # The job that ends a stage may have launched more of it, or the next, just before.
        for stage in reversed(chosen):
            stopped += cancel_stage(folder, record, stage, None, kinds=("slurm",))
    return list(dict.fromkeys(stopped))


def cancel_stage(
    folder: RunFolder,
    record: RunRecord,
    stage: StageSpec,
    ranks: set[int] | None,
    kinds: tuple[str, ...] = ("slurm", "local"),
) -> list[str]:
    """Stop whatever of a stage, or of its `ranks`, is queued or running by executors of these `kinds`."""
    stage_folder = folder.stage(record.spec, stage)
    launches = [launch for launch in read_launches(stage_folder) if launch["executor"] in kinds]
    return LaunchedJobs(launches).cancel(stage_folder, launches, folder.path, ranks)


def held_back(folder: RunFolder, record: RunRecord, stages: list[StageSpec]) -> list[str]:
    """One sentence for each of some cancelled stages that others wait for, which are not among them."""
    names = {stage.name for stage in stages}
    found = []
    for stage in stages:
        if waiting := [name for name in stages_behind(record.spec, stage) if name not in names]:
            behind = ", ".join(waiting)
            found.append(f"{behind} will not begin before {stage.name} is done: stagger retry {folder.path}")
    return found


def stages_behind(spec: RunSpec, stage: StageSpec) -> list[str]:
    """The stages that need this one, by way of others too."""
    behind: list[str] = []
    for other in spec.stages:
        if not {stage.name, *behind}.isdisjoint(other.depends):
            behind.append(other.name)
    return behind


def check_ranks(stage: StageSpec, ranks: set[int]) -> None:
    """Raise StaggerError when a stage has not all of the ranks."""
    if ranks and max(ranks) >= stage.tasks:
        raise StaggerError(f"There is no rank {max(ranks)}: the ranks of {stage.name} are 0 to {stage.tasks - 1}.")
