"""The executors for Python scripts: each runs a pipeline of Python objects."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from signal import Signals
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict

from stagger.errors import Interrupted, StaggerError
from stagger.launch.launch import launch
from stagger.launch.launched import Launched
from stagger.pipeline import ShardBy
from stagger.pipeline.chain import Step
from stagger.plan.fingerprint import describe_object
from stagger.spec.from_python import from_objects
from stagger.spec.models import WholeRun
from stagger.spec.step_checks import check_built_in
from stagger.start.delays import StartPolicy

if TYPE_CHECKING:
    from typing_extensions import Unpack


class RunOptions(TypedDict, total=False):
    """Options of every executor, besides its own settings; named as in a pipeline file.

    tasks: number of ranks that divide the work; 1 by default.
    name: name of the run.
    shard_by: how shards are assigned to ranks. `count`: round robin; `bytes`: each rank gets about as many bytes.
    randomize_start_duration: the window: seconds over which starts are spread. `auto`: 0, 30, 60 or 180 by the number
        of ranks; 0 locally.
    start_policy: how a job gets its delay. `uniform`: it draws randint(0, window); `spread`: it has its own slot in the
        window.
    backend_limit: requests per second that the remote storage can take. The window becomes long enough to keep starts
        below 0.8 of it; `start_policy` defaults to `spread`; each job of a throttled launch holds its slot for the
        length of the window.
    storage_options: fsspec options per protocol. Write secrets as `${NAME}`.
    retry_seconds: seconds for which a request is retried that the storage throttled, rejected for the moment, or cut
        off.
    read_ahead_mb: MB of remote input that a task fetches into memory ahead of its reader, with several requests in
        flight; 0: none, one request after another.
    profile: the profile from which the run takes what is not passed here; `none` for none, not even the default one.
    shared: `group`: the members of the run directory's group share the run, and trust one another's code.
    commit: when outputs are committed. `rank`: all outputs of a rank together, when it is done; `shard`: each shard's
        outputs as soon as it is done, so that a stopped rank resumes there. `shard` needs `{stem}` in every writer's
        filename.
    retries: on Slurm, automatic retries of failed ranks, with more memory or time for those that ran out: `max`,
        `memory_factor`, `time_factor`, `on`.
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
    profile: str | None
    shared: Literal["group"] | None
    commit: Literal["rank", "shard"]
    retries: Mapping[str, Any]


class PipelineExecutor(ABC):
    """Runs a pipeline as `tasks` ranks: the base of `LocalExecutor` and `SlurmExecutor`.

    Args:
        pipeline: the steps: callables `(data, rank, world_size) -> iterator`. The first reads, the last usually writes.
        run_dir: where the run keeps its records: a local or shared folder, or `s3://...`.
        options: the executor's own settings.
        run: the options listed in `RunOptions`.

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
                **{key: stage.pop(key) for key in WholeRun.model_fields if key in stage},
            },
            stage,
            {"type": self.type, **{key: value for key, value in options.items() if value is not None}},
        )

    def run(self, *, limit: int | None = None, wait: bool = True) -> Launched:
        """Launch all ranks that are not done. A completed rank never runs again.

        Args:
            limit: run only the first `limit` ranks.
            wait: on Slurm, return when all jobs have ended, rather than when they are submitted.

        Raises:
            StaggerError: the request is wrong, and nothing was launched.
            RunFailed: ranks failed; `failed_ranks` names them.
            KeyboardInterrupt: Ctrl-C was pressed, and the workers have ended. Completed ranks stay done.
            SystemExit: the same, after another signal.
        """
        try:
            launched = launch(self.spec, self.pipeline, limit=limit, wait=wait)
        except Interrupted as interrupted:  # Scripts expect KeyboardInterrupt after Ctrl-C.
            stopped = KeyboardInterrupt if interrupted.signal == Signals.SIGINT else SystemExit(interrupted.exit_status)
            raise stopped from None
        launched.raise_if_failed()
        return launched


class LocalExecutor(PipelineExecutor):
    """Runs a pipeline on this machine.

    Args:
        pipeline: the steps: callables `(data, rank, world_size) -> iterator`. The first reads, the last usually writes.
        run_dir: where the run keeps its records: a local or shared folder, or `s3://...`.
        workers: number of ranks that run at once, each in its own process; by default the number of processors.
        run: `tasks`, `name` and the other options listed in `RunOptions`.

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
        partition: the partition; by default the cluster's default partition.
        time: time limit of a job: minutes, H:MM:SS or D-HH:MM:SS.
        cpus_per_task: processors of a rank; 1 by default.
        mem_per_cpu_gb: memory per processor, in GiB; by default the partition's default.
        gpus_per_task: GPUs of a rank; 0 by default.
        workers: the throttle: maximum number of jobs at once, over the whole run.
        ranks_per_job: ranks that one job runs, `ranks_at_once` of them at once on each of its nodes; 1 by default.
        ranks_at_once: ranks that one node of a job runs beside one another, 1 by default; "auto": whole nodes, with as
            many ranks at once as their processors, memory and GPUs allow.
        nodes_per_job: nodes per job, among which the job's ranks are divided; 1 by default.
        nodes_per_task: nodes per job; 1 by default. On several nodes, srun starts each rank once per node; only the
            first node commits outputs.
        max_requeues: maximum number of times that a job is requeued, 5 by default: after preemption, or at its time
            limit if it made progress.
        avoid_nodes: whether retries exclude nodes on which several ranks failed while ranks succeeded on others; true
            by default.
        qos: quality of service.
        account: account to charge.
        env: the environment that a job sets up before Python starts: `modules`, `venv`, `conda`, `container`, `setup`.
        sbatch: any other options of sbatch, by their long names.
        end: the end job, which runs when the arrays have ended: `partition`, `account`, `qos`, `time`, `mem_gb`,
            `cpus_per_task`, `gpus`, `sbatch`.
        nodes_submit: whether jobs may submit jobs. If not, `run(wait=True)` or the next command submits what the end
            job would.
        template: your own job script template.
        log_dir: folder for the output of jobs before and after their ranks run; all nodes must share it.
        chdir: folder in which Slurm starts a job, before its delay; `/` by default.
        name_prefix: what the names of all jobs begin with.
        directives: further lines of the job script after its options, as written: `#BB ...`, `#DW ...`.
        run: `tasks`, `name` and the other options listed in `RunOptions`.

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
        cpus_per_task: int | None = None,
        mem_per_cpu_gb: float | None = None,
        gpus_per_task: int | None = None,
        workers: int | None = None,
        ranks_per_job: int | None = None,
        ranks_at_once: int | Literal["auto"] | None = None,
        nodes_per_job: int | None = None,
        nodes_per_task: int | None = None,
        max_requeues: int | None = None,
        avoid_nodes: bool | None = None,
        qos: str | None = None,
        account: str | None = None,
        env: Mapping[str, Any] | None = None,
        sbatch: Mapping[str, str | int | float | bool] | None = None,
        end: Mapping[str, Any] | None = None,
        nodes_submit: bool = True,
        template: str | None = None,
        log_dir: str | None = None,
        chdir: str | None = None,
        name_prefix: str | None = None,
        directives: Sequence[str] | None = None,
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
            "ranks_at_once": ranks_at_once,
            "nodes_per_job": nodes_per_job,
            "nodes_per_task": nodes_per_task,
            "max_requeues": max_requeues,
            "avoid_nodes": avoid_nodes,
            "qos": qos,
            "account": account,
            "env": env,
            "sbatch": sbatch,
            "end": end,
            "nodes_submit": nodes_submit,
            "template": template,
            "log_dir": log_dir,
            "chdir": chdir,
            "name_prefix": name_prefix,
            "directives": directives,
        }
        super().__init__(pipeline, run_dir, options, run)


def check_steps(pipeline: Sequence[Step]) -> list[Step]:
    """Return the steps as a list. Raises StaggerError for anything that cannot be a step."""
    if not isinstance(pipeline, (list, tuple)):
        raise StaggerError(f"pipeline must be a list of steps, not {pipeline!r}.")
    for number, step in enumerate(pipeline, 1):
        if not callable(step) or isinstance(step, type):
            raise StaggerError(f"Step {number} is {step!r}; pass a function or an instance, such as WriteJsonl(...).")
        if hasattr(step, "bind") and any(step is other for other in pipeline[: number - 1]):
            raise StaggerError(f"Step {number} is the same object as an earlier step; create a new one for each step.")
        check_built_in(step, f"Step {number}")
    return list(pipeline)
