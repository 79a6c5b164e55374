"""What Python scripts construct: a pipeline of Python objects, and where it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from signal import Signals
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict

from stagger.errors import Interrupted, StaggerError
from stagger.launch.launch import launch
from stagger.launch.launched import Launched
from stagger.pipeline.chain import Step
from stagger.pipeline.document import ShardBy
from stagger.plan.fingerprint import describe_object
from stagger.spec.from_python import from_objects
from stagger.spec.models import StorageSpec
from stagger.spec.step_checks import check_built_in
from stagger.start.delays import StartPolicy

if TYPE_CHECKING:
    from typing_extensions import Unpack


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

    @abstractmethod
    def __init__(
        self, pipeline: Sequence[Step], run_dir: str, options: Mapping[str, Any], run: Mapping[str, Any]
    ) -> None:
        self.pipeline = check_steps(pipeline)
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
        try:
            launched = launch(self.spec, self.pipeline, limit=limit, wait=wait)
        except Interrupted as interrupted:  # As a script expects it: Ctrl-C is KeyboardInterrupt.
            stopped = KeyboardInterrupt if interrupted.signal == Signals.SIGINT else SystemExit(interrupted.exit_status)
            raise stopped from None
        launched.raise_if_failed()
        return launched


class LocalExecutor(PipelineExecutor):
    """Runs a pipeline on this machine.

    Args:
        pipeline: the steps: callables `(data, rank, world_size) -> iterator`. The first reads, the last usually writes.
        run_dir: where the run keeps its records: a local or shared folder, or `s3://...`.
        workers: ranks at once, each in a process of its own; by default the number of processors.
        run: `tasks`, `name` and the others that `RunOptions` lists.

    Raises:
        StaggerError: an argument is wrong.
    """

    type = "local"

    def __init__(
        self, pipeline: Sequence[Step], *, run_dir: str, workers: int | None = None, **run: Unpack[RunOptions]
    ) -> None:
        super().__init__(pipeline, run_dir, {"workers": workers}, run)


class SlurmExecutor(PipelineExecutor):
    """Runs a pipeline as Slurm job arrays.

    Args:
        pipeline: the steps: callables `(data, rank, world_size) -> iterator`. The first reads, the last usually writes.
        run_dir: where the run keeps its records: a shared folder, or `s3://...`.
        partition: the partition; by default the cluster's.
        time: time limit of a job, as Slurm writes it.
        cpus_per_task: processors of a job.
        mem_per_cpu_gb: memory per processor, in GiB.
        gpus_per_task: GPUs of a job.
        workers: the throttle: at most so many jobs at once, over the whole run.
        ranks_per_job: ranks that one job runs, one after another.
        nodes_per_task: nodes of a job; on several, srun starts each rank once on every node.
        max_requeues: how often a job that is preempted, or reaches its time limit after it got something done, is
            queued again.
        qos: the quality of service.
        account: the account to charge.
        env: what a job sets up before Python starts: `modules`, `venv`, `conda`, `container`, `setup`.
        sbatch: any further option of sbatch, by its long name.
        template: a job script template of your own.
        log_dir: a folder that all nodes share, for what jobs print outside their ranks.
        run: `tasks`, `name` and the others that `RunOptions` lists.

    Raises:
        StaggerError: an argument is wrong.
    """

    type = "slurm"

    def __init__(
        self,
        pipeline: Sequence[Step],
        *,
        run_dir: str,
        partition: str | None = None,
        time: str | int | None = None,
        cpus_per_task: int = 1,
        mem_per_cpu_gb: float | None = None,
        gpus_per_task: int = 0,
        workers: int | None = None,
        ranks_per_job: int = 1,
        nodes_per_task: int = 1,
        max_requeues: int = 5,
        qos: str | None = None,
        account: str | None = None,
        env: Mapping[str, Any] | None = None,
        sbatch: Mapping[str, str | int | float | bool] | None = None,
        template: str | None = None,
        log_dir: str | None = None,
        **run: Unpack[RunOptions],
    ) -> None:
        options = {
            "partition": partition,
            "time": time,
            "cpus_per_task": cpus_per_task,
            "mem_per_cpu_gb": mem_per_cpu_gb,
            "gpus_per_task": gpus_per_task,
            "workers": workers,
            "ranks_per_job": ranks_per_job,
            "nodes_per_task": nodes_per_task,
            "max_requeues": max_requeues,
            "qos": qos,
            "account": account,
            "env": env,
            "sbatch": sbatch,
            "template": template,
            "log_dir": log_dir,
        }
        super().__init__(pipeline, run_dir, options, run)


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
