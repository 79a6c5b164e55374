"""The executors for Python: each runs a pipeline of Python objects, or servers of blocks, as one stage of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from stagger.api.arguments import with_arguments
from stagger.api.removed import WithRemoved, described_step, without_removed
from stagger.api.run import Run, scripted
from stagger.api.servers import described_blocks, step_of
from stagger.errors import StaggerError
from stagger.launch.launch import Wishes, launch
from stagger.pipeline import ShardBy
from stagger.pipeline.chain import Step
from stagger.pipeline.hooks import bound_steps
from stagger.spec.executors import EXECUTORS
from stagger.spec.expected import described, expected
from stagger.spec.from_python import Given, from_objects
from stagger.spec.models import RunSpec, StageSpec, WholeRun
from stagger.spec.step_checks import check_built_in
from stagger.start.delays import StartPolicy


@dataclass(kw_only=True, eq=False, repr=False)
class PipelineExecutor:
    """Runs a pipeline as `tasks` ranks, or servers of blocks: the base of `LocalExecutor` and `SlurmExecutor`.

    An argument that is None, or not passed, has the value of the profile, or else the default.
    """

    type: ClassVar[str]

    pipeline: Sequence[Step | WithRemoved] | None = field(default=None, kw_only=False)
    run_dir: str | os.PathLike[str]
    name: str = "pipeline"
    depends: PipelineExecutor | Sequence[PipelineExecutor] = ()
    uses: PipelineExecutor | Sequence[PipelineExecutor] = ()
    blocks: Mapping[str, Any] | None = None
    tasks: int | Literal["auto"] | None = None
    bytes_per_task: int | str | None = None
    shard_by: ShardBy | None = None
    randomize_start_duration: int | Literal["auto"] | None = None
    start_policy: StartPolicy | None = None
    backend_limit: float | None = None
    metadata_limit: float | None = None
    commit: Literal["rank", "shard"] | None = None
    retries: Mapping[str, Any] | None = None
    publish: Mapping[str, Any] | None = None
    storage_options: Mapping[str, Mapping[str, Any]] | None = None
    retry_seconds: float | None = None
    read_ahead_mb: int | None = None
    profile: str | None = None
    shared: Literal["group"] | None = None

    def __post_init__(self) -> None:
        if type(self) is PipelineExecutor:
            raise TypeError("PipelineExecutor only says what executors share; use LocalExecutor or SlurmExecutor.")
        if self.blocks is None or self.pipeline is not None:
            self.pipeline = check_steps(self.pipeline)
        self.depends = executors_in(self.depends, "depends")
        self.uses = executors_in(self.uses, "uses")
        self.spec  # noqa: B018  # Raises StaggerError when an argument is wrong.

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, run_dir={str(self.run_dir)!r})"

    @property
    def spec(self) -> RunSpec:
        """The run of this stage, and of those that it depends on or uses. Reads no model: that is for `run`."""
        return spec_of(with_upstream([self]))

    def _given(self) -> Given:
        """The arguments that were passed, under the names of the keys of a pipeline file."""
        passed = {one.name: getattr(self, one.name) for one in fields(self)}
        passed = {key: value for key, value in passed.items() if value is not None or key == "name"}
        executor = {key: passed.pop(key) for key in EXECUTORS[self.type].model_fields if key in passed}
        whole = {key: passed.pop(key) for key in ("run_dir", *WholeRun.model_fields) if key in passed}
        if self.pipeline is not None:
            passed["pipeline"] = [described_step(step) for step in self.pipeline]
        if self.blocks is not None:
            passed["blocks"] = described_blocks(self.blocks)
        passed["depends"] = [other.name for other in executors_in(self.depends, "depends")]
        passed["uses"] = [other.name for other in executors_in(self.uses, "uses")]
        return Given(whole, passed, {"type": self.type, **executor})

    def run(
        self,
        *,
        limit: int | None = None,
        wait: bool = True,
        overwrite: bool = False,
        fresh: bool = False,
        rehearse: int | None = None,
    ) -> Run:
        """Launch all ranks that are not done, of this stage and of those that it depends on or uses.

        A done rank does not run again, unless `fresh` is set.

        Args:
            limit: run only the first `limit` ranks of each stage.
            wait: return when the run has ended. Otherwise its jobs are submitted, local ranks run in a process of their
                own, and both go on when this process ends.
            overwrite: remove files in the output folders that have names of the run's outputs, but are none of it.
            fresh: start over: undo all ranks of earlier launches, and remove their records and outputs.
            rehearse: run all stages on this machine over the first `rehearse` shards of the input, in a folder of their
                own; nothing of the run itself is touched. The handle is that of the rehearsal.

        Returns:
            The handle of the run.

        Raises:
            StaggerError: the request is wrong, and nothing was launched.
            RunFailed: with `wait`, ranks failed; `failed_ranks` names them.
            KeyboardInterrupt: Ctrl-C was pressed, and the local workers have ended; jobs keep running. Completed ranks
                stay done.
            SystemExit: the same, after another signal.
        """
        return run_stages([self], limit=limit, wait=wait, overwrite=overwrite, fresh=fresh, rehearse=rehearse)

    def dry_run(self, *, limit: int | None = None, fresh: bool = False) -> dict[str, Any]:
        """What `run` would launch with these arguments, down to the job scripts. Changes nothing.

        Returns:
            The document of `stagger launch --dry-run --json`; `["stages"][0]["arrays"][0]["script"]` is a job script.

        Raises:
            StaggerError: `run` would refuse to launch this.
        """
        from stagger.launch.dry_run import dry_run

        check_count(self, "dry_run", "limit", limit)
        stages = with_upstream([self])
        spec = spec_of(stages, reading=True)
        with scripted(spec.cwd):
            return dry_run(spec, Wishes(limit, fresh=fresh), objects_of(stages, spec))


@with_arguments
@dataclass(kw_only=True, eq=False, repr=False)
class LocalExecutor(PipelineExecutor):
    """Runs a pipeline, or servers of blocks, on this machine.

    An argument that is None, or not passed, has the value of the profile, or else the default.
    """

    type = "local"

    workers: int | None = None


@with_arguments
@dataclass(kw_only=True, eq=False, repr=False)
class SlurmExecutor(PipelineExecutor):
    """Runs a pipeline, or servers of blocks, as Slurm job arrays.

    An argument that is None, or not passed, has the value of the profile, or else the default.
    """

    type = "slurm"

    partition: str | None = None
    time: str | int | None = None
    cpus_per_task: int | None = None
    mem_per_cpu_gb: float | None = None
    gpus_per_task: int | None = None
    workers: int | None = None
    ranks_per_job: int | None = None
    ranks_at_once: int | Literal["auto"] | None = None
    nodes_per_job: int | None = None
    nodes_per_task: int | None = None
    max_requeues: int | None = None
    avoid_nodes: bool | None = None
    qos: str | None = None
    account: str | None = None
    env: Mapping[str, Any] | None = None
    sbatch: Mapping[str, str | int | float | bool] | None = None
    end: Mapping[str, Any] | None = None
    nodes_submit: bool | None = None
    template: str | None = None
    log_dir: str | None = None
    chdir: str | None = None
    name_prefix: str | None = None
    directives: Sequence[str] | None = None


def run_stages(
    executors: Sequence[PipelineExecutor],
    *,
    limit: int | None = None,
    wait: bool = True,
    overwrite: bool = False,
    fresh: bool = False,
    rehearse: int | None = None,
) -> Run:
    """Launch one run, as `PipelineExecutor.run` does. Its stages are these executors, and those they depend on or use.

    For one chain of stages, `run` of the last executor is the same.
    """
    stages = with_upstream(executors)
    for key, value in (("limit", limit), ("rehearse", rehearse)):
        check_count(executors[-1], "run", key, value)
    spec = spec_of(stages, reading=True)
    with scripted(spec.cwd):
        objects = objects_of(stages, spec)
        if rehearse is not None:
            from stagger.launch.rehearsal import rehearse as try_out

            rehearsal, launched = try_out(spec, rehearse, objects)
            launched.raise_if_failed()
            return Run(rehearsal.spec.run_dir, spec.storage_options)
        wishes = Wishes(limit, wait, overwrite, fresh, in_background=not wait)
        launched = launch(spec, wishes, objects)
    if wait:
        launched.raise_if_failed()
    return Run(spec.run_dir, spec.storage_options)


def check_count(executor: PipelineExecutor, method: str, key: str, value: Any) -> None:
    """Raise StaggerError for an argument of a method that is neither None nor a number of at least 1."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        mistake = expected(PositiveInt).mistake(key, value, python=True)
        raise StaggerError(f"{type(executor).__name__}.{method}: {key}: {mistake}.")


def objects_of(stages: Sequence[PipelineExecutor], spec: RunSpec) -> dict[str, list[Step]]:
    """Stage -> its steps."""
    return {one.name: steps_in(one, spec.stage(one.name)) for one in stages}


def steps_in(one: PipelineExecutor, stage: StageSpec) -> list[Step]:
    """The steps that the tasks of an executor run."""
    if one.blocks is not None:
        return [step_of(stage, one.blocks)]
    return [without_removed(step) for step in one.pipeline or ()]


def spec_of(stages: Sequence[PipelineExecutor], *, reading: bool = False) -> RunSpec:
    """The run that consists of these stages. `reading`: whether models are read for their numbers of blocks.

    Raises StaggerError when the stages are wrong, or contradict one another.
    """
    names = [one.name for one in stages]
    for name in names:
        if names.count(name) > 1:
            raise StaggerError(f"{names.count(name)} executors are called {name!r}; give each stage a name of its own.")
    return from_objects([one._given() for one in stages], reading=reading)


def with_upstream(executors: Sequence[PipelineExecutor]) -> list[PipelineExecutor]:
    """The executors and all that they depend on or use, each after those.

    Raises StaggerError when executors wait for one another in a circle.
    """
    found: list[PipelineExecutor] = []

    def visit(one: PipelineExecutor, behind: tuple[PipelineExecutor, ...]) -> None:
        if one in found:
            return
        if one in behind:
            circle = " -> ".join(other.name for other in (*behind[behind.index(one) :], one))
            raise StaggerError(
                f"These stages wait for each other: {circle}; remove one of their `depends`, or of their `uses`."
            )
        for other in (*executors_in(one.depends, "depends"), *executors_in(one.uses, "uses")):
            visit(other, (*behind, one))
        found.append(one)

    for one in executors_in(executors, "executors"):
        visit(one, ())
    return found


#: What to do with the executors of another stage, in place of passing its handle or its name.
INSTEAD = {
    "depends": "If that run has a run_dir of its own, wait for it with wait(), and launch this one then.",
    "uses": "A stage uses the servers of its own run: give both executors the same run_dir.",
    "executors": "A handle is that of a run that has been launched.",
}


def executors_in(given: Any, argument: str) -> tuple[PipelineExecutor, ...]:
    """What an argument was given, as a tuple of executors. Raises StaggerError for anything else."""
    executors = (given,) if isinstance(given, PipelineExecutor) else given
    if isinstance(executors, Run):
        raise StaggerError(
            f"{argument}: pass the executor, not the handle of its run: run() of the last executor launches all stages."
            f" {INSTEAD[argument]}"
        )
    if not isinstance(executors, (list, tuple)):
        raise StaggerError(f"{argument}: pass an executor, or a list of them, not {executors!r}.")
    for one in executors:
        if not isinstance(one, PipelineExecutor):
            raise StaggerError(f"{argument}: pass executors, not {one!r}.")
    return tuple(executors)


def check_steps(pipeline: Sequence[Step | WithRemoved] | None) -> list[Step | WithRemoved]:
    """Return the steps as a list. Raises StaggerError for anything that cannot be a step."""
    if pipeline is None:
        raise StaggerError("pipeline is missing: pass a list of steps, or blocks={...} for servers that host a model.")
    if not isinstance(pipeline, (list, tuple)) or not pipeline:
        raise StaggerError(f"pipeline: expected a list of steps, not {described(pipeline)}.")
    steps = [without_removed(step) for step in pipeline]
    for number, step in enumerate(steps, 1):
        if isinstance(step, type):
            raise StaggerError(f"Step {number} is the class {step.__name__}; pass an instance: {step.__name__}(...).")
        if not callable(step):
            raise StaggerError(f"Step {number} is {step!r}; pass a function or an instance, such as WriteJsonl(...).")
        if bound_steps([step]) and any(step is other for other in steps[: number - 1]):
            raise StaggerError(f"Step {number} is the same object as an earlier step; create a new one for each step.")
        check_built_in(step, f"Step {number}")
    return list(pipeline)
