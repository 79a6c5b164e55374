"""Fetches input from remote storage ahead of its use: several requests in flight, delivered in order."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from stagger.pipeline import Shard
from stagger.pipeline.fetches import LARGE_BYTES, range_bytes, spans
from stagger.storage.retry import GivenUp
from stagger.storage.storage import Storage, connections_to, is_local

#: Seconds between two checks for a stop request while a reader waits for input.
LOOK_UP_S = 0.2

#: Bytes of a block that is made and freed before the first request. glibc keeps freed memory for its next use, instead
#: of handing it back to the kernel and fetching it again, in amounts that depend on the largest block that it has seen
#: freed (mallopt(3), M_MMAP_THRESHOLD). This halves the CPU time of fetching.
FREED_BYTES = 4 * 2**20


class Part:
    """What one request fetches: a shard, or a range of a large one. `left` counts the bytes not yet read from it."""

    __slots__ = ("ended", "error", "left", "path", "pieces", "planned", "retried", "shard", "span", "unwanted")

    def __init__(self, shard: int, planned: Shard, path: str, span: tuple[int, int]) -> None:
        self.shard = shard
        self.planned = planned
        self.path = path
        self.span = span
        self.left = span[1] - span[0]
        self.pieces: deque[bytes] = deque()
        self.ended = False
        self.unwanted = False
        self.retried = False
        self.error: BaseException | None = None


class ReadAhead:
    """Streams the parts of the shards into queues of at most `limit()` bytes together, and hands them out in order.

    A part begins when the unread bytes of the parts begun before it leave room for it, and when there are no more of
    these than twice the requests that may be in flight. If there are none, it always begins. A part longer than
    LARGE_BYTES begins earlier; its pieces wait for room. The number of requests in flight doubles each time the reader
    has to wait for another part, up to what the storage takes, and is halved when a request has to be retried: a reader
    that is slower than one connection keeps one or two.

    Threads are started as they are needed. After an error no later part begins until the reader has passed it.

    Args:
        storage: where the shards are.
        shards: in the order in which they are read. Local ones are left out.
        path_of: the path of a shard.
        limit: bytes that may be held at this moment.
        read_ahead: the most that `limit` returns.
        share: requests per second that the task may make; 0 for any number. One request is always allowed, and only
            further ones beside it wait.
    """

    def __init__(
        self,
        storage: Storage,
        shards: Sequence[Shard],
        path_of: Callable[[Shard], str],
        limit: Callable[[], int],
        read_ahead: int,
        share: float = 0.0,
    ) -> None:
        bytes(FREED_BYTES)
        self._storage = storage
        self._limit = limit
        self._interval = 1 / share if share else 0.0
        paths = [path_of(shard) for shard in shards]
        remote = {path.partition("://")[0]: path for path in paths if not is_local(path)}
        self._most = min(map(connections_to, remote.values()), default=1)
        for path in remote.values():
            storage.remote(path)  # Connects here: threads would connect several times.
        self._rest = parts_of(shards, paths, read_ahead, share)
        self._next = next(self._rest, None)
        self._connections = 1
        self._in_flight = 0
        self._allowed_at = 0.0  # When another request beside one in flight may begin.
        self._begun: deque[Part] = deque()  # Parts that have begun and are not read to their ends.
        self._ahead = 0  # Unread bytes of these parts, fetched or not.
        self._held = 0  # Those of them that have been fetched.
        self._to_do: deque[Part] = deque()  # Those of them that no thread has taken yet.
        self._waited_for: Part | None = None
        self._wanted = 0  # The reader has left all shards before this one.
        self._failed = -1  # The last shard with an error.
        self._threads = self._working = 0
        self._closed = False
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)  # For the reader.
        self._drained = threading.Condition(self._lock)  # For threads whose part is longer than the limit.
        self._work = threading.Condition(self._lock)  # For threads without a part.

    def shard(self, index: int) -> Iterator[bytes]:
        """The pieces of a shard. Earlier shards may be unread, and can no longer be read.

        Raises what fetching the shard has raised, in the place where it broke off.
        """
        with self._lock:
            self._leave_before(index)
        while (piece := self._get(index)) is not None:
            yield piece

    def close(self) -> None:
        """Begin no request any more. Those in flight end with their next piece."""
        with self._lock:
            self._closed = True
            self._next = None
            for part in self._begun:
                part.unwanted = True
            self._begun.clear()
            self._to_do.clear()
            self._held = 0
            self._work.notify_all()
            self._drained.notify_all()

    # The reader.

    def _get(self, index: int) -> bytes | None:
        """The next piece of a shard; None after its last."""
        with self._lock:
            while True:
                part = self._begun[0] if self._begun else self._next
                if part is None or part.shard != index:
                    return None
                if part.pieces:
                    return self._taken(part)
                if part.error is not None:
                    raise part.error
                if part.ended:
                    self._drop_first()
                    self._begin()
                    continue
                self._wait_for(part)

    def _taken(self, part: Part) -> bytes:
        piece = part.pieces.popleft()
        part.left -= len(piece)
        self._ahead -= len(piece)
        self._held -= len(piece)
        self._drained.notify_all()
        self._begin()
        return piece

    def _wait_for(self, part: Part) -> None:
        """Wait for something of a part, with one more doubling of the requests in flight."""
        if part is not self._waited_for:
            self._waited_for = part
            self._connections = min(2 * self._connections, self._most)
        self._begin()
        if not self._arrived.wait(LOOK_UP_S):
            self._storage.check()

    def _leave_before(self, index: int) -> None:
        self._wanted = index
        while self._begun and self._begun[0].shard < index:
            self._drop_first()
        while self._next is not None and self._next.shard < index:
            self._next = next(self._rest, None)
        self._begin()

    def _drop_first(self) -> None:
        part = self._begun.popleft()
        self._ahead -= part.left
        self._held -= sum(map(len, part.pieces))
        part.pieces.clear()
        if not part.ended:
            part.unwanted = True
            self._in_flight -= 1
            with contextlib.suppress(ValueError):
                self._to_do.remove(part)
        self._drained.notify_all()

    # Requests begin.

    def _begin(self) -> None:
        """Begin all parts that may begin, and find threads for them."""
        while (part := self._next) is not None and self._may_begin(part):
            now = time.monotonic()
            self._allowed_at = max(now, self._allowed_at) + self._interval
            self._in_flight += 1
            self._ahead += part.left
            self._begun.append(part)
            self._to_do.append(part)
            self._next = next(self._rest, None)
            if len(self._to_do) > self._threads - self._working:
                self._threads += 1
                threading.Thread(target=self._run, daemon=True).start()
            else:
                self._work.notify()

    def _may_begin(self, part: Part) -> bool:
        if self._in_flight >= self._connections or len(self._begun) >= 2 * self._connections:
            return False
        if self._failed >= self._wanted:
            return False
        if self._in_flight and time.monotonic() < self._allowed_at:
            return False
        limit = self._limit()
        room = part.left if part.left <= LARGE_BYTES else min(LARGE_BYTES, limit // 2)
        return not self._ahead or self._ahead + room <= limit

    def _has_room(self, part: Part, size: int) -> bool:
        """Whether a piece of a part that is longer than others may be held. One piece of the part being read always
        may, so that nothing blocks everything.
        """
        if not self._held or self._held + size <= self._limit():
            return True
        return part is self._begun[0] and not part.pieces

    # The threads.

    def _run(self) -> None:
        while (part := self._take()) is not None:
            error: BaseException | None = None
            try:
                self._fetch(part)
            except GivenUp:
                pass
            except BaseException as raised:  # Raised in the reader once it gets there.
                error = raised
            self._end(part, error)

    def _take(self) -> Part | None:
        """Wait for a part to fetch; None when there will be none."""
        with self._lock:
            while True:
                self._begin()
                if self._to_do:
                    self._working += 1
                    return self._to_do.popleft()
                if self._next is None:
                    self._threads -= 1
                    return None
                pause = self._allowed_at - time.monotonic()
                self._work.wait(pause if pause > 0 else None)

    def _fetch(self, part: Part) -> None:
        planned = part.planned
        pieces = self._storage.remote(part.path).stream_part(
            part.path, planned.size, planned.version, part.span, lambda: self._retrying(part)
        )
        long = part.left > LARGE_BYTES
        for piece in pieces:
            with self._lock:
                while long and not part.unwanted and not self._has_room(part, len(piece)):
                    self._drained.wait()
                if part.unwanted:
                    raise GivenUp
                part.pieces.append(piece)
                self._held += len(piece)
                if self._begun[0] is part:
                    self._arrived.notify()

    def _retrying(self, part: Part) -> None:
        """Called while the retry of a request is waited for."""
        with self._lock:
            if part.unwanted:
                raise GivenUp
            if not part.retried:
                part.retried = True
                self._connections = max(1, self._connections // 2)

    def _end(self, part: Part, error: BaseException | None) -> None:
        with self._lock:
            self._working -= 1
            if part.unwanted:
                return
            part.ended = True
            part.error = error
            self._in_flight -= 1
            if error is not None:
                self._failed = max(self._failed, part.shard)
            if self._begun[0] is part:
                self._arrived.notify()


def parts_of(shards: Sequence[Shard], paths: Sequence[str], read_ahead: int, share: float) -> Iterator[Part]:
    """The parts of all remote shards, in order. Ranges need a version that holds them together."""
    for index, (shard, path) in enumerate(zip(shards, paths, strict=True)):
        if not is_local(path):
            size = range_bytes(path, read_ahead, share) if shard.version else 0
            for span in spans(shard.size, size):
                yield Part(index, shard, path, span)
