"""A snapshot of a stage: its launches, its active ranks and its done ranks. Commands take it once and pass it on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from stagger.executor.activity import Activity
from stagger.executor.kinds import LaunchedJobs
from stagger.progress import busy
from stagger.rundir.launch_records import LaunchRecord, read_launches
from stagger.rundir.run_folder import RunFolder, RunRecord, Stage
from stagger.rundir.stage_folder import Completion
from stagger.status.failed import Failed
from stagger.status.failed_ranks import find_failed
from stagger.status.strays import Strays, find_strays


@dataclass(frozen=True)
class Look:
    """A snapshot of a stage. `done` are the ranks of the stage that have a completion record.

    Failure and completion records are read when they are first needed.
    """

    stage: Stage
    launches: list[LaunchRecord]
    jobs: LaunchedJobs
    activity: Activity
    done: set[int]

    @property
    def is_done(self) -> bool:
        return len(self.done) >= self.stage.spec.tasks

    @cached_property
    def failed(self) -> list[Failed]:
        """The ranks whose latest launch ended without a completion record, ascending."""
        active = self.activity.ranks - self.activity.failing - self.done
        return find_failed(self.stage.folder, self.launches, self.done, active, self.jobs)

    @cached_property
    def strays(self) -> Strays | None:
        """The visible files of attempts that ended within their commit; None if there are none.

        Of the ranks that are done, only those of a repeated attempt can have some.
        """
        repeated = [record for record in self.completions if record["launch"] > 1 or record["restart"]]
        recorded = {record["rank"]: {output["path"] for output in record["outputs"]} for record in repeated}
        ended = set(range(self.stage.spec.tasks)) - self.done - self.activity.ranks if self.launches else set()
        return find_strays(self.stage.folder, ended | recorded.keys(), recorded)

    @cached_property
    def completions(self) -> list[Completion]:
        with busy(f"{self.stage.name}: reading {len(self.done)} completion records"):
            return self.stage.folder.completions(self.done)

    def after(self, launch: LaunchRecord) -> Look:
        """The look after `launch`: ranks submitted to Slurm are pending; those run here may be done by now."""
        launches = [*self.launches, launch]
        if launch.executor == "slurm":
            ours = Activity(pending=set(launch.rank_list))
            ours.add(self.activity)
            return replace(self, launches=launches, activity=ours)
        return replace(self, launches=launches, done=done_ranks(self.stage))


def done_ranks(stage: Stage) -> set[int]:
    """The ranks of a stage that have a completion record. Costs one listing."""
    return {rank for rank in stage.folder.done() if rank < stage.spec.tasks}


def look_at(stages: Sequence[Stage]) -> dict[str, Look]:
    """Take a look at each of `stages`. Returns stage name -> look. Queries Slurm once for all of them.

    The query precedes the listing of completion records, so a rank that ends between them is found done, not lost.
    """
    launches, jobs, found = activities(stages)
    return {
        stage.name: Look(stage, mine, jobs, activity, done_ranks(stage))
        for stage, mine, activity in zip(stages, launches, found, strict=True)
    }


def activities(stages: Sequence[Stage]) -> tuple[list[list[LaunchRecord]], LaunchedJobs, list[Activity]]:
    """The launches of each stage, the jobs of all of them, and the activity of each stage."""
    launches = [read_launches(stage.folder) for stage in stages]
    jobs = LaunchedJobs([launch for mine in launches for launch in mine])
    return launches, jobs, [jobs.activity(stage, mine) for stage, mine in zip(stages, launches, strict=True)]


def look_at_run(folder: RunFolder, record: RunRecord) -> dict[str, Look]:
    """Take a look at each stage of a run. Returns stage name -> look."""
    return look_at(folder.stages(record))
