"""Parses the output of Slurm's commands. Pure functions."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from stagger.slurm.states import whole_name

#: Slurm's own defaults (slurm.conf(5)).
DEFAULT_MAX_ARRAY_SIZE = 1001
DEFAULT_MAX_JOB_COUNT = 10_000


@dataclass(frozen=True)
class Limits:
    """The cluster's limits. If Slurm cannot be queried, they are Slurm's defaults, and `assumed` holds the reason.

    `def_mem_per_cpu` is in MiB; None if jobs get a whole node's memory, or if the partition decides. `enforced` is
    whether Slurm enforces the limits of associations; `private` is whether users see only their own jobs (PrivateData).
    """

    max_array_size: int = DEFAULT_MAX_ARRAY_SIZE
    max_job_count: int = DEFAULT_MAX_JOB_COUNT
    def_mem_per_cpu: int | None = None
    version: str = ""
    enforced: bool = False
    private: bool = False
    assumed: str = ""


def parse_config(text: str) -> Limits:
    r"""Parse `scontrol show config`. `max_array_tasks` in SchedulerParameters can lower the array size.

    >>> parse_config("MaxArraySize = 1001\nSchedulerParameters = bf_continue,max_array_tasks=500").max_array_size
    500
    """
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals:
            values.setdefault(key.strip(), value.strip())
    lowered = re.search(r"\bmax_array_tasks=(\d+)", values.get("SchedulerParameters", ""))
    largest = _number(values.get("MaxArraySize"), DEFAULT_MAX_ARRAY_SIZE)
    memory = values.get("DefMemPerCPU", "")
    enforced = set(values.get("AccountingStorageEnforce", "").split(","))
    return Limits(
        max_array_size=min(largest, int(lowered[1])) if lowered else largest,
        max_job_count=_number(values.get("MaxJobCount"), DEFAULT_MAX_JOB_COUNT),
        def_mem_per_cpu=int(memory) if memory.isdigit() else None,
        version=values.get("SLURM_VERSION", ""),
        enforced=not enforced.isdisjoint(("limits", "safe", "all")),
        private="jobs" in values.get("PrivateData", "").split(","),
    )


def _number(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isdigit() else default


@dataclass(frozen=True)
class QueuedJob:
    """An array element, or a single job, that Slurm still knows; it started `seconds` ago.

    `index` is None for a single job, and for the rest of an array that was cancelled before it started. `submitted` is
    in seconds since the epoch; a requeued job was submitted anew. `command` is the path of its script.
    """

    job_id: str
    index: int | None
    state: str
    name: str
    seconds: int | None = None
    reason: str = ""
    submitted: float | None = None
    command: str = ""
    cluster: str = ""

    def is_called(self, name: str) -> bool:
        """Whether the job was submitted under this unique name, even if it was renamed since: its script has it too."""
        return name in f"{self.name}|{self.command}"


#: The fields of `parse_queue`. Name and command come last: only they may contain a bar.
QUEUE_FORMAT = "%F|%K|%T|%M|%V|%r|%j|%o"


def parse_queue(text: str, cluster: str = "") -> list[QueuedJob]:
    r"""Parse squeue's output in QUEUE_FORMAT, of one cluster, or of several, each after a line with its name.

    >>> jobs = parse_queue("CLUSTER: east\n12|3|RUNNING|1:02|N/A|None|a-1|/logs/a-1.sh\n")
    >>> jobs[0].job_id, jobs[0].index, jobs[0].seconds, jobs[0].cluster
    ('12', 3, 62, 'east')
    """
    jobs: list[QueuedJob] = []
    for line in text.splitlines():
        job, bar, rest = line.strip().partition("|")
        if line.startswith("CLUSTER: "):
            cluster = line.split()[1]
        if not bar or not job.isdigit():  # A heading.
            continue
        indices, state, used, submitted, reason, called = rest.split("|", 5)
        name, _, command = called.rpartition("|")
        seconds, when = parse_time(used), parse_date(submitted)
        jobs += [
            QueuedJob(job, index, state, name, seconds, reason, when, command, cluster) for index in listed(indices)
        ]
    return jobs


def parse_date(text: str) -> float | None:
    """Seconds since the epoch of a local time like `2026-11-29T10:45:28`; None for `N/A`."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


@dataclass(frozen=True)
class Partition:
    """A partition: whether jobs can start in it, its time limit in Slurm's format, its number of nodes."""

    name: str
    available: bool
    time_limit: str
    nodes: int


def parse_partitions(text: str) -> list[Partition]:
    r"""Parse `sinfo --format=%R|%a|%l|%D`: one line per partition and limit.

    >>> parse_partitions("cpu|up|infinite|4\ngpu|inact|1-00:00:00|2\n")[1]
    Partition(name='gpu', available=False, time_limit='1-00:00:00', nodes=2)
    """
    rows = (line.strip().split("|") for line in text.splitlines() if line.count("|") == 3)
    return [Partition(name, state == "up", limit, int(nodes)) for name, state, limit, nodes in rows]


#: The number of the last signal that has a name (signal(7)); those above it are real-time signals.
LAST_SIGNAL = 31


#: The nodes of a job that never had any.
NO_NODES = "None assigned"


class Accounted(NamedTuple):
    """A job in accounting: its state, the signal that ended its script (0 if none did), and whether it had nodes."""

    state: str
    signal: int = 0
    placed: bool = True


def parse_accounting(text: str) -> dict[tuple[str, int | None], Accounted]:
    r"""Parse sacct's output: (job id, index) -> state and signal. After a requeue, the last of several records counts.

    The index is None for a single job, and for the rest of an array that was cancelled before it started.

    >>> parse_accounting("12_3|FAILED|0:9|n1\n12_[5-6%2]|PENDING|0:0|None assigned\n")[("12", 3)]
    Accounted(state='FAILED', signal=9, placed=True)
    """
    states: dict[tuple[str, int | None], Accounted] = {}
    for line in text.splitlines():
        number, bar, rest = line.partition("|")
        if not bar or "." in number:  # A step of a job.
            continue
        array, _, indices = number.partition("_")
        state, _, after = rest.partition("|")
        exit_code, _, nodes = after.partition("|")
        end = accounted(state, exit_code, not nodes.startswith(NO_NODES))
        if indices.isdigit():  # Most lines, of up to a million.
            states[array, int(indices)] = end
        else:
            states |= {(array, index): end for index in listed(indices)}
    return states


@functools.cache
def accounted(state: str, exit_code: str, placed: bool) -> Accounted:
    """The end of a job, from sacct's columns, such as `CANCELLED by 1000` and `0:15`. Many jobs have the same."""
    return Accounted(whole_name(state.partition(" ")[0].rstrip("+")), signal_of(exit_code), placed)


def signal_of(exit_code: str) -> int:
    """The signal in sacct's exit code, `<status>:<signal>`; 0 if there is none. A shell adds 128 to one of its child.

    A status such as 255 is an error of the program itself.

    >>> signal_of("0:9"), signal_of("139:0"), signal_of("255:0"), signal_of("1:0"), signal_of("")
    (9, 11, 0, 0, 0)
    """
    status, _, signal = exit_code.partition(":")
    if signal.isdigit() and int(signal):
        return int(signal)
    number = int(status) - 128 if status.isdigit() else 0
    return number if 0 < number <= LAST_SIGNAL else 0


def listed(text: str) -> Sequence[int | None]:
    """The indices of `expand_indices`; None alone if there are none."""
    return expand_indices(text) or (None,)


def expand_indices(text: str) -> list[int]:
    """The array indices in the part of a job id after the underscore, or in squeue's `%K`; none for a single job.

    >>> expand_indices("[3,5-9:2%4]"), expand_indices("7"), expand_indices("N/A")
    ([3, 5, 7, 9], [7], [])
    """
    if text.isdigit():
        return [int(text)]
    indices: list[int] = []
    for part in text.strip("[]").partition("%")[0].split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if match:
            first, last, step = match.groups()
            indices.extend(range(int(first), int(last or first) + 1, int(step or 1)))
    return indices


def parse_submitted(text: str) -> tuple[str, str] | None:
    r"""The job id and the cluster in sbatch's output, with or without --parsable; None if it has none.

    The cluster is empty if it is the one that this machine belongs to.

    >>> parse_submitted("12;east\n"), parse_submitted("Submitted batch job 13 on cluster east"), parse_submitted("no")
    (('12', 'east'), ('13', 'east'), None)
    """
    found = re.search(r"Submitted batch job (\d+)(?: on cluster (\S+))?", text) or re.search(
        r"^(\d+)(?:;(\S+))?\s*$", text, re.MULTILINE
    )
    return (found[1], found[2] or "") if found else None


def parse_time(text: str) -> int | None:
    """Seconds of a time in Slurm's format: minutes, M:S, H:M:S, D-H[:M[:S]]; None for UNLIMITED etc.

    >>> [parse_time(text) for text in ("90", "1:30", "1:30:00", "2-12", "1-00:00:01", "UNLIMITED")]
    [5400, 90, 5400, 216000, 86401, None]
    """
    days, dash, rest = text.strip().rpartition("-")
    parts = rest.split(":")
    if not all(part.isdigit() for part in [*parts, *([days] if dash else [])]) or len(parts) > 3:
        return None
    numbers = [int(part) for part in parts]
    if dash:  # Days and hours; minutes and seconds are optional.
        numbers = [*numbers, 0, 0][:3]
    elif len(numbers) == 1:  # Minutes.
        numbers = [0, numbers[0], 0]
    hours, minutes, seconds = [0, *numbers][-3:]
    return int(days or 0) * 86_400 + hours * 3600 + minutes * 60 + seconds


def format_time(seconds: int) -> str:
    """Format seconds as `D-HH:MM:SS`, which every version of Slurm accepts.

    >>> format_time(90_061)
    '1-01:01:01'
    """
    days, rest = divmod(seconds, 86_400)
    return f"{days}-{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"


def parse_memory(text: str) -> int:
    """MiB of an amount of memory in Slurm's format: a number of MiB, or a number with K, M, G or T. Raises ValueError
    for anything else.

    >>> parse_memory("4G"), parse_memory("500"), parse_memory("2048K")
    (4096, 500, 2)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?[cn]?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is not an amount of memory")
    return round(float(match[1]) * {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}[match[2].upper()])
