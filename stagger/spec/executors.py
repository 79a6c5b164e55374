"""Every setting of the executors in a pipeline file."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from stagger.spec.base import Amount, Model
from stagger.storage.storage import absolute

#: Options of sbatch that decide which ranks run and where their output goes, and what to set instead.
RESERVED_OPTIONS = {
    "array": "; the throttle is `workers`",
    "job-name": "; it is made from `name`",
    "output": "; set `log_dir`",
    "error": "; set `log_dir`",
    "chdir": "",
    "parsable": "",
    "wrap": "",
    "wait": "; use stagger launch --wait",
    "open-mode": "",
}

#: How a job can end that `retries` may run again: as Slurm calls it, or FAILED for whatever its own code raised.
EndState = Literal["OUT_OF_MEMORY", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "FAILED"]

#: What Slurm takes as a time limit: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].
SLURM_TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}")


def absolute_path(path: str | None) -> str | None:
    """A path as it is meant where the run is launched, for a retry from anywhere."""
    return None if path is None else absolute(path)


class LocalSpec(Model):
    """Run on this machine."""

    type: Literal["local"] = "local"
    workers: PositiveInt = Field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Ranks at once, each in a process of its own; by default the number of processors."""


class EnvSpec(Model):
    """What a job sets up after its delay and before Python starts."""

    modules: tuple[str, ...] = ()
    """Modules to load."""
    venv: str | None = None
    """A virtual environment's folder, or its activate script."""
    conda: str | None = None
    """A conda environment's name or folder."""
    setup: tuple[str, ...] = ()
    """Shell commands, run as they are."""
    container: str | None = None
    """An apptainer image: the task runs in it, with its own `python`, in which stagger is installed."""
    container_args: tuple[str, ...] = ()
    """Further arguments of `apptainer exec`, such as `--nv` or `--bind=/data`."""

    _from_here = field_validator("venv")(absolute_path)

    @field_validator("container")
    @classmethod
    def _image(cls, value: str | None) -> str | None:
        return value if value is None or "://" in value else absolute(value)

    @model_validator(mode="after")
    def _one_python(self) -> EnvSpec:
        named = [name for name in ("venv", "conda", "container") if getattr(self, name)]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} each bring a Python of their own; keep one of them")
        if self.container_args and not self.container:
            raise ValueError("container_args are for a container, and there is none")
        return self


class SlurmSpec(Model):
    """Run as Slurm job arrays."""

    type: Literal["slurm"]
    partition: str | None = None
    """The partition; by default the cluster's."""
    time: str | None = None
    """Time limit of a job, as Slurm writes it: minutes, H:MM:SS or D-HH:MM:SS."""
    cpus_per_task: PositiveInt = 1
    """Processors of a job."""
    mem_per_cpu_gb: Amount | None = None
    """Memory per processor, in GiB; by default the partition's."""
    gpus_per_task: NonNegativeInt = 0
    """GPUs of a job."""
    workers: PositiveInt | None = None
    """The throttle: at most so many jobs at once, over the whole run."""
    ranks_per_job: PositiveInt = 1
    """Ranks that one job runs, one after another."""
    nodes_per_task: PositiveInt = 1
    """Nodes of a job. On several, srun starts each rank once on every node; the first one's outputs count."""
    max_requeues: NonNegativeInt = 5
    """How often a job that is preempted, or reaches its time limit after it got something done, is queued again."""
    qos: str | None = None
    """The quality of service."""
    account: str | None = None
    """The account to charge."""
    env: EnvSpec = EnvSpec()
    """What a job sets up before Python starts."""
    sbatch: dict[str, str | int | float | bool] = {}
    """Any further option of sbatch by its long name: `{constraint: a100, exclusive: true}`."""
    template: str | None = None
    """A job script template of your own; start from slurm_templates/array.sbatch.j2."""
    log_dir: str | None = None
    """A folder that all nodes share, for what jobs print before and after their ranks run; by default within the run
    directory, or in ./slurm_logs when that is on an object store."""

    _from_here = field_validator("template", "log_dir")(absolute_path)

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
        for option in value:
            if not re.fullmatch(r"[a-z][a-z0-9-]*", option):
                raise ValueError(f"{option!r} is not a long option of sbatch; write it without its dashes")
            if option in RESERVED_OPTIONS:
                raise ValueError(f"{option!r} is set by stagger itself{RESERVED_OPTIONS[option]}")
        return value


class RetrySpec(Model):
    """Running failed ranks again, with more of what they ran out of: decided by the job that ends the stage."""

    max: PositiveInt = 2
    """How often a rank is run again."""
    memory_factor: Annotated[float, Field(ge=1)] = 2.0
    """Each time after OUT_OF_MEMORY, so many times the memory."""
    time_factor: Annotated[float, Field(ge=1)] = 1.5
    """Each time after TIMEOUT, so many times the time limit."""
    on: tuple[EndState, ...] = ("OUT_OF_MEMORY", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "FAILED")
    """Which ends are tried again. A rank whose own code fails with the same error twice is not, in any case."""


Executor = Annotated[LocalSpec | SlurmSpec, Field(discriminator="type")]

#: `type` in a pipeline file -> its settings.
EXECUTORS: dict[str, type[BaseModel]] = {"local": LocalSpec, "slurm": SlurmSpec}
