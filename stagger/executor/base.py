"""What a launch asks of each kind of executor: to run ranks, and what became of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from stagger.executor.activity import Activity
from stagger.plan.requests import not_yet_planned
from stagger.rundir.launch_records import Group, LaunchRecord
from stagger.rundir.run_folder import Stage, StageInput
from stagger.spec.models import RunSpec, StageSpec
from stagger.task import TaskSettings


@dataclass(frozen=True)
class StageLaunch:
    """One launch of a stage: the ranks of `groups` are to run, as launch `number` of it."""

    stage: Stage
    number: int
    groups: list[Group]
    settings: TaskSettings

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
    """Runs ranks of one stage of a run.

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
        """Seconds over which the starts of `ranks` ranks are spread. Raises StaggerError for a limit without sense."""

    def hold(self, ranks: int) -> int:
        """Seconds that a job stays allocated after its start, so that jobs taking turns stay below a limit; 0: none."""
        return 0

    def start_summary(self, ranks: int) -> str:
        """How `ranks` ranks will start, in one line; empty where there is nothing to say."""
        return ""

    @abstractmethod
    def arrays(self, launch: StageLaunch) -> list[ArrayPlan]:
        """What `execute` would submit, for showing it first."""

    @abstractmethod
    def check(self) -> None:
        """Raise StaggerError when this machine cannot run the stage at all."""

    @abstractmethod
    def execute(self, launch: StageLaunch) -> LaunchRecord:
        """Run the ranks, or submit them. Returns the record of the launch, which has been written."""


Launch = TypeVar("Launch", bound=LaunchRecord)


class Jobs(ABC, Generic[Launch]):
    """The jobs, or local processes, of some launches. What runs them is asked once, whatever the number of launches.

    Args:
        launches: launch records of one kind of executor, also those of several stages.
    """

    def __init__(self, launches: Sequence[Launch]) -> None:
        self._launches = launches

    @abstractmethod
    def activity(self, stage: Stage, launches: Sequence[Launch]) -> Activity:
        """What of the `launches` of one stage, oldest first, is running or queued now."""

    def end_states(self, launch: Launch, ranks: set[int]) -> dict[int, str]:
        """Rank -> the final state of its job, as far as anything beside the ranks' own records tells."""
        return {}

    @abstractmethod
    def cancel(self, stage: Stage, launches: Sequence[Launch], ranks: set[int] | None = None) -> list[str]:
        """Stop what is running or queued, or of it `ranks`; one sentence for each thing that was stopped."""
