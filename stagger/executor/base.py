"""The base of all executors: what users construct, and what each kind of executor must be able to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from stagger.executor.activity import Activity
from stagger.plan.requests import not_yet_planned
from stagger.rundir.launch_records import Group
from stagger.rundir.run_folder import StageInput
from stagger.rundir.stage_folder import StageFolder
from stagger.rundir.task_settings import TaskSettings
from stagger.spec.models import RunSpec, StageSpec


@dataclass(frozen=True)
class StageLaunch:
    """One launch of a stage: the ranks of `groups` are to run, as launch `number` of it."""

    stage: StageSpec
    folder: StageFolder
    number: int
    groups: list[Group]
    settings: TaskSettings
    run_dir: str

    @property
    def ranks(self) -> list[int]:
        return sorted(rank for group in self.groups for rank in group.ranks)


@dataclass(frozen=True)
class ArrayPlan:
    """One job array as it would be submitted. `ranks[i]` holds the ranks of element i, which are all of `group`."""

    name: str
    group: Group
    ranks: list[list[int]]
    throttle: int | None
    script: str


class StageRunner(ABC):
    """Runs ranks of one stage of a run: what a launch asks of each kind of executor.

    Args:
        spec: the run.
        stage: its stage.
        planned: what the stage reads and writes, once that is known.
    """

    def __init__(self, spec: RunSpec, stage: StageSpec, planned: StageInput | None = None) -> None:
        self.spec = spec
        self.stage = stage
        self.input = planned or not_yet_planned(stage)

    @abstractmethod
    def window(self, ranks: int) -> int:
        """Seconds over which the starts of so many ranks are spread. Raises StaggerError for a limit without sense."""

    def hold(self, ranks: int) -> int:
        """Seconds that a job keeps its place after its start, so that jobs that take turns stay below a limit."""
        return 0

    def start_summary(self, ranks: int) -> str:
        """How so many ranks will start, in one line; empty where there is nothing to say."""
        return ""

    @abstractmethod
    def arrays(self, launch: StageLaunch) -> list[ArrayPlan]:
        """What `execute` would submit, for showing it first."""

    @abstractmethod
    def check(self) -> None:
        """Raise StaggerError when this machine cannot run the stage at all."""

    @abstractmethod
    def execute(self, launch: StageLaunch) -> None:
        """Run the ranks, or submit them."""


class Jobs(ABC):
    """The jobs, or local processes, of some launches. What runs them is asked once, whatever the number of launches.

    Args:
        launches: launch records of one kind of executor, also those of several stages.
    """

    def __init__(self, launches: list[dict[str, Any]]) -> None:
        self._launches = launches

    @abstractmethod
    def activity(self, folder: StageFolder, launches: list[dict[str, Any]], run_dir: str) -> Activity:
        """What of the `launches` of one stage, oldest first, is running or queued now."""

    def end_states(self, launch: dict[str, Any], ranks: set[int]) -> dict[int, str]:
        """How the jobs of these ranks ended, as far as anything beside the ranks' own records tells."""
        return {}

    @abstractmethod
    def cancel(
        self, folder: StageFolder, launches: list[dict[str, Any]], run_dir: str, ranks: set[int] | None = None
    ) -> list[str]:
        """Stop what is running or queued, or of it `ranks`; one sentence for each thing that was stopped."""
