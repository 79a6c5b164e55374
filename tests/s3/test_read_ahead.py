"""Many requests in flight on a store with faults: the same bytes as one after another, and no request too many."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from signal import Signals
from typing import Any

import pytest

from stagger.errors import BadInput, Interrupted, StorageError
from stagger.pipeline import Shard
from stagger.pipeline.task_context import TaskContext
from stagger.storage.storage import Storage
from tests.conftest import until
from tests.kit.s3_server import S3Server
from tests.s3.conftest import THREE_IN_TEN, put, some_bytes

LARGE = 20 * 10**6  # Three ranges.


def stop() -> None:
    raise Interrupted(Signals.SIGTERM)


def stored(storage: Storage, folder: str, sizes: list[int]) -> list[Shard]:
    """Shards of these sizes, written unless they are there."""
    shards = []
    for number, size in enumerate(sizes):
        path = f"s3://data/{folder}/{number:03d}"
        shards.append(Shard(path, *(storage.entry(path) or put(storage, path, some_bytes(size)))[1:]))
    return shards


def context(storage: Storage, shards: list[Shard], megabytes: int = 64, **options: Any) -> TaskContext:
    return TaskContext(storage, 0, 1, shards, "tag", read_ahead_bytes=megabytes * 10**6, **options)


def read(task: TaskContext, shard: Shard) -> bytes:
    return b"".join(task.stream(shard, lambda shard: shard.name))


def gets(s3: S3Server) -> list[tuple[str, str]]:
    """(key, range) of each answered GET."""
    return [(key, asked) for kind, key, asked, status in s3.log() if kind == "GetObject" and status in (200, 206)]


@pytest.mark.parametrize("megabytes", [64, 1])
def test_with_three_requests_in_ten_failing_the_bytes_are_those_that_were_stored(
    storage: Storage, s3: S3Server, megabytes: int
) -> None:
    sizes = [*range(0, 600_000, 20_000), LARGE, 5, LARGE + 1, 70_000]
    shards = stored(storage, "faults", sizes)
    s3.set_faults(**THREE_IN_TEN, seed=3)
    task = context(storage, shards, megabytes)
    for shard, size in zip(shards, sizes, strict=True):
        assert (read(task, shard) if size else b"") == some_bytes(size)[:size]
    assert sum(storage.retried()["requests"].values()) > 10


def test_each_small_shard_is_one_get_and_each_range_of_a_large_one(storage: Storage, s3: S3Server) -> None:
    shards = stored(storage, "counts", [*[50_000] * 60, LARGE])
    s3.set_faults(latency=0.02)
    s3.reset()
    task = context(storage, shards)
    assert [len(read(task, shard)) for shard in shards] == [*[50_000] * 60, LARGE]
    counts = Counter(key for key, _ in gets(s3))
    large = counts.pop("counts/060")
    assert (large, set(counts.values()), len(counts)) == (3, {1}, 60)
    assert sorted(asked for key, asked in gets(s3) if key == "counts/060") == [
        "bytes=0-6666666",
        "bytes=13333334-",
        "bytes=6666667-13333333",
    ]
    assert s3.stats()["requests"] == {"GetObject": 63}
    assert s3.stats()["connections"]["peak"] > 4


def test_without_a_read_ahead_each_shard_is_one_request_after_another(storage: Storage, s3: S3Server) -> None:
    shards = stored(storage, "counts", [*[50_000] * 60, LARGE])
    s3.reset()
    task = context(storage, shards, 0)
    assert [len(read(task, shard)) for shard in shards] == [*[50_000] * 60, LARGE]
    assert gets(s3) == [(shard.name.removeprefix("s3://data/"), "") for shard in shards]


def test_with_a_small_share_of_a_limit_a_task_has_one_request_in_flight(storage: Storage, s3: S3Server) -> None:
    shards = stored(storage, "counts", [*[50_000] * 60, LARGE])
    s3.reset()
    task = context(storage, shards, request_share=0.001)
    assert [len(read(task, shard)) for shard in shards] == [*[50_000] * 60, LARGE]
    counts = Counter(key for key, _ in gets(s3))
    assert set(counts.values()) == {1}
    assert [key for key, _ in gets(s3)] == [shard.name.removeprefix("s3://data/") for shard in shards]


def test_a_large_object_that_is_replaced_while_its_ranges_are_read_is_noticed(storage: Storage, s3: S3Server) -> None:
    (shard,) = stored(storage, f"replaced-{id(storage)}", [100 * 10**6])
    task = context(storage, [shard], 20)
    pieces = task.stream(shard, lambda shard: shard.name)
    next(pieces)
    put(storage, shard.name, some_bytes(100 * 10**6 - 1) + b"x")
    with pytest.raises(BadInput, match="has been replaced since the plan was made"):
        list(pieces)
    task.close()


@pytest.mark.parametrize("lie", ["get-range", "get-whole"])
def test_a_range_that_is_answered_with_other_bytes_is_asked_for_again(storage: Storage, s3: S3Server, lie: str) -> None:
    (shard,) = stored(storage, "lies", [LARGE])
    s3.set_faults(lie=lie, lies=1, only=["GetObject"])
    assert read(context(storage, [shard]), shard) == some_bytes(LARGE)
    assert storage.retried()["requests"]


def test_a_missing_or_forbidden_shard_stops_the_requests_for_those_after_it(storage: Storage, s3: S3Server) -> None:
    shards = stored(storage, "denied", [1000] * 200)
    s3.set_faults(deny="denied/")
    s3.reset()
    task = context(storage, shards)
    with pytest.raises(StorageError, match="Denied"):
        read(task, shards[0])
    task.close()
    assert len(s3.log()) <= 2


def test_a_reader_that_ends_early_leaves_neither_threads_nor_requests(storage: Storage, s3: S3Server) -> None:
    shards = stored(storage, "early", [2_000_000] * 40)
    storage.remote(shards[0].name)
    read(context(storage, shards[:1]), shards[0])  # Whatever threads the engine itself keeps have started.
    before = set(threading.enumerate())
    s3.reset()
    task = context(storage, shards, 16)
    for shard in shards[:3]:
        next(task.stream(shard, lambda shard: shard.name))
    task.close()
    until(lambda: not [t for t in threading.enumerate() if t not in before and "_run" in t.name], "the threads to end")
    assert len(s3.log()) <= 3 + 8  # What 16 MB hold beyond the shards that were read.


def test_a_task_that_is_told_to_stop_does_so_while_requests_hang(storage: Storage, s3: S3Server) -> None:
    name = f"hang-{uuid.uuid4()}"  # Requests of a reader that was closed with the other engine may still come.
    shards = stored(storage, name, [1000] * 4)
    s3.set_faults(hold=1, prefix=f"{name}/000")  # The request for the second shard may come first.
    storage.check = stop
    task = context(storage, shards)
    with pytest.raises(Interrupted):
        read(task, shards[0])
    task.close()
    s3.release()
