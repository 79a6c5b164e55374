"""The run directory: plans, launches, completions and failures, as files that people can read.

    run.json                        the resolved pipeline and settings, schema version, fingerprints
    lock                            the process that is launching the run, or running it locally
    <stage>/plan/<fingerprint>      the steps and shards of every rank (`stagger.rundir.plan_file`)
    <stage>/launches/<n>/           launch.json, the job scripts, Slurm's own output
    <stage>/completions/<rank>.json written last by the task; its existence alone makes a rank done
    <stage>/completions.index       these records in columns, for the next look (`stagger.rundir.completion_index`)
    <stage>/progress/<rank>.json    the shards that a rank has committed so far, with `commit: shard`
    <stage>/progress/<rank>.<attempt>.<number>.json    a page of it: the outputs of its earlier shards
    <stage>/commits/<rank>.<turn>.json  claims of attempts that began to commit (`stagger.rundir.commit_claims`)
    <stage>/failures/<rank>.<attempt>.json
    <stage>/logs/<rank>/<attempt>.log
    <stage>/uploads/                notes of multipart uploads under way (`stagger.task.upload_notes`)
    <stage>/registry/               the records and claims of block servers (`stagger.blocks.server.registry`)
    <stage>/stats.json, report.html

A run of one stage has no `<stage>` folder: its files lie directly in the run directory.
"""

from __future__ import annotations

import contextlib
import gc
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import compress
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol, cast

import orjson

from stagger.errors import StaggerError, counted
from stagger.ranks import pad
from stagger.storage.storage import Storage, is_local, join

if TYPE_CHECKING:
    from stagger.rundir.records import Batch, Completion, Failure

#: Keys that a record must have, in the order of checking: those of `Completion`, and of a failure. Without a
#: fingerprint a completion may be any run's.
COMPLETION_KEYS = (
    "fingerprint", "attempt", "bad_records", "bytes_in", "bytes_out", "cpu_s", "delay_s", "ended", "first_read", "host",
    "job", "launch", "outputs", "peak_rss_mb", "pid", "rank", "records_in", "records_out", "restart", "retried",
    "script_started", "shards", "stage", "start_policy", "started", "steps", "window_s", "world_size",
)  # fmt: skip
FAILURE_KEYS = ("kind", "error")


def encode(value: Any) -> bytes:
    """The JSON encoding of all records in the run directory, indented for people."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def decode(data: bytes, path: str, *keys: str) -> dict[str, Any]:
    """The JSON object in `data`. Raises StaggerError naming `path` when it is damaged or lacks one of `keys`."""
    try:
        record = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise damaged(path, str(error)) from error
    if not isinstance(record, dict):
        raise damaged(path, "not a JSON object")
    if not all(map(record.__contains__, keys)):
        raise damaged(path, f"it has no {next(key for key in keys if key not in record)!r}")
    return record


def check_record(value: Any, kind: Any, path: str, key: str = "") -> None:
    """Check a record, or the value at `key` of one, against its type. Raises StaggerError naming `path` and the key."""
    from stagger.rundir.record_types import check  # Imported late: most tasks read no record of this kind.

    try:
        check(value, kind, key)
    except ValueError as error:
        raise damaged(path, str(error)) from None


def read_fields(storage: Storage, path: str, kind: Any) -> dict[str, Any] | None:
    """The values of a record that is a dataclass, without keys that it does not know; None if there is no record.

    Raises StaggerError when it is damaged.
    """
    try:
        content = decode(storage.read(path), path)
    except FileNotFoundError:
        return None
    check_record(content, kind, path)
    return {name: content[name] for name in kind.__dataclass_fields__ if name in content}


def check_progress(record: dict[str, Any], shards: int, steps: int, path: str) -> None:
    """Check a progress record against the numbers of shards and steps in its rank's plan. Raises StaggerError."""
    from stagger.rundir.records import Completion  # Imported late, as below: most tasks read no record.

    check_record(record, Completion, path)
    if record["shards"] > shards or len(record["steps"]) != steps:
        raise damaged(
            path,
            f"it has {counted(record['shards'], 'shard')} and {counted(len(record['steps']), 'step')}, the plan"
            f" {shards} and {steps}",
        )


#: Completion records whose bytes are in memory at once: it must keep many connections busy, on an object store.
READ_TOGETHER = 2000

#: Decoded records that are in memory at once, where they are not kept: few enough for a processor's cache.
DECODED_TOGETHER = 100

_fields_of = itemgetter(*COMPLETION_KEYS)

#: The types that each field had in completion records that were found right.
_right: list[set[type]] = [set() for _ in COMPLETION_KEYS]

#: The fields that all completion records have, in the order of COMPLETION_KEYS: key -> the value in each record.
Columns = dict[str, tuple[Any, ...]]


def columns_of(records: Iterable[Completion]) -> Columns:
    """The fields of some records. Raises KeyError when one is missing."""
    return dict(zip(COMPLETION_KEYS, zip(*map(_fields_of, records), strict=True), strict=True))


def decode_completions(data: Sequence[bytes], path_of: Callable[[int], str]) -> tuple[list[Completion], Columns]:
    """The completion records in `data`. `path_of` gives the path of the record with a number, for messages.

    Raises StaggerError when a field is missing or has a wrong type. Checks records in depth only if their fields have
    types that no earlier one's had: there are up to a million records.
    """
    with contextlib.suppress(ValueError, KeyError, TypeError):  # Damaged: the checks below say how.
        records = list(map(orjson.loads, data))
        columns = columns_of(records)
        if all(known.issuperset(map(type, column)) for known, column in zip(_right, columns.values(), strict=True)):
            return records, columns
    records = [_checked(one, path_of(number)) for number, one in enumerate(data)]
    return records, columns_of(records)


def _checked(data: bytes, path: str) -> Completion:
    """The completion record in `data`, checked in depth."""
    from stagger.rundir.records import Completion

    record = decode(data, path, *COMPLETION_KEYS)
    check_record(record, Completion, path)
    for known, value in zip(_right, _fields_of(record), strict=True):
        known.add(type(value))
    return cast("Completion", record)


def decode_failure(data: bytes, path: str) -> Failure:
    """The failure record in `data`. Raises StaggerError when it is damaged."""
    from stagger.rundir.records import Failure

    record = decode(data, path, *FAILURE_KEYS)
    check_record(record, Failure, path)
    return cast("Failure", record)


def damaged(path: str, reason: str) -> StaggerError:
    return StaggerError(f"{path} is damaged ({reason}); restore or remove it.")


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Pause garbage collection: with a million live objects it costs a third of the time and frees nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def attempt_name(launch: int, restart: int) -> str:
    """The name of a rank's attempt: `3` in the third launch, `3r1` after Slurm has restarted its job once.

    A task knows both numbers, so finding its own name costs no request.
    """
    return f"{launch}r{restart}" if restart else f"{launch}"


def attempt_order(name: str) -> tuple[int, int]:
    """(launch, restart) of an attempt's name, to sort attempts by time. Any other file name sorts first.

    >>> attempt_order("3"), attempt_order("3r1"), attempt_order("3 (copy)")
    ((3, 0), (3, 1), (0, 0))
    """
    launch, _, restart = name.partition("r")
    if not launch.isdecimal() or not (restart or "0").isdecimal():
        return 0, 0
    return int(launch), int(restart or 0)


class Remembering(Protocol):
    """What remembers completion records in another form."""

    def forget(self, ranks: set[int]) -> None: ...


class StageFolder:
    """The paths and records of one stage's files. `path` is the run directory itself for an only stage."""

    def __init__(self, storage: Storage, path: str) -> None:
        self.storage = storage
        self.path = path
        self.table: Remembering | None = None  # What `completion_index` has read.
        self._completions: dict[int, Completion] = {}
        self._completions_folder = join(path, "completions")
        self.unkept: set[int] = set()  # Ranks whose records were read, now or before, but not kept.

    @property
    def tag(self) -> str:
        """A part of temporary file names that tells this stage's from other runs' in the same folder."""
        return f"{zlib.crc32(self.path.encode()):08x}"

    def plan(self, fingerprint: str) -> str:
        return join(self.path, "plan", fingerprint)

    def pickle(self, launch: int) -> str:
        return join(self.launch(launch), "pipeline.pkl")

    def launch(self, number: int) -> str:
        return join(self.path, "launches", str(number))

    def completion(self, rank: int) -> str:
        return f"{self._completions_folder}/{pad(rank)}.json"  # Made for each of a million ranks.

    def progress(self, rank: int) -> str:
        return join(self.path, "progress", f"{pad(rank)}.json")

    def page(self, rank: int, attempt: str, number: int) -> str:
        return join(self.path, "progress", f"{pad(rank)}.{attempt}.{number}.json")

    def failure(self, rank: int, attempt: str) -> str:
        return join(self.path, "failures", f"{pad(rank)}.{attempt}.json")

    def log(self, rank: int, attempt: str) -> str:
        return join(self.path, "logs", pad(rank), f"{attempt}.log")

    def upload(self, rank: int, attempt: str, number: int) -> str:
        return join(self.path, "uploads", f"{pad(rank)}.{attempt}.{number}.json")

    def uploads(self) -> list[str]:
        """The paths of the notes of unfinished multipart uploads. Costs one listing."""
        folder = join(self.path, "uploads")
        return [join(folder, entry.name) for entry in self.storage.list(folder) if entry.name.endswith(".json")]

    def stats(self) -> str:
        return join(self.path, "stats.json")

    def report(self) -> str:
        return join(self.path, "report.html")

    def done(self) -> set[int]:
        """The ranks that have a completion record. Costs one listing."""
        names = self.storage.named(join(self.path, "completions"), "")
        ranks = [name.removesuffix(".json") for name in names if name.endswith(".json")]
        return {int(rank) for rank in ranks if rank.isdecimal()}

    def completions(self, ranks: set[int]) -> list[Completion]:
        """The completion records of `ranks`, ascending by rank. Reads each only once, as they are immutable."""
        with collection_paused():
            for _ in self.reading(ranks.difference(self._completions), keep=True):
                pass
        return [self._completions[rank] for rank in sorted(ranks) if rank in self._completions]

    def reading(self, ranks: set[int], *, keep: bool) -> Iterator[Batch]:
        """The completion records of `ranks`, many at a time: first those that were kept. With `keep`, keeps them all.

        Leaves out those that were removed by hand since the listing.
        """
        from stagger.rundir.records import Batch

        kept = sorted(ranks & self._completions.keys())
        if kept:
            records = [self._completions[rank] for rank in kept]
            yield Batch(kept, [0] * len(kept), records, columns_of(records))
        unread = sorted(ranks.difference(kept))
        together = DECODED_TOGETHER if is_local(self.path) else READ_TOGETHER
        for first in range(0, len(unread), together):
            some = unread[first : first + together]
            contents, identities = self.storage.read_identified(list(map(self.completion, some)))
            data = [one for one in contents if one is not None]
            if len(data) < len(some):
                there = [one is not None for one in contents]
                some, identities = list(compress(some, there)), list(compress(identities, there))
            for start in range(0, len(some), DECODED_TOGETHER):  # Empty if all of them were removed.
                part = slice(start, start + DECODED_TOGETHER)
                yield self._decoded(some[part], identities[part], data[part], keep=keep)

    def _decoded(self, ranks: list[int], identities: list[int], data: list[bytes], *, keep: bool) -> Batch:
        """The records of some ranks, from the contents of their files."""
        from stagger.rundir.records import Batch

        records, columns = decode_completions(data, lambda number: self.completion(ranks[number]))
        if keep:
            self._completions.update(zip(ranks, records, strict=True))
        else:
            self.unkept.update(ranks)
        return Batch(ranks, identities, records, columns)

    def in_memory(self) -> set[int]:
        """The ranks whose completion records were read and kept."""
        return set(self._completions)

    def forget(self, ranks: set[int]) -> None:
        """Forget the completion records of `ranks`, which were removed."""
        for rank in ranks:
            self._completions.pop(rank, None)
        if self.table is not None:
            self.table.forget(ranks)

    @contextlib.contextmanager
    def blaming(self) -> Iterator[None]:
        """Where the block fails over a damaged completion record that was read here: name its file.

        Reading checks only the types of a record's own fields. To check 100,000 records in depth would take seconds.
        """
        try:
            yield
        except (StaggerError, OSError):
            raise
        except Exception:
            from stagger.rundir.records import Completion

            for some in self.reading(self.unkept | self._completions.keys(), keep=False):
                for rank, record in zip(some.ranks, some.records, strict=True):
                    check_record(record, Completion, self.completion(rank))
            raise

    def failed_attempts(self) -> dict[int, list[str]]:
        """Rank -> its failed attempts, latest last, for each rank that ever failed. Costs one listing."""
        attempts: dict[int, list[str]] = {}
        for name in self.storage.named(join(self.path, "failures"), ""):
            rank, _, attempt = name.removesuffix(".json").partition(".")
            if rank.isdecimal():
                attempts.setdefault(int(rank), []).append(attempt)
        for names in attempts.values():
            names.sort(key=attempt_order)
        return attempts

    def failure_records(self, attempts: list[tuple[int, str]]) -> list[Failure | None]:
        """The failure record of each (rank, attempt), or None if there is none."""
        paths = [self.failure(rank, attempt) for rank, attempt in attempts]
        found = zip(paths, self.storage.read_many(paths), strict=True)
        return [None if data is None else decode_failure(data, path) for path, data in found]
