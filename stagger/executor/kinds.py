"""The table of executor kinds, and jobs of launches of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stagger.executor.activity import Activity, EndJob
from stagger.executor.base import Jobs, StageRunner
from stagger.executor.local_jobs import LocalJobs
from stagger.executor.slurm_queue import SlurmJobs
from stagger.rundir.launch_records import LaunchRecord, LocalLaunch, SlurmLaunch
from stagger.rundir.run_folder import Stage, StageInput
from stagger.slurm.answers import Accounted
from stagger.spec.models import RunSpec, StageSpec


@dataclass(frozen=True)
class Kind:
    """A kind of executor: the classes that record its launches and watch its jobs."""

    record: type[LaunchRecord]
    jobs: type[Jobs[Any]]


#: `executor.type` of a pipeline file -> its kind, in the order in which jobs are cancelled.
KINDS = {
    "slurm": Kind(SlurmLaunch, SlurmJobs),
    "local": Kind(LocalLaunch, LocalJobs),
}


def runner_of(spec: RunSpec, stage: StageSpec, planned: StageInput | None = None) -> StageRunner:
    """The runner of a stage. `planned` is what the stage reads and writes; None while it is not planned."""
    from stagger.executor.local import LocalRunner  # Most commands run no stage.
    from stagger.executor.slurm import SlurmRunner

    runners: dict[str, type[StageRunner]] = {"slurm": SlurmRunner, "local": LocalRunner}
    return runners[stage.executor.type](spec, stage, planned)


class LaunchedJobs:
    """The jobs of launches of any executor. Queries Slurm once for all of them. `brief` is as for `Jobs`."""

    def __init__(self, launches: Sequence[LaunchRecord], *, brief: bool = False) -> None:
        self.brief = brief
        self._of_kind = {name: kind.jobs(_of(kind, launches), brief=brief) for name, kind in KINDS.items()}

    @property
    def notes(self) -> list[str]:
        """What could not be found out so far, and why, in sentences."""
        return [note for jobs in self._of_kind.values() for note in jobs.notes]

    def activity(self, stage: Stage, launches: Sequence[LaunchRecord]) -> Activity:
        """The ranks of a stage that are running or queued now. `launches` are that stage's."""
        whole = Activity()
        for name, jobs in self._of_kind.items():
            if mine := _of(KINDS[name], launches):
                whole.add(jobs.activity(stage, mine))
        return whole

    def end_states(self, launch: LaunchRecord, ranks: set[int]) -> dict[int, str]:
        """Rank -> the final state of its job; ranks whose state is unknown are missing. Reads no record of a rank."""
        return self._of_kind[launch.executor].end_states(launch, ranks)

    def accounted(self, launch: LaunchRecord, ranks: set[int]) -> dict[int, Accounted]:
        """Rank -> how its job ended, according to Slurm's accounting; ranks that it does not know are missing."""
        return self._of_kind[launch.executor].accounted(launch, ranks)

    def running(self, launch: LaunchRecord, rank: int) -> dict[str, int]:
        """The running job of a rank in this launch, as `12_3` -> its age in seconds; empty if it does not run now."""
        return self._of_kind[launch.executor].running(launch, rank)

    def end_job(self, launch: LaunchRecord) -> EndJob | None:
        """The end job of a launch; None if it has none, or if Slurm cannot be asked here."""
        return self._of_kind[launch.executor].end_job(launch)

    def cancel(self, stage: Stage, launches: Sequence[LaunchRecord], ranks: set[int] | None = None) -> list[str]:
        """Stop the running and queued jobs of a stage, or only those of `ranks`: one sentence per job stopped."""
        return [
            line
            for name, jobs in self._of_kind.items()
            if (mine := _of(KINDS[name], launches))
            for line in jobs.cancel(stage, mine, ranks)
        ]


def _of(kind: Kind, launches: Sequence[LaunchRecord]) -> list[LaunchRecord]:
    return [launch for launch in launches if isinstance(launch, kind.record) and not launch.undone]
