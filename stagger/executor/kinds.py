"""The kinds of executors, by their names in pipeline files."""

from __future__ import annotations

from typing import Any

from stagger.executor.activity import Activity
from stagger.executor.base import Jobs, StageRunner
from stagger.executor.local import LocalJobs, LocalRunner
from stagger.executor.slurm import SlurmRunner
from stagger.executor.slurm_queue import SlurmJobs
from stagger.rundir.run_folder import StageInput
from stagger.rundir.stage_folder import StageFolder
from stagger.spec.models import RunSpec, StageSpec

#: `executor.type` of a pipeline file -> what runs such a stage.
RUNNERS: dict[str, type[StageRunner]] = {"local": LocalRunner, "slurm": SlurmRunner}

#: The same name -> what its jobs are.
JOBS: dict[str, type[Jobs]] = {"local": LocalJobs, "slurm": SlurmJobs}


def runner_of(spec: RunSpec, stage: StageSpec, planned: StageInput | None = None) -> StageRunner:
    """What runs a stage of a run; `planned` when its input is known."""
    return RUNNERS[stage.executor.type](spec, stage, planned)


class LaunchedJobs:
    """The jobs of some launches, whichever executors launched them. What runs them is asked once."""

    def __init__(self, launches: list[dict[str, Any]]) -> None:
        self._of_kind = {kind: made(_of(kind, launches)) for kind, made in JOBS.items()}

    def activity(self, folder: StageFolder, launches: list[dict[str, Any]], run_dir: str) -> Activity:
        """What of the `launches` of one stage is running or queued now."""
        whole = Activity()
        for kind, jobs in self._of_kind.items():
            if mine := _of(kind, launches):
                whole.add(jobs.activity(folder, mine, run_dir))
        return whole

    def end_states(self, launch: dict[str, Any], ranks: set[int]) -> dict[int, str]:
        """How the jobs of these ranks ended, as far as anything beside the ranks' own records tells."""
        return self._of_kind[launch["executor"]].end_states(launch, ranks)

    def cancel(
        self, folder: StageFolder, launches: list[dict[str, Any]], run_dir: str, ranks: set[int] | None = None
    ) -> list[str]:
        """Stop what of the `launches` of one stage is running or queued, or of it `ranks`: a sentence for each."""
        return [
            line
            for kind, jobs in reversed(self._of_kind.items())
            if (mine := _of(kind, launches))
            for line in jobs.cancel(folder, mine, run_dir, ranks)
        ]


def _of(kind: str, launches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [launch for launch in launches if launch["executor"] == kind]
