"""The launch records of a stage: launches/<n>/launch.json."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar, TypedDict, TypeVar

from stagger.ranks import parse_ranks
from stagger.rundir.stage_folder import StageFolder, check_record, damaged, decode, encode
from stagger.storage.late_files import appears
from stagger.storage.storage import is_local, join


@dataclass(frozen=True)
class Group:
    """Ranks of a launch with the same resources: the pipeline file's, times `memory_scale` and `time_scale`.

    `tries` counts the automatic retries of these ranks: 0 in their first launch.
    """

    ranks: list[int]
    tries: int = 0
    memory_scale: float = 1.0
    time_scale: float = 1.0


@dataclass(frozen=True)
class ArrayRecord:
    """One job array. `job_id` is None until it is submitted; `ranks` is text in the format of `format_ranks`."""

    job_id: str | None
    name: str
    jobs: int
    ranks: str
    throttle: int | None = None
    tries: int = 0
    memory_scale: float = 1.0
    time_scale: float = 1.0

    @cached_property
    def rank_list(self) -> list[int]:
        return parse_ranks(self.ranks)

    def elements(self, ranks_per_job: int) -> list[list[int]]:
        """The ranks of each element of the array."""
        return [self.rank_list[i : i + ranks_per_job] for i in range(0, len(self.rank_list), ranks_per_job)]

    @property
    def group(self) -> Group:
        return Group(self.rank_list, self.tries, self.memory_scale, self.time_scale)


@dataclass(frozen=True)
class EndJobRecord:
    """The end job, which runs when the arrays of a launch have ended. `job_id` is None until it is submitted."""

    job_id: str | None
    name: str


@dataclass(frozen=True)
class LaunchRecord:
    """The fields that local and Slurm launches share.

    `launch` counts the launches of the stage from 1; `time` is in seconds since the epoch; `settings` is the JSON
    text of the tasks' settings (`TaskSettings.to_json`). `undone` means that the run has started over since: the launch
    counts as no try of its ranks, and has no jobs any more.
    """

    executor: ClassVar[str]

    launch: int
    time: float
    ranks: str
    start_policy: str
    window_s: int
    settings: str
    undone: bool = field(default=False, kw_only=True)

    @cached_property
    def rank_list(self) -> list[int]:
        return parse_ranks(self.ranks)

    @property
    def groups(self) -> list[Group]:
        """The ranks, grouped by their resources."""
        return [] if self.undone else [Group(self.rank_list)]

    @property
    def cancelled_list(self) -> list[int]:
        """The ranks that a user cancelled."""
        return []


@dataclass(frozen=True)
class LocalLaunch(LaunchRecord):
    """A launch whose ranks run on `host`, under process `pid` of user `user`."""

    executor = "local"

    host: str
    pid: int
    user: str


@dataclass(frozen=True)
class SlurmLaunch(LaunchRecord):
    """A launch of job arrays and an end job.

    `resources` are the executor's settings; `log_dir` is the folder of the jobs' own output; `user` submitted the jobs
    to `cluster`, which is empty if it is the one that the submitting machine belongs to. (Until Slurm has chosen one,
    it lists the clusters to choose from.) `cancelled` is the reason why the whole launch was cancelled;
    `cancelled_ranks` are the ranks that were cancelled individually. `refused` is why the launch failed: Slurm has none
    of its jobs, and it counts as no try of its ranks. `avoided` are nodes on which the jobs do not run, for several
    ranks failed there before.
    """

    executor = "slurm"

    ranks_per_job: int
    resources: dict[str, Any]
    log_dir: str
    arrays: tuple[ArrayRecord, ...]
    finalize: EndJobRecord
    user: str = ""
    cluster: str = ""
    cancelled: str = ""
    cancelled_ranks: str = ""
    refused: str = ""
    avoided: tuple[str, ...] = ()

    @property
    def groups(self) -> list[Group]:
        return [] if self.refused or self.undone else [array.group for array in self.arrays]

    @property
    def cancelled_list(self) -> list[int]:
        if self.undone:
            return []
        return self.rank_list if self.cancelled else parse_ranks(self.cancelled_ranks)

    @property
    def crews(self) -> int:
        """The most crews of a job, one on each node; 0 if its ranks run one after another."""
        nodes = self.resources.get("nodes_per_job", 1)
        return int(nodes) if nodes > 1 or self.resources.get("ranks_at_once", 1) != 1 else 0

    def submitted(self, name: str, job_id: str, cluster: str = "") -> SlurmLaunch:
        """A copy of the record in which the job called `name` has its id, and the launch its cluster."""
        if name == self.finalize.name:
            return replace(self, finalize=replace(self.finalize, job_id=job_id), cluster=cluster)
        arrays = (replace(array, job_id=job_id) if array.name == name else array for array in self.arrays)
        return replace(self, arrays=tuple(arrays), cluster=cluster)

    @property
    def end_output(self) -> str:
        """The path of Slurm's output file for the end job."""
        return os.path.join(self.log_dir, f"finalize-{self.finalize.job_id}.out")

    def output_of(self, rank: int) -> str | None:
        """The path of Slurm's output file for a rank's job; None for a rank of another launch."""
        for array in self.arrays:
            if rank in array.rank_list:
                index = array.rank_list.index(rank) // self.ranks_per_job
                return os.path.join(self.log_dir, f"{array.job_id}_{index}.out")
        return None

    @property
    def jobs(self) -> tuple[ArrayRecord | EndJobRecord, ...]:
        """The arrays and the end job."""
        return (*self.arrays, self.finalize)


#: `executor` in launch.json -> the type of the record.
RECORDS: dict[str, type[LaunchRecord]] = {record.executor: record for record in (LocalLaunch, SlurmLaunch)}


def read_launches(folder: StageFolder) -> list[LaunchRecord]:
    """All launch records of a stage, oldest first. Raises StaggerError when one is damaged."""
    records: list[LaunchRecord] = []
    while True:
        path = record_path(folder, len(records) + 1)
        try:
            records.append(decode_launch(folder.storage.read(path), path))
        except FileNotFoundError:
            return records


def latest_launch(launches: Sequence[LaunchRecord]) -> SlurmLaunch | None:
    """The latest of a stage's launches whose jobs were submitted; None if that ran on this machine."""
    for launch in reversed(launches):
        if not isinstance(launch, SlurmLaunch) or launch.undone:
            return None
        if not launch.refused:
            return launch
    return None


def wait_for_launch(folder: StageFolder, number: int) -> None:
    """Wait some time for a launch record that must exist, but is not visible here yet."""
    if is_local(path := record_path(folder, number)):
        appears(path)


def write_launch(folder: StageFolder, record: LaunchRecord) -> None:
    folder.storage.write(record_path(folder, record.launch), encode_launch(record))


def record_path(folder: StageFolder, number: int) -> str:
    return join(folder.launch(number), "launch.json")


def encode_launch(record: LaunchRecord) -> bytes:
    """The content of launch.json, without keys of rare events that have not happened."""
    content = {"launch": record.launch, "executor": record.executor, **asdict(record)}
    rare = ("cancelled", "refused", "avoided", "undone")
    return encode({key: value for key, value in content.items() if value or not key.startswith(rare)})


def decode_launch(data: bytes, path: str) -> LaunchRecord:
    """The record in `data`. Raises StaggerError naming `path` and the key that is missing or wrong."""
    content = decode(data, path, "executor")
    if not isinstance(content["executor"], str) or content["executor"] not in RECORDS:
        raise damaged(path, f"executor is {str(content['executor'])[:60]!r}")
    record = from_json(RECORDS[content["executor"]], content, path)
    try:
        record.rank_list, record.groups, record.cancelled_list  # noqa: B018  # Parsed here: errors can name `path`.
    except ValueError as error:
        raise damaged(path, f"ranks: {error}") from error
    if isinstance(record, SlurmLaunch):
        _check_jobs(record, path)
    return record


class Resources(TypedDict, total=False):
    """The resources of a launch that later commands use."""

    cpus_per_task: int
    nodes_per_job: int
    mem_per_cpu_gb: float | None
    time: str | None


def _check_jobs(record: SlurmLaunch, path: str) -> None:
    """Raise StaggerError when the numbers of ranks and jobs contradict each other, or the resources are damaged."""
    check_record(record.resources, Resources, path, "resources")
    if record.ranks_per_job < 1 or record.resources.get("cpus_per_task") == 0:
        raise damaged(path, "ranks_per_job or resources.cpus_per_task is 0")
    for number, array in enumerate(record.arrays):
        if (jobs := -(-len(array.rank_list) // record.ranks_per_job)) != array.jobs:
            raise damaged(path, f"arrays[{number}].jobs is {array.jobs}, but its ranks are those of {jobs}")


Record = TypeVar("Record")


def from_json(record: type[Record], content: Any, path: str) -> Record:
    """Build a record of this type from the JSON object of the file at `path`.

    Raises StaggerError when a key is missing or its value is wrong.
    """
    check_record(content, record, path)
    return _built(record, content)


def _built(record: type[Record], content: dict[str, Any]) -> Record:
    found = {one.name: content[one.name] for one in fields(record) if one.name in content}  # type: ignore[arg-type]
    if "arrays" in found:
        found["arrays"] = tuple(_built(ArrayRecord, array) for array in found["arrays"])
        found["finalize"] = _built(EndJobRecord, found["finalize"])
        found["avoided"] = tuple(found.get("avoided", ()))
    return record(**found)
