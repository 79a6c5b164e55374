"""One task, top to bottom: its settings and job, its entry, an attempt, its log. Imports no launch, executor or spec.

A launch writes the settings to a file that only its owner can read, and passes the path to each task: everybody on a
machine can read its command lines. (This code is in the package's own file because every task imports it: one more file
would cost each task six file-system calls.)
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from stagger.errors import StaggerError

if TYPE_CHECKING:
    from collections.abc import Callable

#: The variable in which a job's script asks for a crew (`CrewOrder` in crew_order.py). Other jobs lack it.
CREW = "STAGGER_CREW"

#: The last argument of a worker in a Slurm job. That of a local worker is its number.
IN_JOB = "job"


class Superseded(StaggerError):
    """A later attempt of the rank has begun, or has claimed the commit: this one must not commit any more."""


class Committed(Exception):
    """An earlier attempt has committed the whole rank meanwhile."""


@dataclass(frozen=True)
class TaskSettings:
    """Everything that a task needs besides its rank and the plan.

    `storage_options` holds secrets only as `${NAME}`; `cwd` is the folder that the run was launched from; `commit` is
    `rank` or `shard`, the unit in which outputs are committed; `hold_s` is how many seconds a job holds its slot after
    its start; `request_share` is how many requests per second a worker may make beside one in flight (0: any number);
    `cpus` is how many processors a rank has; `shared` is whether a group shares the run; `run_dir` is the run's folder;
    `uses` and `users` are the swarms that the stage uses, and the stages that use it (`Circumstances`); `pickle_path`
    is set only for pipelines of Python objects.
    """

    stage_dir: str
    fingerprint: str
    launch: int
    cwd: str
    import_path: list[str] = field(default_factory=list)
    storage_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    start_policy: str = "uniform"
    window_s: int = 0
    hold_s: int = 0
    commit: str = "rank"
    max_requeues: int = 0
    retry_seconds: float = 600.0
    read_ahead_mb: int = 64
    request_share: float = 0.0
    cpus: int = 1
    shared: bool = False
    run_dir: str = ""
    uses: dict[str, dict[str, Any]] = field(default_factory=dict)
    users: list[str] = field(default_factory=list)
    pickle_path: str = ""
    pickle_sha256: str = ""

    @classmethod
    def of(cls, argument: str, check: Callable[[], None] = lambda: None) -> TaskSettings:
        """The settings that `argument` names (`read_argument`). Raises StaggerError when it cannot be read."""
        return cls.from_json(read_argument(argument, check))

    def to_json(self) -> str:
        return orjson.dumps(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> TaskSettings:
        return cls(**orjson.loads(text))


@dataclass
class Job:
    """Where attempts run: the Slurm job or local process, and its staggered start.

    `delay_s` is the drawn delay in seconds; `script_started` is the time (seconds since the epoch) at which the job
    began to sleep; `process` numbers the processes of a job on several nodes, of which only process 0 commits and
    records; `advanced` is set once the job has completed work that will not be repeated.
    """

    id: str
    restart: int
    delay_s: float
    script_started: float
    process: int = 0
    processes: int = 1
    advanced: bool = False


def read_argument(argument: str, check: Callable[[], None] = lambda: None) -> str:
    """The JSON text of settings. `argument` is the path of their file, or, to run a rank by hand, the text itself.

    Waits for a file that is not visible yet, and calls `check` meanwhile. Raises StaggerError when the file cannot be
    read.
    """
    if argument.startswith("{"):
        return argument
    try:
        return _read(argument)
    except FileNotFoundError as error:
        from stagger.storage.late_files import appears  # Imported late: hardly any task needs it.

        if not appears(argument, check):
            raise _unreadable(error) from None
        return _read(argument)
    except OSError as error:
        raise _unreadable(error) from None


def _read(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY)  # One call to the file system; `open` makes three.
    try:
        return b"".join(iter(lambda: os.read(descriptor, 2**20), b"")).decode()
    finally:
        os.close(descriptor)


def _unreadable(error: OSError) -> StaggerError:
    return StaggerError(f"The task's settings cannot be read: {error}. Every node must see this file.")
