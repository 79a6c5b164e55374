"""Fetches input from remote storage ahead of its use, while earlier input is processed."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator

from stagger.pipeline import Shard
from stagger.storage.storage import Storage

#: Seconds between two checks for a stop request while a reader waits for input.
LOOK_UP_S = 0.2


class Closed(Exception):
    """The read-ahead has been closed: stop fetching."""


class Left(Exception):
    """The reader has moved on to a later shard: stop fetching this one."""


class ReadAhead:
    """Streams the shards, one request each, by one thread into a queue of at most `limit()` bytes.

    The thread continues with the next shard while the current one is decoded, so a task waits only for the first byte
    of its first shard. `path_of` returns the path of a shard.
    """

    def __init__(
        self, storage: Storage, shards: list[Shard], path_of: Callable[[Shard], str], limit: Callable[[], int]
    ) -> None:
        self._storage = storage
        self._shards = shards
        self._path_of = path_of
        self._limit = limit
        self._queue: deque[tuple[int, bytes | BaseException | None]] = deque()  # (shard, piece); None ends a shard.
        self._held = 0
        self._wanted = 0  # The reader has left all shards before this one.
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._fetch, daemon=True)
        self._thread.start()

    def _fetch(self) -> None:
        index = 0
        try:
            for index, shard in enumerate(self._shards):
                with contextlib.suppress(Left):
                    self._fetch_shard(index, shard)
        except Closed:
            pass
        except BaseException as error:  # Queued, and raised in the reader once it gets there.
            with self._change:
                self._queue.append((index, error))
                self._change.notify()

    def _fetch_shard(self, index: int, shard: Shard) -> None:
        with self._change:
            self._wait(index, 0)
        for piece in self._storage.stream(self._path_of(shard), shard.size, shard.version):
            self._put(index, piece, len(piece))
        self._put(index, None, 0)

    def _put(self, index: int, item: bytes | None, size: int) -> None:
        with self._change:
            self._wait(index, size)
            self._queue.append((index, item))
            self._held += size
            self._change.notify()

    def _wait(self, index: int, size: int) -> None:
        """Wait until the queue has room. Raises Closed, or Left when the reader has left this shard."""

        def room() -> bool:
            # One piece always fits, so that a limit smaller than a piece cannot block everything.
            return not self._held or self._held + size <= self._limit()

        self._change.wait_for(lambda: self._closed or index < self._wanted or room())
        if self._closed:
            raise Closed
        if index < self._wanted:
            raise Left

    def shard(self, index: int) -> Iterator[bytes]:
        """The pieces of a shard. Earlier shards may be unread, and can no longer be read."""
        with self._change:
            self._wanted = index
            self._change.notify_all()
        while (piece := self._get(index)) is not None:
            yield piece

    def _get(self, index: int) -> bytes | None:
        while True:
            with self._change:
                while not self._change.wait_for(lambda: self._queue, timeout=LOOK_UP_S):
                    self._storage.check()
                of, item = self._queue.popleft()
                if isinstance(item, bytes):
                    self._held -= len(item)
                    self._change.notify_all()
            if isinstance(item, BaseException):
                raise item
            if of == index:
                return item

    def close(self) -> None:
        """Stop fetching."""
        with self._change:
            self._closed = True
            self._queue.clear()
            self._change.notify_all()
