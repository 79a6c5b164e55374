"""The records of attempts in the run directory. Tasks write them, and import this module only if they read one."""

from __future__ import annotations

from typing import Any, NamedTuple, TypedDict

from stagger.pipeline.statistics import Statistics


class _RemovedBy(TypedDict, total=False):
    removed_by: int


class OutputRecord(_RemovedBy):
    """One committed file: its path, its size in bytes, its number of records, and its checksum (`storage.Output`).

    `removed_by` is the number of the step, from 1 on, whose removed documents it holds, if it does; 0 if an exclusion
    writer of datatrove wrote them.
    """

    path: str
    bytes: int
    records: int
    digest: str


class BadRecords(TypedDict):
    """Skipped records: their number by kind, and the first few in full."""

    skipped: dict[str, int]
    examples: list[dict[str, Any]]


class Retried(TypedDict):
    """Retried requests: their number by kind of fault, and the seconds waited before the retries."""

    requests: dict[str, int]
    waited_s: float


class StepRecord(Statistics):
    """One step: the records that left it, the seconds spent in it alone, and what it counted and measured, if any."""

    name: str
    records: int
    seconds: float


class GpuUse(TypedDict):
    """What an attempt used of its GPUs, in samples: of memory in MiB, the most on one of them, and what that one has.

    `busy` is the mean share of time in which a GPU computed anything (NVML, nvmlUtilization_t.gpu), over all of them.
    """

    peak_mib: int
    total_mib: int
    busy: float


class AttemptRecord(TypedDict):
    """Where and when an attempt ran. Times are in seconds since the epoch; `cpu_s` in CPU seconds, memory in MiB.

    Both with child processes: pages that these share with the task count in each.
    """

    attempt: str
    launch: int
    restart: int
    job: str
    host: str
    pid: int
    start_policy: str
    window_s: int
    delay_s: float
    script_started: float
    started: float
    ended: float
    cpu_s: float
    peak_rss_mb: int
    retried: Retried


class _Notes(TypedDict, total=False):
    left_out: dict[str, int]
    dropped: dict[str, int]
    counts: dict[str, int]
    notes: dict[str, Any]
    gpus: GpuUse
    pages: list[str]


class Completion(AttemptRecord, _Notes):
    """completions/<rank>.json; with `commit: shard` also progress/<rank>.json, for the first `shards` shards.

    `left_out` counts by reason the records that the reader left out, `dropped` those that steps dropped, and `counts`
    is what steps counted; `notes` holds the notes of steps, and `gpus` what NVML told. Each of these is there only if
    there is any. The other keys are always present.
    """

    rank: int
    world_size: int
    stage: str
    fingerprint: str
    first_read: float | None
    shards: int
    bytes_in: int
    records_in: int
    records_out: int
    bytes_out: int
    outputs: list[OutputRecord]
    bad_records: BadRecords
    steps: list[StepRecord]


class Batch(NamedTuple):
    """Some ranks, what identifies the contents of their completion records (0 where that is unknown), these records,
    and the fields that all of them have: key -> the value in each.
    """

    ranks: list[int]
    identities: list[int]
    records: list[Completion]
    columns: dict[str, tuple[Any, ...]]


class Failure(TypedDict, total=False):
    """failures/<rank>.<attempt>.json. Always has `kind` and `error`; has `signal` if a signal stopped the attempt.

    `where` is the innermost line of the user's code that the error passed through: `steps.py:14`, or empty.
    """

    rank: int
    kind: str
    error: str
    traceback: str
    step: str | None
    where: str
    signal: str
    attempt: str
    launch: int
    job: str
    host: str
    ended: float


class ClaimedFile(TypedDict):
    """A file that an attempt is about to give its final path: `pending` and `version` as in `storage.Output`."""

    path: str
    pending: str
    version: str


class _Release(TypedDict, total=False):
    cleared: bool


class CommitClaim(_Release):
    """commits/<rank>.<turn>.json. `time` is in seconds since the epoch; `record` is the completion or progress record.

    With `commit: shard`, `files` are those of the latest shard; the progress record holds those of the shards before.
    `cleared` means that no attempt has made this claim, but `launch --fresh`: all outputs of the rank are gone.
    """

    attempt: str
    job: str
    host: str
    pid: int
    time: float
    files: list[ClaimedFile]
    record: ClaimedFile
