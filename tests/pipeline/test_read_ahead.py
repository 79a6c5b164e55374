"""Reading ahead keeps the order, stays below the limit, and raises errors where they occurred."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from signal import Signals

import pytest

from stagger.errors import Interrupted
from stagger.pipeline import Shard
from stagger.pipeline.read_ahead import ReadAhead
from stagger.storage.storage import Storage
from tests.conftest import until


class Pieces(Storage):
    """A storage whose files consist of 10-byte pieces. `sent` counts the bytes read from it."""

    def __init__(self, broken: str = "") -> None:
        super().__init__()
        self.sent = 0
        self.broken = broken
        self.closed = threading.Event()

    def stream(self, path: str, size: int, version: str = "") -> Iterator[bytes]:
        try:
            for start in range(0, size, 10):
                if path == self.broken and start >= size // 2:
                    raise ConnectionResetError(path)
                piece = f"{path[-1]}{start:09d}".encode()[: size - start]
                self.sent += len(piece)
                yield piece
        finally:
            self.closed.set()


def ahead(storage: Storage, sizes: dict[str, int], limit: int) -> ReadAhead:
    return ReadAhead(
        storage, [Shard(name, size) for name, size in sizes.items()], lambda s: f"mem://{s.name}", lambda: limit
    )


def test_shards_come_whole_and_in_order() -> None:
    reader = ahead(Pieces(), {"a": 95, "b": 0, "c": 30}, 25)
    assert [b"".join(reader.shard(index)) for index in range(3)] == [
        b"".join(b"a%09d" % i for i in range(0, 95, 10))[:95],
        b"",
        b"c000000000c000000010c000000020",
    ]


def test_no_more_is_held_than_the_limit_and_it_runs_on_into_the_next_shard() -> None:
    storage = Pieces()
    reader = ahead(storage, {"a": 20, "b": 1000}, 100)
    pieces = reader.shard(0)
    until(lambda: storage.sent == 110, "the queue to be full")  # 100 bytes are queued, and the thread holds one piece.
    assert next(pieces) == b"a000000000"
    until(lambda: storage.sent == 120, "one more piece to be fetched")
    reader.close()
    assert storage.sent == 120


def test_a_piece_larger_than_the_limit_still_comes() -> None:
    reader = ahead(Pieces(), {"a": 40}, 1)
    assert len(b"".join(reader.shard(0))) == 40


def test_an_error_is_raised_where_it_happened() -> None:
    reader = ahead(Pieces(broken="mem://b"), {"a": 50, "b": 100, "c": 10}, 1000)
    assert len(b"".join(reader.shard(0))) == 50
    pieces = reader.shard(1)
    assert [len(next(pieces)) for _ in range(5)] == [10] * 5
    with pytest.raises(ConnectionResetError):
        next(pieces)


def test_closing_stops_the_fetching() -> None:
    storage = Pieces()
    reader = ahead(storage, {"a": 10**6}, 50)
    next(reader.shard(0))
    reader.close()
    assert storage.closed.wait(60)
    assert storage.sent < 200


def test_a_reader_that_waits_for_input_can_be_stopped() -> None:
    class Stuck(Storage):
        def stream(self, path: str, size: int, version: str = "") -> Iterator[bytes]:
            release.wait(60)
            yield b""

    def stop() -> None:
        raise Interrupted(Signals.SIGTERM)

    release = threading.Event()
    storage = Stuck()
    storage.check = stop
    with pytest.raises(Interrupted):
        next(ahead(storage, {"a": 10}, 50).shard(0))
    release.set()


def test_a_shard_that_is_left_in_the_middle_gives_nothing_to_the_next() -> None:
    storage = Pieces()
    reader = ahead(storage, {"a": 10**6, "b": 0, "c": 50, "d": 30}, 100)
    assert next(reader.shard(0)) == b"a000000000"
    assert b"".join(reader.shard(2)) == b"".join(b"c%09d" % i for i in range(0, 50, 10))
    assert len(b"".join(reader.shard(3))) == 30
    assert storage.sent < 1000  # The rest of the first shard is not fetched.
