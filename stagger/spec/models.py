"""The run spec: every key of a pipeline file, with type and default. `stagger schema` prints it as JSON schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    PositiveInt,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema

from stagger.errors import StaggerError
from stagger.pipeline import ShardBy
from stagger.spec.base import Amount, Model, survives_json
from stagger.spec.blocks import HOST_STEP, BlocksSpec
from stagger.spec.executors import Executor, LocalSpec, RetrySpec
from stagger.start.delays import LONGEST_WINDOW_S, StartPolicy
from stagger.storage.storage import is_local

#: Names become parts of file names and job names.
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"

Name = Annotated[str, Field(pattern=NAME, max_length=100)]


class StepSpec(Model):
    """One step: `name`, or `name: {parameters}`. The name is a built-in step's or `module:callable`."""

    use: str
    """Name of a built-in step, or `module:callable`."""
    params: dict[str, Any] = {}
    """Parameters of the step."""

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
        raise ValueError("write a step as `name` or `name: {parameters}`")

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        from stagger.spec.step_checks import step_schema

        return step_schema()


Pipeline = Annotated[tuple[StepSpec, ...], Field(min_length=1)]


class SiteDefaults(Model):
    """Keys of stages that a profile can set: none affects what a rank reads, does or writes."""

    randomize_start_duration: Literal["auto"] | Annotated[int, Field(ge=0, le=LONGEST_WINDOW_S)] = "auto"
    """The window: seconds over which starts are spread. `auto`: 0, 30, 60 or 180 by the number of ranks; 0 locally."""
    start_policy: StartPolicy = "uniform"
    """How a job gets its delay. `uniform`: it draws randint(0, window); `spread`: it has its own slot in the window."""
    backend_limit: Amount | None = None
    """Requests per second that the remote storage can take. The window becomes long enough to keep starts below 0.8 of
    it; `start_policy` defaults to `spread`; each job of a throttled launch holds its slot for the length of the window.
    """
    retries: RetrySpec | None = None
    """Automatic retries of failed ranks, on Slurm; by default none."""
    executor: Executor = Field(default_factory=LocalSpec)
    """Where the ranks run."""


class StageDefaults(SiteDefaults):
    """Keys that a file sets for all of its stages, and that each stage can override."""

    tasks: Annotated[int, Field(ge=1, le=10_000_000)] = 1
    """Number of ranks that divide the work."""
    shard_by: ShardBy = "count"
    """How shards are assigned to ranks. `count`: round robin; `bytes`: each rank gets about as many bytes."""
    commit: Literal["rank", "shard"] = "rank"
    """When outputs are committed. `rank`: all outputs of a rank together, when it is done; `shard`: each shard's
    outputs as soon as it is done, so that a stopped rank resumes there. `shard` needs `{stem}` in every writer's
    filename."""


class StageSpec(StageDefaults):
    """One stage: a pipeline, and how to run it."""

    @model_validator(mode="before")
    @classmethod
    def _spread_below_a_limit(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("backend_limit") is not None:
            return {"start_policy": "spread", **value}
        return value

    name: Name
    """The stage's name."""
    depends: tuple[str, ...] = ()
    """Stages of which every rank must be done before this stage starts."""
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
        for key in ("ranks_per_job", "ranks_at_once", "nodes_per_job", "nodes_per_task"):
            if getattr(self.executor, key, 1) != 1:
                raise ValueError(f"each server is its own job, on one node: leave executor.{key} out")
        if self.executor.type == "local" and self.executor.workers < self.blocks.servers:
            raise ValueError(
                f"executor.workers is {self.executor.workers}, but all {self.blocks.servers} servers must run at once:"
                " leave it out"
            )
        return self


#: Files of the run directory: a stage's folder cannot have these names, nor begin with the last.
TAKEN = ("run.json", "lock", "lock.takeover")


class StorageSpec(Model):
    """How all stages of a run access remote storage."""

    storage_options: dict[str, dict[str, Any]] = {}
    """fsspec options per protocol: `{s3: {endpoint_url: ...}}`. Write secrets as ${NAME}. `engine` selects the S3
    client: auto, obstore or s3fs."""
    retry_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 600.0
    """Seconds for which a request is retried that the storage throttled, rejected for the moment, or cut off."""
    read_ahead_mb: PositiveInt = 64
    """MB of remote input that a task fetches into memory ahead of its reader."""

    @field_validator("storage_options")
    @classmethod
    def _as_json(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not survives_json(value):
            raise ValueError("these options cannot be kept as JSON; use string keys and finite 64-bit numbers")
        return value


class WholeRun(StorageSpec):
    """Keys of the whole run, besides its name, its folder and its stages."""

    profile: str | None = None
    """The profile from which the file takes defaults; `none` for none, not even the default profile."""
    shared: Literal["group"] | None = None
    """`group`: the members of the run directory's group share the run. Each can launch, retry and cancel it, and runs
    the code of the others. By default only its owner can."""


class RunSpec(WholeRun):
    """A whole run. Each stage comes after those that it depends on."""

    name: Name
    run_dir: str
    stages: Annotated[tuple[StageSpec, ...], Field(min_length=1)]
    cwd: str
    """The folder that the run was launched from; relative paths in steps are resolved there."""
    import_path: tuple[str, ...] = ()
    """Folders from which steps are imported."""
    pickled: bool = False
    """Whether the steps are Python objects, which tasks load from a pickle."""
    origins: dict[str, str] = {}
    """Where each value that is no default was set: `executor.partition` -> `profile gpu (/etc/config.yaml:3)`. With
    several stages, the keys of a stage begin with `stages.NAME.`."""

    def stage(self, name: str) -> StageSpec:
        """The stage of this name. Raises KeyError when there is none."""
        return {stage.name: stage for stage in self.stages}[name]

    def of_profile(self, stage: str, setting: str) -> bool:
        """Whether a setting of a stage has the value of a profile."""
        origin = self.origins.get(f"stages.{stage}.{setting}") or self.origins.get(setting, "")
        return origin.startswith("profile ")

    def chosen(self, name: str | None) -> list[StageSpec]:
        """All stages, or only the one of this name. Raises StaggerError when there is no such stage."""
        from stagger.spec.step_checks import nearest

        names = [stage.name for stage in self.stages]
        if name is not None and name not in names:
            raise StaggerError(f"There is no stage {name!r}; {nearest(name, names)}")
        return list(self.stages) if name is None else [self.stage(name)]

    def only(self, name: str | None) -> StageSpec:
        """The one stage whose ranks a command names. Raises StaggerError when there are several and `name` is None."""
        stages = self.chosen(name)
        if len(stages) > 1:
            raise StaggerError(
                f"The run has several stages; choose one with --stage: {', '.join(stage.name for stage in stages)}."
            )
        return stages[0]

    @model_validator(mode="after")
    def _shared_on_a_file_system(self) -> RunSpec:
        if self.shared and not is_local(self.run_dir):
            raise ValueError(
                "shared: a store has no groups; leave `shared` out, and give the team access to the bucket"
            )
        return self

    @model_validator(mode="after")
    def _depends_on_earlier(self) -> RunSpec:
        seen: set[str] = set()
        for stage in self.stages:
            if (stage.name in TAKEN or stage.name.startswith(TAKEN[-1])) and len(self.stages) > 1:
                raise ValueError(f"a stage cannot be called {stage.name!r}: the run directory has a file of this name")
            if stage.name in seen:
                raise ValueError(f"two stages are called {stage.name!r}; names must differ")
            for name in stage.depends:
                if name not in seen:
                    raise ValueError(f"stage {stage.name!r} depends on {name!r}, which is not a stage before it")
            seen.add(stage.name)
        return self


class PipelineFile(StageDefaults, WholeRun):
    """A stagger pipeline file. If it has `stages`, its own stage keys are defaults for each of them."""

    name: Name
    """Name of the run, and of its stage if the file has no `stages`."""
    run_dir: str
    """Where the run keeps its records: a local or shared folder, or s3://..."""
    pipeline: Pipeline | None = None
    """The steps; the first reads, the last usually writes."""
    blocks: BlocksSpec | None = None
    """Servers that host a model's transformer blocks, in place of a pipeline."""
    stages: Annotated[tuple[StageSpec, ...], Field(min_length=1)] | None = None
    """Several stages, each with a name, a pipeline, and the stages that it depends on."""


#: Keys of a file that apply to the whole run. All others belong to a stage, or are defaults for stages.
RUN_KEYS = ("name", "run_dir", "stages", *WholeRun.model_fields)
