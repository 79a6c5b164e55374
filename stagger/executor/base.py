"""The base of all executors: what users construct, and what each kind of executor must be able to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict

from stagger.errors import Interrupted, StaggerError
from stagger.pipeline import Step
from stagger.retries import Group
from stagger.rundir import StageFolder
from stagger.sharding import ShardBy
from stagger.spec.load import from_objects
from stagger.spec.models import RunSpec, StageSpec, StorageSpec
from stagger.spec.steps import check_built_in
from stagger.stage_plan import describe_object
from stagger.start import StartPolicy
from stagger.start_requests import StageInput, not_yet_planned
from stagger.task_settings import TaskSettings

if TYPE_CHECKING:
    from stagger.executor.slurm_jobs import Asked
    from stagger.launch import Launched


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


@dataclass
class Activity:
    """What of a stage is under way right now, and who to name when it is in the way.

    `starting`: running, but for no longer than the window, so perhaps still in the delay: rank -> its launch, and the
    first rank of its job. `requeued`: pending once more. `ending` while the job that runs after a stage's arrays is
    still to end: it may launch further ones.
    """

    running: set[int] = field(default_factory=set)
    starting: dict[int, tuple[int, int]] = field(default_factory=dict)
    pending: set[int] = field(default_factory=set)
    requeued: set[int] = field(default_factory=set)
    holders: list[str] = field(default_factory=list)
    ending: bool = False

    @property
    def ranks(self) -> set[int]:
        return self.running | self.starting.keys() | self.pending | self.requeued


class RunOptions(TypedDict, total=False):
    """What every executor takes beside its own settings, named as in a pipeline file.

    tasks: into how many ranks the work is divided; 1 by default.
    name: the run's name.
    shard_by: how shards are given to ranks: `count` (round robin) or `bytes` (evening them out).
    randomize_start_duration: seconds over which the jobs' starts are spread; `auto` by the number of tasks.
    start_policy: how a job finds its delay: `uniform` or `spread`.
    backend_limit: requests per second that the remote storage can take: the window is made accordingly.
    storage_options: options for fsspec, per protocol; secrets only as `${NAME}`.
    retry_seconds: for how long a request to remote storage is made again that failed by a fault that may pass.
    read_ahead_mb: memory that a task fills with input from remote storage before it is asked for, in MB.
    commit: whether outputs are committed by `rank`, or by `shard`, so that a rank that is stopped goes on from there.
    retries: on Slurm, run failed ranks again, with more of what they ran out of: `max`, `memory_factor`,
        `time_factor`, `on`.
    """

    tasks: int
    name: str
    shard_by: ShardBy
    randomize_start_duration: int | Literal["auto"]
    start_policy: StartPolicy
    backend_limit: float
    storage_options: Mapping[str, Mapping[str, Any]]
    retry_seconds: float
    read_ahead_mb: int
    commit: Literal["rank", "shard"]
    retries: Mapping[str, Any]


class PipelineExecutor(ABC):
    """Runs a pipeline as `tasks` ranks: the base of `LocalExecutor` and `SlurmExecutor`.

    Args:
        pipeline: the steps: callables `(data, rank, world_size) -> iterator`. The first reads, the last usually writes.
        run_dir: where the run keeps its records: a local or shared folder, or `s3://...`.
        options: the executor's own settings.
        run: what `RunOptions` lists.

    Raises:
        StaggerError: an argument is wrong.
    """

    type: ClassVar[str]

    def __init__(
        self, pipeline: Sequence[Step], run_dir: str, options: Mapping[str, Any], run: Mapping[str, Any]
    ) -> None:
        self.pipeline: Sequence[Step] | None = check_steps(pipeline)
        stage = {"pipeline": [describe_object(step) for step in pipeline], **run}
        self.spec = from_objects(
            {
                "name": stage.pop("name", "pipeline"),
                "run_dir": run_dir,
                **{key: stage.pop(key) for key in StorageSpec.model_fields if key in stage},
            },
            stage,
            {"type": self.type, **{key: value for key, value in options.items() if value is not None}},
        )
        self.stage = self.spec.stages[0]
        self.input = not_yet_planned(self.stage)

    @classmethod
    def for_stage(cls, spec: RunSpec, stage: StageSpec, planned: StageInput | None = None) -> PipelineExecutor:
        """The executor of one stage of a run whose steps are known by name; `planned` when its input is."""
        executor = cls.__new__(cls)
        executor.pipeline, executor.spec, executor.stage = None, spec, stage
        executor.input = planned or not_yet_planned(stage)
        return executor

    def run(self, *, limit: int | None = None, wait: bool = True) -> Launched:
        """Launch whatever is not done; a completed rank is never run again.

        Args:
            limit: only the first so many ranks.
            wait: on Slurm, return when all jobs have ended, not when they are submitted.

        Raises:
            StaggerError: the request is wrong, and nothing was launched.
            RunFailed: ranks failed; `failed_ranks` names them.
            KeyboardInterrupt: after Ctrl-C, once the workers have ended; what is done stays done.
        """
        from stagger.launch import launch

        try:
            launched = launch(self.spec, self.pipeline, limit=limit, wait=wait)
        except Interrupted as interrupted:  # As a script expects it: Ctrl-C is KeyboardInterrupt.
            raise KeyboardInterrupt if str(interrupted) == "SIGINT" else SystemExit(143) from None
        launched.raise_if_failed()
        return launched

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

    @classmethod
    @abstractmethod
    def activity(cls, folder: StageFolder, launches: list[dict[str, Any]], run_dir: str, asked: Asked) -> Activity:
        """What of these launches (their launch.json, oldest first) is running or queued now, as `asked` of Slurm."""

    @classmethod
    def end_states(cls, launch: dict[str, Any], ranks: set[int], asked: Asked) -> dict[int, str]:
        """How the jobs of these ranks ended, as far as anything beside the ranks' own records tells."""
        return {}

    @classmethod
    @abstractmethod
    def cancel(
        cls, folder: StageFolder, launches: list[dict[str, Any]], run_dir: str, ranks: set[int] | None = None
    ) -> list[str]:
        """Stop what is running or queued, or of it `ranks`; one sentence for each thing that was stopped."""


def check_steps(pipeline: Sequence[Step]) -> list[Step]:
    """The steps as a list. Raises StaggerError for what cannot be a step."""
    if not isinstance(pipeline, (list, tuple)):
        raise StaggerError(f"pipeline must be a list of steps, not {pipeline!r}.")
    for number, step in enumerate(pipeline, 1):
        if not callable(step) or isinstance(step, type):
            raise StaggerError(f"Step {number} is {step!r}; a step is a function or an instance: WriteJsonl(...).")
        if hasattr(step, "bind") and any(step is other for other in pipeline[: number - 1]):
            raise StaggerError(f"Step {number} is the very object of a step before it; make a new one for each.")
        check_built_in(step, f"Step {number}")
    return list(pipeline)


def executor_class(kind: str) -> type[PipelineExecutor]:
    """The executor of a type's name in pipeline files."""
    from stagger.executor.local import LocalExecutor
    from stagger.executor.slurm import SlurmExecutor

    classes: dict[str, type[PipelineExecutor]] = {"local": LocalExecutor, "slurm": SlurmExecutor}
    return classes[kind]
