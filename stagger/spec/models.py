"""The run spec: every key of a pipeline file, with type and default. `stagger schema` prints it as JSON schema."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    NonNegativeInt,
    PrivateAttr,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import CoreSchema

from stagger.errors import StaggerError, counted
from stagger.pipeline import ShardBy
from stagger.ranks import MOST
from stagger.spec.base import Amount, Model, Says, WrongKey, survives_json
from stagger.spec.blocks import HOST_STEP, BlocksSpec, too_few
from stagger.spec.executors import GPU_OPTIONS, MEMORY_OPTIONS, Executor, LocalSpec, RetrySpec, SlurmSpec
from stagger.spec.nearest import nearest
from stagger.spec.removed import RemovedSpec
from stagger.spec.sizes import Bytes
from stagger.spec.step_form import step_of
from stagger.start.delays import LONGEST_WINDOW_S, StartPolicy
from stagger.storage.storage import is_local

#: Names become parts of file names and job names.
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"

Name = Annotated[
    str,
    Field(pattern=NAME, max_length=100),
    Says("a name of at most 100 letters, digits and _ . - that begins with a letter or a digit", "my_run"),
]

RunDir = Annotated[str, Field(min_length=1), Says("a path", "runs/my_run")]


class StepSpec(Model):
    """One step: `name`, or `name: {parameters}`. The name is a built-in step's or `module:callable`."""

    use: str
    """Name of a built-in step, or `module:callable`."""
    params: dict[str, Any] = {}
    """Parameters of the step."""
    removed: RemovedSpec | None = None
    """Where the documents are written that the step removes: `{path: ..., reason: true}`."""
    stateless: bool = False
    """Whether the step keeps nothing from one call to the next, so that it may be called once for each shard."""
    _place: str = PrivateAttr("")

    def at(self, place: str) -> StepSpec:
        """Note where the step is written, as `file:line: pipeline[0]`, for messages of this launch."""
        self._place = place
        return self

    def named(self, number: int) -> str:
        """The step in a message: where it is written, or else its number, and its name, unless nobody wrote it."""
        where = self._place or f"Step {number}"
        return where if self.use == HOST_STEP else f"{where} ({self.use})"

    @model_validator(mode="before")
    @classmethod
    def _from_file(cls, value: Any) -> Any:
        return step_of(value)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        from stagger.spec.step_checks import step_schema

        return step_schema()


Pipeline = Annotated[
    tuple[StepSpec, ...], Field(min_length=1), Says("a list of steps", [{"read_jsonl": {"path": "input"}}])
]


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
    metadata_limit: Amount | None = None
    """Metadata operations per second that the file system with the tasks' programs can take. The window becomes long
    enough to keep starts below 0.8 of it; otherwise as `backend_limit`.
    """
    retries: RetrySpec | None = None
    """Automatic retries of failed ranks, on Slurm; by default none."""
    executor: Annotated[Executor, Says("a mapping of settings", {"type": "slurm"})] = Field(default_factory=LocalSpec)
    """Where the ranks run."""


class StageDefaults(SiteDefaults):
    """Keys that a file sets for all of its stages, and that each stage can override."""

    tasks: Literal["auto"] | Annotated[int, Field(ge=1, le=MOST)] = 1
    """Number of ranks that divide the work. `auto`: one for each shard."""
    bytes_per_task: Bytes | None = None
    """About how many bytes of input each rank gets: `2GB`, `2GiB`, or a number of bytes. The number of ranks follows
    from it, as with `tasks: auto`. It implies `shard_by: bytes` unless that is set. A shard is never divided."""
    shard_by: ShardBy = "count"
    """How shards are assigned to ranks. `count`: round robin; `bytes`: each rank gets about as many bytes."""
    commit: Literal["rank", "shard"] = "rank"
    """When outputs are committed. `rank`: all outputs of a rank together, when it is done; `shard`: each shard's
    outputs as soon as it is done, so that a stopped rank resumes there. `shard` needs `{stem}` in every writer's
    filename."""


class PublishSpec(Model):
    """A data set of the Hugging Face Hub, to which outputs are published with the token in HF_TOKEN, or of a login."""

    example: ClassVar[dict[str, Any]] = {"repo": "user/name"}

    repo: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}$"),
        Says("a data set, user/name", "user/name"),
    ]
    """The data set: `user/name`, or `organisation/name`. It is created if there is none."""
    path: str = ""
    """The folder in the data set; by default its top."""
    private: bool = True
    """Whether a data set that is created is private."""
    revision: str = "main"
    """The branch, which is created if there is none."""

    @field_validator("path")
    @classmethod
    def _below_the_top(cls, value: str) -> str:
        if {"..", "."} & set(value.split("/")) or value.startswith(("/", ".git/")):
            raise ValueError("give a folder below the top of the data set, such as data/train")
        return value


class StageSpec(StageDefaults):
    """One stage: a pipeline, and how to run it."""

    @model_validator(mode="before")
    @classmethod
    def _spread_below_a_limit(cls, value: Any) -> Any:
        limits = ("backend_limit", "metadata_limit")
        if isinstance(value, dict) and any(value.get(key) is not None for key in limits):
            return {"start_policy": "spread", **value}
        return value

    @model_validator(mode="before")
    @classmethod
    def _sized_by_its_input(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "sizing" in value:
            return value
        tasks, size = value.get("tasks"), value.get("bytes_per_task")
        if size is None:
            return {**value, "tasks": 1, "sizing": "undecided"} if tasks == "auto" else value
        if tasks not in (None, "auto"):
            raise ValueError(
                f"bytes_per_task decides the number of ranks, and tasks is {tasks!r}: leave one of the two out"
            )
        return {"shard_by": "bytes", **value, "tasks": 1, "sizing": "undecided"}

    name: Name
    """The stage's name."""
    tasks: Annotated[
        int,
        Field(ge=1, le=MOST),
        WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": MOST}]}),
    ] = 1
    """Number of ranks that divide the work. `auto`: one for each shard."""
    sizing: SkipJsonSchema[Literal["given", "undecided", "decided"]] = "given"
    """Who gives the number of ranks: the user, or the input when it is listed. `tasks` is 1 while it is undecided."""
    first_shards: SkipJsonSchema[int | None] = None
    """In a rehearsal: the number of shards, from the first on, that the stage reads."""
    depends: Annotated[tuple[Annotated[str, Says("the name of a stage")], ...], Says("a list of stages")] = ()
    """Stages of which every rank must be done before this stage starts."""
    uses: Annotated[tuple[Annotated[str, Says("the name of a stage with blocks")], ...], Says("a list of stages")] = ()
    """Stages with `blocks` whose servers this stage uses. They run beside it, and end when all stages that use them are
    done, or have failed for good."""
    pipeline: Pipeline
    """The steps; the first reads, the last usually writes."""
    blocks: BlocksSpec | None = None
    """Servers that host a model's transformer blocks, in place of a pipeline."""
    publish: PublishSpec | None = None
    """Where the outputs are published once all ranks are done, in one commit: a data set of the Hugging Face Hub."""

    @property
    def ranks_dealt(self) -> int:
        """The number of ranks of a job for which the plan evens out the load; 1 if it treats ranks one by one."""
        return getattr(self.executor, "ranks_per_job", 1) if self.shard_by == "bytes" else 1

    @model_validator(mode="after")
    def _blocks_alone(self) -> StageSpec:
        if self.blocks is None:
            return self
        if [step.use for step in self.pipeline] != [HOST_STEP]:
            raise ValueError("a stage has `blocks` or a `pipeline`, not both")
        if self.uses:
            raise ValueError("servers of blocks use no other servers: leave `uses` out")
        for key in ("ranks_per_job", "ranks_at_once", "nodes_per_job", "nodes_per_task"):
            if getattr(self.executor, key, 1) != 1:
                raise ValueError(f"each server is its own job, on one node: leave executor.{key} out")
        if isinstance(self.executor, SlurmSpec) and self.blocks.host != "simulated":
            check_memory(self.executor)
        if self.executor.type == "local" and self.executor.workers < self.blocks.servers:
            raise ValueError(
                f"executor.workers is {self.executor.workers}, but {counted(self.blocks.servers, 'server')} must run at"
                " once: leave it out"
            )
        return self


def check_memory(executor: SlurmSpec) -> None:
    """Raise ValueError when servers with GPUs request no memory of the node: weights pass through it."""
    has_gpus = executor.gpus_per_task or any(option in executor.sbatch for option in GPU_OPTIONS)
    has_memory = executor.mem_per_cpu_gb or any(option in executor.sbatch for option in MEMORY_OPTIONS)
    if has_gpus and not has_memory:
        raise ValueError(
            "executor.mem_per_cpu_gb is missing: a server's blocks pass through the memory of its node on their way to"
            " the GPU, and a partition's default is often too small for them; set it, such as to 8 (GiB a processor)"
        )


Stages = Annotated[
    tuple[StageSpec, ...],
    Field(min_length=1),
    Says("a list of stages", [{"name": "clean", "pipeline": [{"read_jsonl": {"path": "input"}}]}]),
]

#: Files of the run directory: a stage's folder cannot have these names, nor begin with the last.
TAKEN = ("run.json", "local.log", "lock", "lock.takeover")


class StorageSpec(Model):
    """How all stages of a run access remote storage."""

    storage_options: Annotated[
        dict[str, Annotated[dict[str, Any], Says("a mapping of options")]],
        Says("a mapping of options for each protocol", {"s3": {"endpoint_url": "https://..."}}),
    ] = {}
    """fsspec options per protocol: `{s3: {endpoint_url: ...}}`. Write secrets as ${NAME}. `engine` selects the S3
    client: auto, obstore or s3fs."""
    retry_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 600.0
    """Seconds for which a request is retried that the storage throttled, rejected for the moment, or cut off."""
    read_ahead_mb: NonNegativeInt = 64
    """MB of remote input that a task fetches into memory ahead of its reader; 0: none, by one request at a time."""

    @field_validator("storage_options", mode="before")
    @classmethod
    def _below_their_protocol(cls, value: Any) -> Any:
        flat = (
            [key for key, item in value.items() if isinstance(item, (str, int, float))]
            if isinstance(value, dict)
            else []
        )
        if flat:
            raise ValueError(f"{flat[0]} is an option, not a protocol; put it below its protocol, such as s3")
        return value

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
    stages: Stages
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

    def with_stages(self, changed: Iterable[StageSpec]) -> RunSpec:
        """A copy of the run in which these stages take the place of those with their names."""
        stages = {stage.name: stage for stage in (*self.stages, *changed)}
        return self.model_copy(update={"stages": tuple(stages.values())})

    def sized_as(self, before: RunSpec) -> RunSpec:
        """A copy in which stages whose number of ranks is undecided have the number of an earlier launch, if any."""
        old = {stage.name: stage.tasks for stage in before.stages if stage.sizing != "undecided"}
        undecided = (stage for stage in self.stages if stage.sizing == "undecided" and stage.name in old)
        sizes = ((stage, {"tasks": old[stage.name], "sizing": "decided"}) for stage in undecided)
        return self.with_stages(stage.model_copy(update=size) for stage, size in sizes)

    def of_profile(self, stage: str, setting: str) -> bool:
        """Whether a setting of a stage has the value of a profile."""
        origin = self.origins.get(f"stages.{stage}.{setting}") or self.origins.get(setting, "")
        return origin.startswith("profile ")

    def chosen(self, name: str | None) -> list[StageSpec]:
        """All stages, or only the one of this name. Raises StaggerError when there is no such stage."""
        names = [stage.name for stage in self.stages]
        if name is not None and name not in names:
            raise StaggerError(f"There is no stage {name!r}; {nearest(name, names)}")
        return list(self.stages) if name is None else [self.stage(name)]

    def only(self, name: str | None, option: str = "--stage") -> StageSpec:
        """The one stage whose ranks a command names. Raises StaggerError when there are several and `name` is None.

        `option` is how the command takes the name.
        """
        stages = self.chosen(name)
        if len(stages) > 1:
            raise StaggerError(
                f"The run has several stages; choose one with {option}: {', '.join(stage.name for stage in stages)}."
            )
        return stages[0]

    @model_validator(mode="after")
    def _shared_on_a_file_system(self) -> RunSpec:
        if self.shared and not is_local(self.run_dir):
            raise WrongKey(
                ("shared",), "a store has no groups; leave this key out, and give the team access to the bucket"
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

    def users_of(self, name: str) -> list[StageSpec]:
        """The stages that use the servers of stage `name`."""
        return [stage for stage in self.stages if name in stage.uses]

    def ahead_of(self, name: str) -> set[str]:
        """The stages that a stage waits for: those it depends on, and those that their swarms depend on, and so on."""
        found: set[str] = set()
        waiting = [name, *self.stage(name).uses]
        while waiting:
            new = set(self.stage(waiting.pop()).depends) - found
            found |= new
            waiting += new
        return found

    @model_validator(mode="after")
    def _uses_swarms(self) -> RunSpec:
        names = {stage.name: stage for stage in self.stages}
        for stage in self.stages:
            for name in stage.uses:
                if name not in names:
                    raise ValueError(f"stage {stage.name!r} uses {name!r}, and there is no such stage")
                check_use(self, stage, names[name])
        return self


def check_use(spec: RunSpec, user: StageSpec, swarm: StageSpec) -> None:
    """Raise ValueError when a stage cannot use the servers of another."""
    says = f"stage {user.name!r} uses {swarm.name!r}"
    if swarm.blocks is None:
        raise ValueError(f"{says}, which has no `blocks`; to wait until a stage is done, write `depends`")
    if swarm.name in spec.ahead_of(user.name):
        raise ValueError(f"{says} and waits for its end, but {swarm.name!r} ends after it: keep one of the two")
    if user.name in spec.ahead_of(swarm.name):
        raise ValueError(f"{says}, which waits for the end of {user.name!r}: keep one of the two")
    if user.executor.type != swarm.executor.type:
        raise ValueError(
            f"{says}, and one of them runs on Slurm and the other on this machine: give both the same executor"
        )
    if hosted := too_few(swarm.blocks):
        raise ValueError(f"{says}, {hosted}")
    if swarm.blocks.serve_for is not None:
        raise ValueError(f"{says}, whose servers stay until that is done: leave blocks.serve_for of {swarm.name!r} out")


class PipelineFile(StageDefaults, WholeRun):
    """A stagger pipeline file. If it has `stages`, its own stage keys are defaults for each of them."""

    name: Name
    """Name of the run, and of its stage if the file has no `stages`."""
    run_dir: RunDir
    """Where the run keeps its records: a local or shared folder, or s3://..."""
    vars: Annotated[dict[str, Any], Says("a mapping of names and values", {"output": "/data/out"})] = {}
    """Named values of any type, which `${vars.NAME}` stands for anywhere in the file."""
    pipeline: Pipeline | None = None
    """The steps; the first reads, the last usually writes."""
    blocks: BlocksSpec | None = None
    """Servers that host a model's transformer blocks, in place of a pipeline."""
    publish: PublishSpec | None = None
    """Where the outputs are published once all ranks are done, in one commit: a data set of the Hugging Face Hub."""
    stages: Stages | None = None
    """Several stages, each with a name, a pipeline, and the stages that it depends on."""


#: Keys of a file that apply to the whole run. All others belong to a stage, or are defaults for stages.
RUN_KEYS = ("name", "run_dir", "vars", "stages", *WholeRun.model_fields)
