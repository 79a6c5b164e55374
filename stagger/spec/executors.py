"""The settings of executors in a pipeline file."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from stagger.spec.base import Amount, Model, survives_json
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

#: Ends of a job that `retries` can handle: Slurm's state, or FAILED for any error that the job's own code raised.
EndState = Literal["OUT_OF_MEMORY", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "FAILED"]

#: Time limits that Slurm accepts: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].
SLURM_TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}")


def absolute_path(path: str | None) -> str | None:
    """The path made absolute at launch, so that a retry from another folder finds it."""
    return None if path is None else absolute(path)


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


class LocalSpec(Model):
    """Run on this machine."""

    type: Literal["local"] = "local"
    workers: PositiveInt = Field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Number of ranks that run at once, each in its own process; by default the number of processors."""


class EnvSpec(Model):
    """The environment that a job sets up after its delay, before Python starts."""

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
        return value if value is None or "://" in value else absolute(value)

    @model_validator(mode="after")
    def _one_python(self) -> EnvSpec:
        named = [name for name in ("venv", "conda", "container") if getattr(self, name)]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} each bring their own Python; keep one of them")
        if self.container_args and not self.container:
            raise ValueError("container_args is set, but container is not; set container, or leave container_args out")
        return self


class SlurmSpec(Model):
    """Run as Slurm job arrays."""

    type: Literal["slurm"]
    partition: str | None = None
    """The partition; by default the cluster's default partition."""
    time: str | None = None
    """Time limit of a job: minutes, H:MM:SS or D-HH:MM:SS."""
    cpus_per_task: PositiveInt = 1
    """Processors per job."""
    mem_per_cpu_gb: Amount | None = None
    """Memory per processor, in GiB; by default the partition's default."""
    gpus_per_task: NonNegativeInt = 0
    """GPUs per job."""
    workers: PositiveInt | None = None
    """The throttle: maximum number of jobs at once, over the whole run."""
    ranks_per_job: PositiveInt = 1
    """Ranks that one job runs, one after another."""
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
    env: EnvSpec = EnvSpec()
    """The environment that a job sets up before Python starts."""
    sbatch: dict[str, str | int | float | bool] = {}
    """Any other options of sbatch, by their long names: `{constraint: a100, exclusive: true}`."""
    template: str | None = None
    """Your own job script template; start from slurm_templates/array.sbatch.j2."""
    log_dir: str | None = None
    """Folder for the output of jobs before and after their ranks run; all nodes must share it. By default it is in the
    run directory, or ./slurm_logs if the run directory is on an object store."""
    chdir: str = "/"
    """Folder in which Slurm starts a job, before its delay: a shared one is touched by all jobs at once. The ranks run
    in the folder that you launched from."""
    name_prefix: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]*)?$", max_length=100)] = ""
    """What the names of all jobs begin with, where a site or a team has a rule for them."""
    directives: tuple[str, ...] = ()
    """Further lines of the job script after its options, as written: `#BB ...`, `#DW ...`, `#SBATCH --site-option`."""

    _from_here = field_validator("template", "log_dir", "chdir")(absolute_path)

    @field_validator("directives")
    @classmethod
    def _comment_lines(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for line in value:
            check_directive(line)
        return value

    @field_validator("time", mode="before")
    @classmethod
    def _slurm_time(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and not SLURM_TIME.fullmatch(value):
            raise ValueError("not a time that Slurm understands; write minutes, H:MM:SS or D-HH:MM:SS")
        return value

    @field_validator("sbatch")
    @classmethod
    def _long_options(cls, value: dict[str, Any]) -> dict[str, Any]:
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


class RetrySpec(Model):
    """Automatic retries of failed ranks, launched by the end job. Ranks that ran out of memory or time get more."""

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
