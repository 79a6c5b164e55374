"""The kinds of executors, in one table, and the jobs of launches of all kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stagger.executor.activity import Activity
from stagger.executor.base import Jobs, StageRunner
from stagger.executor.local import LocalJobs, LocalRunner
from stagger.executor.slurm import SlurmRunner
from stagger.executor.slurm_queue import SlurmJobs
from stagger.rundir.launch_records import LaunchRecord, LocalLaunch, SlurmLaunch
from stagger.rundir.run_folder import Stage, StageInput
from stagger.spec.models import RunSpec, StageSpec


@dataclass(frozen=True)
class Kind:
    """A kind of executor: what runs its stages, how its launches are recorded, what their jobs are."""

    runner: type[StageRunner]
    record: type[LaunchRecord]
    jobs: type[Jobs[Any]]


#: `executor.type` of a pipeline file -> its kind. In this order jobs are cancelled.
KINDS = {
    "slurm": Kind(SlurmRunner, SlurmLaunch, SlurmJobs),
    "local": Kind(LocalRunner, LocalLaunch, LocalJobs),
}


def runner_of(spec: RunSpec, stage: StageSpec, planned: StageInput | None = None) -> StageRunner:
    """What runs a stage of a run; `planned` when its input is known."""
    return KINDS[stage.executor.type].runner(spec, stage, planned)


class LaunchedJobs:
    """The jobs of some launches, whichever executors launched them. What runs them is asked once."""

    def __init__(self, launches: Sequence[LaunchRecord]) -> None:
        self._of_kind = {name: kind.jobs(_of(kind, launches)) for name, kind in KINDS.items()}

    def activity(self, stage: Stage, launches: Sequence[LaunchRecord]) -> Activity:
        """What of the `launches` of one stage is running or queued now."""
        whole = Activity()
        for name, jobs in self._of_kind.items():
            if mine := _of(KINDS[name], launches):
                whole.add(jobs.activity(stage, mine))
        return whole

    def end_states(self, launch: LaunchRecord, ranks: set[int]) -> dict[int, str]:
        """Rank -> the final state of its job, as far as anything beside the ranks' own records tells."""
        return self._of_kind[launch.executor].end_states(launch, ranks)

    def cancel(self, stage: Stage, launches: Sequence[LaunchRecord], ranks: set[int] | None = None) -> list[str]:
        """Stop what of the `launches` of one stage is running or queued, or of it `ranks`: a sentence for each."""
        return [
            line
            for name, jobs in self._of_kind.items()
            if (mine := _of(KINDS[name], launches))
            for line in jobs.cancel(stage, mine, ranks)
        ]


def _of(kind: Kind, launches: Sequence[LaunchRecord]) -> list[LaunchRecord]:
    return [launch for launch in launches if isinstance(launch, kind.record)]
