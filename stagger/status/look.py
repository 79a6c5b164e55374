"""A snapshot of a stage: its launches, its active ranks and its done ranks. Commands take it once and pass it on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property

from stagger.blocks.swarm_place import END, registry_folder
from stagger.errors import counted
from stagger.executor.activity import Activity
from stagger.executor.kinds import LaunchedJobs
from stagger.progress import busy
from stagger.rundir.completion_index import read_table
from stagger.rundir.completion_table import CompletionTable
from stagger.rundir.end_record import has_ended
from stagger.rundir.launch_records import LaunchRecord, SlurmLaunch, latest_launch, read_launches
from stagger.rundir.records import Completion
from stagger.rundir.run_folder import RunFolder, RunRecord, Stage
from stagger.status.failed import Failed
from stagger.status.failed_ranks import all_ended, find_failed
from stagger.status.strays import Strays, find_strays
from stagger.storage.storage import join


@dataclass(frozen=True)
class Look:
    """A snapshot of a stage. `done` are the ranks of the stage that have a completion record; of a swarm that has ended
    with its users, all servers that have ended.

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

    @property
    def has_started(self) -> bool:
        """Whether ranks of the stage were ever launched."""
        return any(launch.groups for launch in self.launches)

    @cached_property
    def failed(self) -> list[Failed]:
        """The ranks whose latest launch ended without a completion record, ascending."""
        return find_failed(self.stage.folder, self.launches, self.done, self.activity, self.jobs)

    @cached_property
    def strays(self) -> Strays | None:
        """The visible files of attempts that ended within their commit; None if there are none.

        Of the ranks that are done, only those of a repeated attempt can have some.
        """
        table = self.table
        attempts = zip(table.rank, table.launch, table.restart, strict=True)
        repeated = {rank for rank, launch, restart in attempts if launch > 1 or restart}
        ended = set(range(self.stage.spec.tasks)) - self.done - self.activity.ranks if self.launches else set()
        return find_strays(self.stage.folder, ended, repeated)

    @cached_property
    def completions(self) -> list[Completion]:
        with self._reading():
            return self.stage.folder.completions(self.done)

    @cached_property
    def table(self) -> CompletionTable:
        """What a status needs of the completion records. Commands that decide something need them whole, too."""
        with self._reading():
            return read_table(self.stage.folder, self.done, keep=not self.jobs.brief)

    def _reading(self) -> AbstractContextManager[None]:
        return busy(f"{self.stage.name}: reading {counted(len(self.done), 'completion record')}")

    def after(self, launch: LaunchRecord) -> Look:
        """The look after `launch`: ranks submitted to Slurm are pending; those run here may be done by now."""
        launches = [*self.launches, launch]
        if launch.executor == "slurm":
            ours = Activity(pending=set(launch.rank_list))
            ours.add(self.activity)
            return replace(self, launches=launches, activity=ours)
        return replace(self, launches=launches, done=done_ranks(self.stage) | ended_servers(self.stage, Activity()))


def done_ranks(stage: Stage) -> set[int]:
    """The ranks of a stage that have a completion record. Costs one listing."""
    tasks = stage.spec.tasks
    return {rank for rank in stage.folder.done() if rank < tasks}


def ended_servers(stage: Stage, activity: Activity) -> set[int]:
    """The servers of a swarm that are not active any more, if it has ended with its users: nothing more comes of them,
    however they ended. None for any other stage, and while the swarm goes on. Costs one request for a swarm.
    """
    return set(range(stage.spec.tasks)) - activity.ranks if is_told_to_end(stage) else set()


def is_told_to_end(stage: Stage) -> bool:
    """Whether a stage hosts blocks for other stages, and is told to end, as these have."""
    if stage.spec.blocks is None or not stage.record.spec.users_of(stage.name):
        return False
    return stage.folder.storage.entry(join(registry_folder(stage.folder.path), END)) is not None


def look_at(stages: Sequence[Stage]) -> dict[str, Look]:
    """Take a look at each of `stages`. Returns stage name -> look. Queries Slurm once for all of them.

    The query precedes the listing of completion records, so a rank that ends between them is found done, not lost.
    Raises StaggerError when Slurm does not answer.
    """
    return _look(stages, launches_of(stages), brief=False)


def glance_at(stages: Sequence[Stage]) -> dict[str, Look]:
    """A look for commands that decide nothing by it: they do not wait for a Slurm that is slow, busy or broken.

    Does not query Slurm at all when the records show that all jobs have ended.
    """
    launches = launches_of(stages)
    ended = ranks_of_ended(stages, launches)
    if ended is None:
        return _look(stages, launches, brief=True)
    jobs = LaunchedJobs([launch for mine in launches for launch in mine], brief=True)
    return {
        stage.name: Look(stage, mine, jobs, jobs.activity(stage, only_local(mine)), done)
        for stage, mine, done in zip(stages, launches, ended, strict=True)
    }


def _look(stages: Sequence[Stage], launches: list[list[LaunchRecord]], *, brief: bool) -> dict[str, Look]:
    jobs, found = activities(stages, launches, brief=brief)
    return {
        stage.name: Look(stage, mine, jobs, activity, done_ranks(stage) | ended_servers(stage, activity))
        for stage, mine, activity in zip(stages, launches, found, strict=True)
    }


def launches_of(stages: Sequence[Stage]) -> list[list[LaunchRecord]]:
    """The launches of each stage."""
    return [read_launches(stage.folder) for stage in stages]


def only_local(launches: Sequence[LaunchRecord]) -> list[LaunchRecord]:
    return [launch for launch in launches if not isinstance(launch, SlurmLaunch)]


def activities(
    stages: Sequence[Stage], launches: list[list[LaunchRecord]], *, brief: bool
) -> tuple[LaunchedJobs, list[Activity]]:
    """The jobs of all stages, and the activity of each. `brief` is as for `Jobs`."""
    jobs = LaunchedJobs([launch for mine in launches for launch in mine], brief=brief)
    return jobs, [jobs.activity(stage, mine) for stage, mine in zip(stages, launches, strict=True)]


def ranks_of_ended(stages: Sequence[Stage], launches: list[list[LaunchRecord]]) -> list[set[int]] | None:
    """The done ranks of each stage, if the records show that no Slurm job of the run is queued or running; else None.

    They show it when the end of each latest launch is on record, and each rank has a record of its end. The former is
    one file, and is read first: most runs that are looked at are not at their end.
    """
    latest = [latest_launch(mine) for mine in launches]
    ends = [has_ended(stage.folder, one.launch) for stage, one in zip(stages, latest, strict=True) if one is not None]
    if not ends or not all(ends):
        return None
    done = [done_ranks(stage) for stage in stages]
    for stage, mine, one, ranks in zip(stages, launches, latest, done, strict=True):
        if one is not None and not all_ended(stage.folder, mine, ranks):
            return None
    return done


def look_at_run(folder: RunFolder, record: RunRecord) -> dict[str, Look]:
    """Take a look at each stage of a run. Returns stage name -> look."""
    return look_at(folder.stages(record))


def glance_at_run(folder: RunFolder, record: RunRecord) -> dict[str, Look]:
    """Take a glance at each stage of a run. Returns stage name -> look."""
    return glance_at(folder.stages(record))
