"""The interface of executors: run the ranks of a launch, watch them, cancel them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from stagger.errors import StaggerError
from stagger.executor.activity import Activity, EndJob
from stagger.plan.requests import not_yet_planned
from stagger.rundir.launch_records import Group, LaunchRecord
from stagger.rundir.run_folder import Stage, StageInput
from stagger.slurm.answers import Accounted
from stagger.spec.models import RunSpec, StageSpec
from stagger.storage.storage import is_local, join
from stagger.task import TaskSettings


@dataclass(frozen=True)
class StageLaunch:
    """Launch `number` of a stage, which runs the ranks of `groups`. Launches of a stage count from 1.

    Its jobs do not run on the nodes `avoided`.
    """

    stage: Stage
    number: int
    groups: list[Group]
    settings: TaskSettings
    avoided: tuple[str, ...] = ()

    @property
    def ranks(self) -> list[int]:
        return sorted(rank for group in self.groups for rank in group.ranks)

    @property
    def settings_path(self) -> str | None:
        """The path of the settings in the launch's folder; None on remote storage, which a task cannot open yet."""
        path = join(self.stage.folder.launch(self.number), "settings.json")
        return path if is_local(path) else None


@dataclass(frozen=True)
class ArrayPlan:
    """One job array, ready to submit. Element i runs the ranks `ranks[i]`, all of them from `group`."""

    name: str
    group: Group
    ranks: list[list[int]]
    throttle: int | None
    script: str


class StageRunner(ABC):
    """Runs ranks of one stage of a run.

    Args:
        spec: the run.
        stage: the stage.
        planned: what the stage reads and writes; None while it is not planned.

    Attributes:
        assumed: what `arrays` had to assume, because the cluster did not say it, in sentences; empty for nothing.
    """

    assumed = ""

    def __init__(self, spec: RunSpec, stage: StageSpec, planned: StageInput | None = None) -> None:
        self.spec = spec
        self.stage = stage
        self.input = planned or not_yet_planned(stage)

    @abstractmethod
    def window(self, ranks: int) -> int:
        """Seconds over which the starts of `ranks` ranks are spread.

        Raises StaggerError when backend_limit or the jobs' time limit does not allow such a window.
        """

    def hold(self, ranks: int) -> int:
        """Seconds a job stays allocated after its start, so that jobs taking turns stay below the limit; 0 when nothing
        is throttled.
        """
        return 0

    def share(self, ranks: int) -> float:
        """Requests per second that a worker may make to remote storage, beside one that is always in flight; 0 for any
        number.
        """
        return 0.0

    @abstractmethod
    def cpus(self, ranks: int) -> int:
        """Processors of each of `ranks` ranks."""

    def start_summary(self, ranks: int) -> str:
        """One line about how `ranks` ranks will start; empty if there is nothing to report."""
        return ""

    @abstractmethod
    def arrays(self, launch: StageLaunch) -> list[ArrayPlan]:
        """The arrays that `execute` would submit, for a dry run."""

    def end_script(self, launch: StageLaunch) -> str:
        """The script of the end job that `execute` would submit, for a dry run; empty if there is none."""
        return ""

    @abstractmethod
    def check(self) -> None:
        """Raise StaggerError when this machine cannot run the stage."""

    @abstractmethod
    def execute(self, launch: StageLaunch) -> LaunchRecord:
        """Run the ranks, or submit them. Returns the launch record, which is written by then."""


class NotCancelled(StaggerError):
    """Jobs were not cancelled, for the reasons `refused`. `stopped` has a sentence for each one that was."""

    exit_status = 1

    def __init__(self, refused: list[str], stopped: Sequence[str] = ()) -> None:
        self.refused = refused
        self.stopped = list(stopped)
        super().__init__(" ".join([*refused, *(f"But {line}." for line in stopped)]))


Launch = TypeVar("Launch", bound=LaunchRecord)


class Jobs(ABC, Generic[Launch]):
    """The jobs, or local processes, of launches. Queries Slurm once for all of them, not once per launch.

    Args:
        launches: launch records of one kind of executor, from one or several stages.
        brief: wait for Slurm only some seconds, and do without it then; `notes` say so. A command that decides by
            the jobs' states waits longer, and raises StaggerError when Slurm does not answer.

    Attributes:
        notes: what could not be found out, and why, in sentences.
    """

    def __init__(self, launches: Sequence[Launch], *, brief: bool = False) -> None:
        self._launches = launches
        self._brief = brief
        self.notes: list[str] = []

    @abstractmethod
    def activity(self, stage: Stage, launches: Sequence[Launch]) -> Activity:
        """The ranks of a stage that are running or queued now. `launches` are that stage's, oldest first."""

    def end_states(self, launch: Launch, ranks: set[int]) -> dict[int, str]:
        """Rank -> the final state of its job; ranks whose state is unknown are missing. Reads no record of a rank."""
        return {}

    def accounted(self, launch: Launch, ranks: set[int]) -> dict[int, Accounted]:
        """Rank -> how its job ended, according to Slurm's accounting; ranks that it does not know are missing."""
        return {}

    def running(self, launch: Launch, rank: int) -> dict[str, int]:
        """The running job of a rank in this launch, as `12_3` -> its age in seconds; empty if it does not run now."""
        return {}

    def end_job(self, launch: Launch) -> EndJob | None:
        """The end job of a launch; None if it has none, or if Slurm cannot be asked here."""
        return None

    @abstractmethod
    def cancel(self, stage: Stage, launches: Sequence[Launch], ranks: set[int] | None = None) -> list[str]:
        """Stop the running and queued jobs of a stage, or only those of `ranks`. Returns one sentence per job stopped.

        Raises StaggerError for a local run when `ranks` is given, or when it runs on another machine. Raises
        NotCancelled when Slurm refuses, after all jobs were tried.
        """
