"""Reading ahead keeps the order, stays below its limit, and raises errors where they occurred."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from signal import Signals
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagger.errors import Interrupted
from stagger.pipeline import Shard, fetches, read_ahead
from stagger.pipeline.read_ahead import ReadAhead
from stagger.storage import S3_CONNECTIONS
from stagger.storage.storage import Storage
from tests.conftest import until

MB = 2**20


class Remote(Storage):
    """A storage of objects whose bytes tell shard and offset, in pieces of 10 bytes.

    `asked` are the requested spans, `sent` the bytes read. A request of which `gate` returns False waits for `release`.
    `broken` maps a shard to the offset at which reading it fails.
    """

    def __init__(self, broken: dict[str, int] | None = None, gate: Callable[[str], bool] = lambda path: True) -> None:
        super().__init__()
        self.broken = broken or {}
        self.gate = gate
        self.release = threading.Event()
        self.asked: list[tuple[str, tuple[int, int]]] = []
        self.sent = 0
        self.open = self.most_open = 0
        self.lock = threading.Lock()

    def remote(self, path: str) -> Any:
        return self

    def stream_part(
        self, path: str, size: int, version: str, span: tuple[int, int], waiting: Callable[[], None]
    ) -> Iterator[bytes]:
        name = path[-1]
        with self.lock:
            self.asked.append((name, span))
            self.open += 1
            self.most_open = max(self.open, self.most_open)
        try:
            if not self.gate(name):
                assert self.release.wait(60)
            for start in range(*span, 10):
                end = min(start + 10, span[1])
                if end > self.broken.get(name, end):
                    raise ConnectionResetError(path)
                with self.lock:
                    self.sent += end - start
                yield content(name, start, end)
        finally:
            with self.lock:
                self.open -= 1


def content(name: str, start: int, end: int) -> bytes:
    return b"".join(b"%s%09d" % (name.encode(), tens) for tens in range(start // 10, -(-end // 10)))[
        start % 10 : start % 10 + end - start
    ]


def ahead(
    storage: Storage, sizes: dict[str, int], limit: int, share: float = 0.0, protocol: str = "s3", version: str = "1"
) -> ReadAhead:
    shards = [Shard(name, size, version) for name, size in sizes.items()]
    return ReadAhead(storage, shards, lambda s: f"{protocol}://b/{s.name}", lambda: limit, limit, share)


def whole(reader: ReadAhead, index: int) -> bytes:
    return b"".join(reader.shard(index))


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards above 100 bytes are large, and fetched in ranges of up to 50."""
    make_ranges_small(monkeypatch)


def make_ranges_small(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fetches, "RANGE_BYTES", 50)
    patch.setattr(fetches, "LARGE_BYTES", 100)
    patch.setattr(read_ahead, "LARGE_BYTES", 100)


def test_shards_come_whole_and_in_order() -> None:
    reader = ahead(Remote(), {"a": 95, "b": 0, "c": 30}, 25)
    assert [whole(reader, index) for index in range(3)] == [content("a", 0, 95), b"", content("c", 0, 30)]


@settings(deadline=None, max_examples=150)
@given(
    sizes=st.lists(st.integers(0, 400), min_size=1, max_size=12),
    limit=st.integers(1, 600),
    share=st.sampled_from([0.0, 1e4, 1e6]),
    version=st.sampled_from(["", "1"]),
    protocol=st.sampled_from(["s3", "gs"]),
    read=st.lists(st.integers(0, 60), max_size=12),
)
def test_whatever_is_read_is_what_was_stored_and_no_request_is_made_twice(
    sizes: list[int], limit: int, share: float, version: str, protocol: str, read: list[int]
) -> None:
    """Shards are read whole, in part (`read` pieces), or not at all."""
    with pytest.MonkeyPatch.context() as patch:
        make_ranges_small(patch)
        names = {chr(97 + number): size for number, size in enumerate(sizes)}
        storage = Remote()
        reader = ahead(storage, names, limit, share, protocol, version)
        for index, (name, size) in enumerate(names.items()):
            pieces = read[index] if index < len(read) else None
            if pieces is None:
                assert whole(reader, index) == content(name, 0, size)
            else:
                assert content(name, 0, size).startswith(b"".join(itertools.islice(reader.shard(index), pieces)))
        reader.close()
        until(lambda: not storage.open, "all requests to end")
        assert len(set(storage.asked)) == len(storage.asked)
        assert storage.most_open <= (S3_CONNECTIONS if protocol == "s3" else 1) + len(read)
        split = protocol == "s3" and version and limit >= 100
        for name, size in names.items():
            spans = [span for of, span in storage.asked if of == name]
            whole_spans = list(fetches.spans(size, 50 if split else 0))
            assert spans == sorted(spans)
            assert set(spans) <= set(whole_spans)
            if len(read) <= list(names).index(name):
                assert spans == whole_spans


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=8),
    limit=st.integers(1, 600),
    broken=st.integers(0, 7),
    at=st.integers(0, 390),
)
def test_a_failure_is_raised_after_the_bytes_before_it(sizes: list[int], limit: int, broken: int, at: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        make_ranges_small(patch)
        names = {chr(97 + number): size for number, size in enumerate(sizes)}
        fails = chr(97 + broken % len(sizes))
        at = min(at, names[fails] - 1)
        storage = Remote({fails: at})
        reader = ahead(storage, names, limit)
        for index, (name, size) in enumerate(names.items()):
            got: list[bytes] = []
            try:
                got.extend(reader.shard(index))
                assert name != fails
                assert b"".join(got) == content(name, 0, size)
            except ConnectionResetError:
                assert name == fails
                assert at - 10 < len(b"".join(got)) <= at
                assert b"".join(got) == content(name, 0, len(b"".join(got)))
                break
        reader.close()


def test_small_shards_are_in_flight_together_and_each_is_one_request() -> None:
    storage = Remote(gate=lambda name: False)
    reader = ahead(storage, {chr(97 + number): 50 for number in range(24)}, 10**6)
    first = threading.Thread(target=whole, args=(reader, 0))
    first.start()
    until(lambda: storage.open == 2, "the first wait to double the requests in flight")
    storage.release.set()
    first.join()
    assert [len(whole(reader, index)) for index in range(1, 24)] == [50] * 23
    assert len(storage.asked) == 24


def test_a_reader_that_waits_once_has_two_requests_in_flight_and_two_shards_waiting() -> None:
    storage = Remote(gate=lambda name: storage.release.is_set())
    reader = ahead(storage, {chr(97 + number): 30 for number in range(26)}, 10**6)
    first = reader.shard(0)
    waiting = threading.Thread(target=next, args=(first,))
    waiting.start()
    until(lambda: storage.open == 2, "the first wait to double the requests in flight")
    storage.release.set()
    waiting.join()
    until(lambda: storage.sent == 4 * 30, "four shards to be fetched")
    assert len(list(first)) == 2
    next(reader.shard(1))
    until(lambda: storage.sent == 5 * 30, "another shard to be fetched when one is read")
    assert storage.most_open <= 2
    reader.close()
    assert [name for name, _ in storage.asked] == list("abcde")


def test_a_large_shard_comes_in_ranges_in_flight_together(small_ranges: None) -> None:
    storage = Remote(gate=lambda name: storage.release.is_set())
    reader = ahead(storage, {"a": 400}, 400)
    pieces = reader.shard(0)
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.extend(pieces))
    thread.start()
    until(lambda: storage.open == 2, "two ranges in flight")
    storage.release.set()
    thread.join()
    assert b"".join(got) == content("a", 0, 400)
    assert sorted(storage.asked) == [("a", (start, start + 50)) for start in range(0, 400, 50)]


@pytest.mark.parametrize(("share", "version", "protocol"), [(1.0, "1", "s3"), (0.0, "", "s3"), (0.0, "1", "gs")])
def test_a_large_shard_is_one_request_where_ranges_cannot_or_need_not_be(
    small_ranges: None, share: float, version: str, protocol: str
) -> None:
    """Without a version nothing holds ranges together; with a small share of the limit, ranges would exceed it."""
    storage = Remote()
    reader = ahead(storage, {"a": 400, "b": 400}, 150, share, protocol, version)
    assert [whole(reader, 0), whole(reader, 1)] == [content("a", 0, 400), content("b", 0, 400)]
    assert storage.asked == [("a", (0, 400)), ("b", (0, 400))]


def test_no_more_is_held_than_the_limit_and_it_runs_on_into_the_next_shard(small_ranges: None) -> None:
    storage = Remote()
    reader = ahead(storage, {"a": 20, "b": 1000}, 100, protocol="gs")
    pieces = reader.shard(0)
    assert next(pieces) == content("a", 0, 10)
    until(lambda: storage.sent == 120, "the queue to be full")  # 100 bytes are queued, and a thread holds one piece.
    assert next(pieces) == content("a", 10, 20)
    until(lambda: storage.sent == 130, "one more piece to be fetched")
    reader.close()
    until(lambda: not storage.open, "the request to end")
    assert storage.sent == 130


def test_no_request_begins_that_the_limit_has_no_room_for() -> None:
    storage = Remote()
    reader = ahead(storage, dict.fromkeys("abcdef", 40), 100)
    pieces = reader.shard(0)
    assert next(pieces) == content("a", 0, 10)
    until(lambda: storage.sent == 80, "two shards to be fetched")
    assert len(list(pieces)) == 3
    until(lambda: storage.sent == 120, "the next to be fetched once there is room")
    assert [name for name, _ in storage.asked] == ["a", "b", "c"]
    reader.close()


def test_a_piece_larger_than_the_limit_still_comes() -> None:
    assert len(whole(ahead(Remote(), {"a": 40}, 1), 0)) == 40


def test_an_error_stops_later_requests_until_the_reader_has_passed_it() -> None:
    storage = Remote(broken={"b": 50})
    reader = ahead(storage, {"a": 50, "b": 100, "c": 90, "d": 90}, 150)
    assert len(whole(reader, 0)) == 50
    until(lambda: reader._failed == 1, "the request to break off: until then, what is read makes room for the next one")
    pieces = reader.shard(1)
    assert [len(next(pieces)) for _ in range(5)] == [10] * 5
    with pytest.raises(ConnectionResetError):
        next(pieces)
    assert [name for name, _ in storage.asked] == ["a", "b"]
    assert [len(whole(reader, index)) for index in (2, 3)] == [90, 90]


def test_closing_ends_requests_and_threads(small_ranges: None) -> None:
    storage = Remote()
    before = threading.active_count()
    reader = ahead(storage, {"a": 10**6, "b": 10**6}, 1000)
    next(reader.shard(0))
    reader.close()
    until(lambda: threading.active_count() <= before, "the threads to end")
    assert storage.sent < 3000


def test_threads_end_by_themselves_after_the_last_shard() -> None:
    before = threading.active_count()
    reader = ahead(Remote(), dict.fromkeys("abcdef", 50), 1000)
    assert [len(whole(reader, index)) for index in range(6)] == [50] * 6
    until(lambda: threading.active_count() <= before, "the threads to end")


def test_a_request_that_waits_for_its_retry_is_given_up_when_the_read_ahead_is_closed() -> None:
    class Throttled(Remote):
        def stream_part(
            self, path: str, size: int, version: str, span: tuple[int, int], waiting: Callable[[], None]
        ) -> Iterator[bytes]:
            self.open += 1
            try:
                while not self.release.wait(0.01):
                    waiting()
                yield b""
            finally:
                self.open -= 1

    storage = Throttled()
    storage.check = stop
    reader = ahead(storage, {"a": 10, "b": 10, "c": 10, "d": 10}, 50)
    with pytest.raises(Interrupted):
        next(reader.shard(0))
    assert 1 <= storage.open <= 2  # The first wait doubled the requests in flight, each retry halves them.
    reader.close()
    until(lambda: not storage.open, "the request to be given up")


def stop() -> None:
    raise Interrupted(Signals.SIGTERM)


def test_a_reader_that_waits_for_input_can_be_stopped() -> None:
    storage = Remote(gate=lambda name: False)
    storage.check = stop
    with pytest.raises(Interrupted):
        next(ahead(storage, {"a": 10}, 50).shard(0))
    storage.release.set()


def test_a_shard_that_is_left_in_the_middle_gives_nothing_to_the_next(small_ranges: None) -> None:
    storage = Remote()
    reader = ahead(storage, {"a": 10**6, "b": 0, "c": 50, "d": 30}, 100)
    assert next(reader.shard(0)) == content("a", 0, 10)
    assert whole(reader, 2) == content("c", 0, 50)
    assert len(whole(reader, 3)) == 30
    assert storage.sent < 1000  # The rest of the first shard is not fetched.


def test_a_request_that_is_stuck_for_a_shard_that_was_left_holds_up_no_other() -> None:
    storage = Remote(gate=lambda name: name != "a")
    reader = ahead(storage, {"a": 50, "b": 50}, 40, protocol="gs")
    storage.check = lambda: storage.check_left.pop()()  # type: ignore[attr-defined]
    storage.check_left = [stop]  # type: ignore[attr-defined]
    with pytest.raises(Interrupted):
        next(reader.shard(0))
    assert whole(reader, 1) == content("b", 0, 50)
    storage.release.set()


def test_further_requests_stay_within_the_share_of_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """At two requests a second, a second request may join the first in flight only after half a second."""
    now = [0.0]
    monkeypatch.setattr(read_ahead, "time", SimpleNamespace(monotonic=lambda: now[0]))
    storage = Remote(gate=lambda name: storage.release.is_set())
    reader = ahead(storage, dict.fromkeys("abcd", 10), 1000, share=2.0)
    thread = threading.Thread(target=whole, args=(reader, 0))
    thread.start()
    until(lambda: storage.open == 1, "the first request")
    now[0] = 0.4
    assert not until(lambda: [storage.open - 1], "a look")[0]
    now[0] = 0.6
    until(lambda: storage.open == 2, "the second request")
    storage.release.set()
    thread.join()
    assert len(whole(reader, 3)) == 10


def test_local_shards_among_remote_ones_are_not_fetched() -> None:
    shards = [Shard("a", 10, "1"), Shard("/tmp/b", 10), Shard("c", 10, "1")]
    storage = Remote()
    reader = ReadAhead(storage, shards, lambda s: s.name if s.name[0] == "/" else f"s3://b/{s.name}", lambda: 99, 99)
    assert [whole(reader, 0), whole(reader, 2)] == [content("a", 0, 10), content("c", 0, 10)]
