"""The run spec: every key of a pipeline file, its type and its default. `stagger schema` prints it as JSON schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    PositiveInt,
    model_validator,
)
from pydantic_core import CoreSchema

from stagger.errors import StaggerError
from stagger.pipeline.document import ShardBy
from stagger.spec.base import Amount, Model
from stagger.spec.blocks import HOST_STEP, BlocksSpec
from stagger.spec.executors import Executor, LocalSpec, RetrySpec
from stagger.start.delays import LONGEST_WINDOW_S, StartPolicy

#: Names go into file names and job names.
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"

Name = Annotated[str, Field(pattern=NAME, max_length=100)]


class StepSpec(Model):
    """One step: `name`, or `name: {parameters}`. The name is a built-in step's or `module:callable`."""

    use: str
    """The name: of a built-in step, or `module:callable`."""
    params: dict[str, Any] = {}
    """Its parameters."""

    @model_validator(mode="before")
    @classmethod
    def _from_file(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"use": value}
        if isinstance(value, dict) and len(value) == 1 and "use" not in value:
            ((use, params),) = value.items()
            return {"use": use, "params": {} if params is None else params}
        if isinstance(value, dict) and "use" in value:
            return value
        raise ValueError("a step is written `name` or `name: {parameters}`")

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        from stagger.spec.step_checks import step_schema

        return step_schema()


Pipeline = Annotated[tuple[StepSpec, ...], Field(min_length=1)]


class StageDefaults(Model):
    """What a file says for all of its stages, and each stage may say for itself."""

    tasks: Annotated[int, Field(ge=1, le=10_000_000)] = 1
    """Into how many ranks the work is divided."""
    shard_by: ShardBy = "count"
    """How shards are given to ranks: round robin (`count`), or evening out their `bytes`."""
    randomize_start_duration: Literal["auto"] | Annotated[int, Field(ge=0, le=LONGEST_WINDOW_S)] = "auto"
    """Seconds over which the jobs' starts are spread; `auto`: 0, 30, 60 or 180 by the number of ranks, 0 locally."""
    start_policy: StartPolicy = "uniform"
    """How a job finds its delay: `uniform`, randint(0, window), drawn; `spread`, a slot of its own in the window."""
    backend_limit: Amount | None = None
    """Requests per second that the remote storage can take: the window is made so long that starts stay below 0.8 of
    it, the policy is `spread` if none is named, and jobs of a throttled launch keep their place for that long."""
    commit: Literal["rank", "shard"] = "rank"
    """When outputs are committed: all of a rank's when it is done, or each shard's (`{stem}` in every writer's
    filename) as it is done, so that a rank that is stopped goes on with the next shard."""
    retries: RetrySpec | None = None
    """Running failed ranks again on Slurm, without anybody's help; by default not."""
    executor: Executor = Field(default_factory=LocalSpec)
    """Where the ranks run."""


class StageSpec(StageDefaults):
    """A pipeline and how it is run."""

    @model_validator(mode="before")
    @classmethod
    def _spread_below_a_limit(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("backend_limit") is not None:
            return {"start_policy": "spread", **value}
        return value

    name: Name
    """The stage's name."""
    depends: tuple[str, ...] = ()
    """Stages that must be done, every rank of them, before this one starts."""
    pipeline: Pipeline
    """The steps; the first reads, the last usually writes."""
    blocks: BlocksSpec | None = None
    """Servers that host a model's transformer blocks, in place of a pipeline."""

    @model_validator(mode="after")
    def _blocks_alone(self) -> StageSpec:
        if self.blocks is None:
            return self
        if [step.use for step in self.pipeline] != [HOST_STEP]:
            raise ValueError("a stage has `blocks` or a `pipeline`, not both")
        for key in ("ranks_per_job", "nodes_per_task"):
            if getattr(self.executor, key, 1) != 1:
                raise ValueError(f"each server is a job of its own on one node: leave executor.{key} out")
        if self.executor.type == "local" and self.executor.workers < self.blocks.servers:
            raise ValueError(
                f"executor.workers is {self.executor.workers}, but all {self.blocks.servers} servers run at once here:"
                " leave it out"
            )
        return self


#: Files of the run directory, beside which a stage's folder has to fit.
TAKEN = ("run.json", "lock", "lock.takeover")


class StorageSpec(Model):
    """How a run, all of its stages, asks remote storage."""

    storage_options: dict[str, dict[str, Any]] = {}
    """Options for fsspec, per protocol: `{s3: {endpoint_url: ...}}`. Secrets only as ${NAME}. `engine` chooses what
    speaks to S3: s3fs or obstore."""
    retry_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 600.0
    """For how long a request is made again that was throttled, refused for the moment, or cut off."""
    read_ahead_mb: PositiveInt = 64
    """Memory that a task fills with input from remote storage before it is asked for, in MB."""


class RunSpec(StorageSpec):
    """A whole run: its stages, in an order in which each comes after those that it depends on."""

    name: Name
    run_dir: str
    stages: Annotated[tuple[StageSpec, ...], Field(min_length=1)]
    cwd: str
    """The folder that the run was launched from; relative paths in steps start there."""
    import_path: tuple[str, ...] = ()
    """Folders whose modules steps may come from."""
    pickled: bool = False
    """Whether the steps are Python objects, which tasks get as a pickle."""

    def stage(self, name: str) -> StageSpec:
        """The stage of this name. Raises KeyError when there is none."""
        return {stage.name: stage for stage in self.stages}[name]

    def chosen(self, name: str | None) -> list[StageSpec]:
        """All stages, or the one that a user names. Raises StaggerError when there is none of this name."""
        from stagger.spec.step_checks import nearest

        names = [stage.name for stage in self.stages]
        if name is not None and name not in names:
            raise StaggerError(f"There is no stage {name!r}; {nearest(name, names)}")
        return list(self.stages) if name is None else [self.stage(name)]

    def only(self, name: str | None) -> StageSpec:
        """The stage that ranks are numbered in. Raises StaggerError when there are several, and none is named."""
        stages = self.chosen(name)
        if len(stages) > 1:
            raise StaggerError(
                f"The run has several stages; say which with --stage: {', '.join(stage.name for stage in stages)}."
            )
        return stages[0]

    @model_validator(mode="after")
    def _depends_on_earlier(self) -> RunSpec:
        seen: set[str] = set()
        for stage in self.stages:
            if stage.name in TAKEN and len(self.stages) > 1:
                raise ValueError(f"a stage cannot be called {stage.name!r}: the run directory has a file of this name")
            if stage.name in seen:
                raise ValueError(f"two stages are called {stage.name!r}; names must differ")
            for name in stage.depends:
                if name not in seen:
                    raise ValueError(f"stage {stage.name!r} depends on {name!r}, which is not a stage before it")
            seen.add(stage.name)
        return self


class PipelineFile(StageDefaults, StorageSpec):
    """A stagger pipeline file. With `stages`, the keys above it are defaults for each stage."""

    name: Name
    """The run's name; of a single stage too."""
    run_dir: str
    """Where the run keeps its records: a local or shared folder, or s3://..."""
    pipeline: Pipeline | None = None
    """The steps; the first reads, the last usually writes."""
    blocks: BlocksSpec | None = None
    """Servers that host a model's transformer blocks, in place of a pipeline."""
    stages: Annotated[tuple[StageSpec, ...], Field(min_length=1)] | None = None
    """Several pipelines, each a stage with a name and what it depends on."""


#: Keys of a file that say something of the whole run; all others are a stage's, or defaults for stages.
RUN_KEYS = ("name", "run_dir", "stages", *StorageSpec.model_fields)
