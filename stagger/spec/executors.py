"""The settings of executors in a pipeline file."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from stagger.errors import StaggerError, counted
from stagger.spec.base import Amount, Model, Says, survives_json
from stagger.storage.storage import absolute

#: Options of sbatch that stagger sets itself, and the key to set instead. They determine which ranks run, and where
#: their output goes.
RESERVED_OPTIONS = {
    "array": "; the throttle is `workers`",
    "job-name": "; it is made from `name_prefix` and `name`",
    "output": "; set `log_dir`",
    "error": "; set `log_dir`",
    "chdir": "; set `chdir`",
    "parsable": "",
    "wrap": "",
    "wait": "; use stagger launch --wait",
    "open-mode": "",
}

#: The long options of sbatch (sbatch(1) of Slurm 20.11 to 24.11). sbatch takes any unambiguous beginning of them.
SBATCH_OPTIONS = re.findall(
    r"\S+",
    """
    account acctg-freq array autocomplete batch bb bbf bcast begin chdir cluster-constraint clusters comment
    constraint container container-id contiguous core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task
    deadline delay-boot dependency distribution error exclude exclusive export export-file extra extra-node-info
    get-user-env gid gpu-bind gpu-freq gpus gpus-per-node gpus-per-socket gpus-per-task gres gres-flags help
    hint hold ignore-pbs input job-name jobid kill-on-invalid-dep licenses mail-type mail-user mcs-label mem
    mem-bind mem-per-cpu mem-per-gpu mincpus network nice no-bell no-kill no-requeue nodefile nodelist nodes
    ntasks ntasks-per-core ntasks-per-gpu ntasks-per-node ntasks-per-socket ntasks-per-tres oom-kill-step
    open-mode output overcommit oversubscribe parsable partition power prefer priority profile propagate qos
    quiet reboot requeue reservation resv-ports segment share signal sockets-per-node spread-job stepmgr
    switches tasks-per-node test-only thread-spec threads-per-core threads-per-gpu time time-min tmp tres-bind
    tres-per-job tres-per-node tres-per-task uid umask usage use-min-nodes verbose version wait wait-all-nodes
    wckey wrap
    """,
)

#: Options of sbatch that request GPUs, and those that set memory, of which one overrides `mem_per_cpu_gb`.
GPU_OPTIONS = (
    "gres",
    "gpus",
    "gpus-per-node",
    "gpus-per-task",
    "gpus-per-socket",
    "tres-per-job",
    "tres-per-node",
    "tres-per-task",
)
MEMORY_OPTIONS = ("mem", "mem-per-cpu", "mem-per-gpu")

#: Ends of a job that `retries` can handle: Slurm's state, or FAILED for any error that the job's own code raised.
EndState = Literal["OUT_OF_MEMORY", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "FAILED"]

#: Time limits that Slurm accepts: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].
SLURM_TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}")


def absolute_path(path: str | None) -> str | None:
    """The path made absolute at launch, so that a retry from another folder finds it. Raises ValueError for none."""
    try:
        return None if path is None else absolute(path)
    except StaggerError as error:
        raise ValueError(str(error).removesuffix(".")) from None


def long_option(written: str) -> str:
    """The full name of an option of sbatch, of which `written` may be an unambiguous beginning.

    Options that this version does not know, such as those of a cluster's plugins, stay as they are. Raises ValueError
    when `written` is no long option, or the beginning of several.

    >>> long_option("constr"), long_option("wait"), long_option("site-option")
    ('constraint', 'wait', 'site-option')
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]*", written):
        raise ValueError(f"{written!r} is not a long option of sbatch; write it in lower case, without its dashes")
    if written in SBATCH_OPTIONS:
        return written
    meant = [option for option in SBATCH_OPTIONS if option.startswith(written)]
    if len(meant) > 1:
        raise ValueError(f"{written!r} can stand for {', '.join(meant[:4])}; write the option of sbatch in full")
    return meant[0] if meant else written


def check_directive(line: str) -> None:
    """Raise ValueError for a line that bash would run, or that sets an option of sbatch that stagger sets itself.

    >>> check_directive("#DW jobdw capacity=10GB access_mode=striped")
    """
    if not line.startswith("#") or line.startswith("#!"):
        raise ValueError(f"{line!r} is no directive: it must begin with # and the word of its plug-in")
    if any(ord(character) < 32 for character in line):
        raise ValueError(f"{line!r} has a line break or control character; write one directive per item")
    keyword, *words = line.split()
    for word in words if keyword == "#SBATCH" else ():
        if word in ("hetjob", "packjob"):
            raise ValueError(f"{line!r}: the jobs of an array cannot have several components")
        if not word.startswith("-"):
            continue
        if not word.startswith("--"):
            raise ValueError(f"{line!r}: write {word} by its long name")
        option = long_option(word[2:].partition("=")[0])
        if option in RESERVED_OPTIONS:
            raise ValueError(f"{line!r}: {option!r} is set by stagger itself{RESERVED_OPTIONS[option]}")


#: Options of sbatch and their values.
SbatchOptions = Annotated[
    dict[str, Annotated[str | int | float | bool, Says("text, a number, true or false")]],
    Says("a mapping of options of sbatch", {"constraint": "a100", "exclusive": True}),
]

Time = Annotated[str | None, Says("a time limit: minutes, H:MM:SS or D-HH:MM:SS", "12:00:00")]


class LocalSpec(Model):
    """Run on this machine."""

    example: ClassVar[dict[str, Any]] = {"type": "local", "workers": 4}

    type: Literal["local"] = "local"
    """The kind of executor."""
    workers: PositiveInt = Field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Number of ranks that run at once, each in its own process; by default the number of processors."""


class EnvSpec(Model):
    """The environment that a job sets up after its delay, before Python starts."""

    example: ClassVar[dict[str, Any]] = {"modules": ["python"], "venv": "/shared/venv"}

    modules: tuple[str, ...] = ()
    """Environment modules to load."""
    venv: str | None = None
    """Folder of a virtual environment, or its activate script."""
    conda: str | None = None
    """Name or folder of a conda environment."""
    setup: tuple[str, ...] = ()
    """Shell commands, run as written."""
    container: str | None = None
    """An apptainer image. The task runs in it with the image's `python`, in which stagger must be installed."""
    container_args: tuple[str, ...] = ()
    """More arguments for `apptainer exec`, such as `--nv` or `--bind=/data`."""

    _from_here = field_validator("venv")(absolute_path)

    @field_validator("container")
    @classmethod
    def _image(cls, value: str | None) -> str | None:
        return value if value is None or "://" in value else absolute_path(value)

    @model_validator(mode="after")
    def _one_python(self) -> EnvSpec:
        named = [name for name in ("venv", "conda", "container") if getattr(self, name)]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} each bring their own Python; keep one of them")
        if self.container_args and not self.container:
            raise ValueError("container_args is set, but container is not; set container, or leave container_args out")
        return self


def slurm_time(value: Any) -> Any:
    """A time limit as text. Raises ValueError when Slurm would not understand it."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, (float, bool)) or (isinstance(value, str) and not SLURM_TIME.fullmatch(value)):
        raise ValueError(f"{str(value)!r} is not a time that Slurm understands; write minutes, H:MM:SS or D-HH:MM:SS")
    return value


def long_options(value: dict[str, Any]) -> dict[str, Any]:
    """Options of sbatch by their full names. Raises ValueError when stagger sets one itself, or one is given twice."""
    found: dict[str, Any] = {}
    for written, setting in value.items():
        option = long_option(written)
        if option in RESERVED_OPTIONS:
            short = f" is short for {option!r}, which" if option != written else ""
            raise ValueError(f"{written!r}{short} is set by stagger itself{RESERVED_OPTIONS[option]}")
        if option in found:
            raise ValueError(f"{option!r} is given twice, once as {written!r}")
        found[option] = setting
    if not survives_json(found):
        raise ValueError("infinity is no value of an option")
    return found


class EndSpec(Model):
    """The end job of a stage. It inherits from the stage where it runs; each key replaces what it would inherit."""

    example: ClassVar[dict[str, Any]] = {"partition": "cpu", "time": "30"}

    partition: str | None = None
    """The partition; by default the stage's."""
    account: str | None = None
    """Account to charge; by default the stage's."""
    qos: str | None = None
    """Quality of service; by default the stage's."""
    time: Time = None
    """Time limit; by default 30 minutes, or the stage's if that is shorter."""
    mem_gb: Amount | None = None
    """Memory, in GiB; by default 2, and 1 more for each 100,000 ranks of the stage."""
    cpus_per_task: PositiveInt = 1
    """Processors."""
    gpus: NonNegativeInt | None = None
    """GPUs; by default one if the stage uses GPUs and the end job runs in its partition, else none."""
    sbatch: SbatchOptions = {}
    """Any other options of sbatch, by their long names. `false` leaves out an option that the end job would have."""

    _time = field_validator("time", mode="before")(slurm_time)

    @field_validator("sbatch")
    @classmethod
    def _long_options(cls, value: dict[str, Any]) -> dict[str, Any]:
        found = long_options(value)
        if "dependency" in found:
            raise ValueError("'dependency' is set by stagger itself; the end job depends on the stage's arrays")
        return found


class SlurmSpec(Model):
    """Run as Slurm job arrays."""

    example: ClassVar[dict[str, Any]] = {"type": "slurm", "partition": "cpu"}

    type: Literal["slurm"]
    """The kind of executor."""
    partition: str | None = None
    """The partition; by default the cluster's default partition."""
    time: Time = None
    """Time limit of a job: minutes, H:MM:SS or D-HH:MM:SS."""
    cpus_per_task: PositiveInt = 1
    """Processors of a rank. A job has them once, or `ranks_at_once` times on each node. With two, codecs use both."""
    mem_per_cpu_gb: Amount | None = None
    """Memory per processor, in GiB; by default the partition's default."""
    gpus_per_task: NonNegativeInt = 0
    """GPUs of a rank. A job has them once, or `ranks_at_once` times on each node."""
    workers: PositiveInt | None = None
    """The throttle: maximum number of jobs at once, over the whole run."""
    ranks_per_job: PositiveInt = 1
    """Ranks that one job runs, `ranks_at_once` of them at once on each of its nodes."""
    ranks_at_once: PositiveInt | Literal["auto"] = 1
    """Ranks that one node of a job runs beside one another. `auto`: whole nodes (`--exclusive --mem=0`), with as many
    ranks at once as their processors, memory and GPUs allow."""
    nodes_per_job: PositiveInt = 1
    """Nodes per job, among which the job's ranks are divided."""
    nodes_per_task: PositiveInt = 1
    """Nodes per job. On several nodes, srun starts each rank once per node; only the first node commits outputs."""
    max_requeues: NonNegativeInt = 5
    """Maximum number of times that a job is requeued: after preemption, or at its time limit if it made progress."""
    avoid_nodes: bool = True
    """Whether retries exclude nodes on which several ranks failed while ranks succeeded on others."""
    qos: str | None = None
    """Quality of service."""
    account: str | None = None
    """Account to charge."""
    env: EnvSpec = EnvSpec.model_construct()
    """The environment that a job sets up before Python starts."""
    sbatch: SbatchOptions = {}
    """Any other options of sbatch, by their long names: `{constraint: a100, exclusive: true}`."""
    end: EndSpec = EndSpec.model_construct()
    """The end job, which runs when the stage's arrays have ended."""
    nodes_submit: bool = True
    """Whether jobs may submit jobs. If not, `launch --wait` or the next command submits what the end job would."""
    template: str | None = None
    """Your own job script template; start from slurm_templates/array.sbatch.j2."""
    log_dir: str | None = None
    """Folder for the output of jobs before and after their ranks run; all nodes must share it. By default it is in the
    run directory, or ./slurm_logs if the run directory is on an object store."""
    chdir: str = "/"
    """Folder in which Slurm starts a job, before its delay: a shared one is touched by all jobs at once. The ranks run
    in the folder that you launched from."""
    name_prefix: Annotated[
        str,
        Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]*)?$", max_length=100),
        Says("at most 100 letters, digits and _ . - that begin with a letter or a digit"),
    ] = ""
    """What the names of all jobs begin with, where a site or a team has a rule for them."""
    directives: tuple[str, ...] = ()
    """Further lines of the job script after its options, as written: `#BB ...`, `#DW ...`, `#SBATCH --site-option`."""

    _from_here = field_validator("template", "log_dir", "chdir")(absolute_path)

    @property
    def time_limit(self) -> str | None:
        """The time limit of a job, also if it is set as an option of sbatch; None for the partition's."""
        limit = self.sbatch.get("time", self.time)
        return None if limit is None else str(limit)

    @property
    def has_crew(self) -> bool:
        """Whether a job's ranks run in worker processes, beside one another."""
        return self.ranks_at_once != 1 or self.nodes_per_job > 1

    @property
    def most_at_once(self) -> int:
        """The most ranks that a job runs at once. For `auto` it is unknown before the job starts: all of them."""
        if self.ranks_at_once == "auto":
            return self.ranks_per_job
        return min(self.ranks_per_job, self.ranks_at_once * self.nodes_per_job)

    @model_validator(mode="after")
    def _enough_ranks(self) -> SlurmSpec:
        if not self.has_crew:
            return self
        if self.nodes_per_task > 1:
            key = "nodes_per_job" if self.nodes_per_job > 1 else "ranks_at_once"
            raise ValueError(
                f"nodes_per_task is for ranks on several nodes, but {key} for several ranks on a node: keep one"
            )
        least = (2 if self.ranks_at_once == "auto" else self.ranks_at_once) * self.nodes_per_job
        if self.ranks_per_job < least:
            raise ValueError(
                f"ranks_per_job is {self.ranks_per_job}, but a job can run {counted(least, 'rank')} at once"
                f" (ranks_at_once, nodes_per_job): set ranks_per_job to {least} or more"
            )
        return self

    @field_validator("directives")
    @classmethod
    def _comment_lines(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for line in value:
            check_directive(line)
        return value

    _time = field_validator("time", mode="before")(slurm_time)
    _long_options = field_validator("sbatch")(long_options)


class RetrySpec(Model):
    """Automatic retries of failed ranks, launched by the end job. Ranks that ran out of memory or time get more."""

    example: ClassVar[dict[str, Any]] = {"max": 2}

    max: PositiveInt = 2
    """Maximum number of retries per rank."""
    memory_factor: Annotated[float, Field(ge=1, le=100)] = 2.0
    """Factor by which each retry after OUT_OF_MEMORY multiplies the memory."""
    time_factor: Annotated[float, Field(ge=1, le=100)] = 1.5
    """Factor by which each retry after TIMEOUT multiplies the time limit."""
    on: tuple[EndState, ...] = ("OUT_OF_MEMORY", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "FAILED")
    """Ends that are retried. A rank whose own code raises the same error twice is never retried."""


Executor = Annotated[LocalSpec | SlurmSpec, Field(discriminator="type")]

#: `type` in a pipeline file -> model of its settings.
EXECUTORS: dict[str, type[BaseModel]] = {"local": LocalSpec, "slurm": SlurmSpec}
