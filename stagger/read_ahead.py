"""Input from remote storage, fetched while what came before it is still being worked on."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

from stagger.sharding import Shard
from stagger.storage import Storage

#: How often a reader that waits for input looks whether the task has been told to stop, in seconds.
LOOK_UP_S = 0.2


class Closed(Exception):
    """Nobody reads any more."""


class ReadAhead:
    """Streams the shards, one request each, by one thread into a queue of at most `limit()` bytes.

    The thread runs on into the next shard while the one before is decoded: a task never waits for the first byte of a
    shard but the first. `path_of` says where a shard lies.
    """

    def __init__(
        self, storage: Storage, shards: list[Shard], path_of: Callable[[Shard], str], limit: Callable[[], int]
    ) -> None:
        self._storage = storage
        self._shards = shards
        self._path_of = path_of
        self._limit = limit
        self._queue: deque[bytes | BaseException | None] = deque()  # None ends a shard.
        self._held = 0
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._fetch, daemon=True)
        self._thread.start()

    def _fetch(self) -> None:
        try:
            for shard in self._shards:
                for piece in self._storage.stream(self._path_of(shard), shard.size, shard.version):
                    self._put(piece)
                self._put(None)
        except Closed:
            pass
        except BaseException as error:  # Raised in the reader, when it has come to the place.
            with self._change:
                self._queue.append(error)
                self._change.notify()

    def _put(self, item: bytes | None) -> None:
        size = len(item) if item else 0
        with self._change:
            # One piece always fits: a limit below a piece's size must not stop everything.
            self._change.wait_for(lambda: self._closed or not self._held or self._held + size <= self._limit())
            if self._closed:
                raise Closed
            self._queue.append(item)
            self._held += size
            self._change.notify()

    def shard(self) -> Iterator[bytes]:
        """The pieces of the next shard."""
        while (piece := self._get()) is not None:
            yield piece

    def _get(self) -> bytes | None:
        with self._change:
            while not self._change.wait_for(lambda: self._queue, timeout=LOOK_UP_S):
                self._storage.check()
            item = self._queue.popleft()
            if isinstance(item, bytes):
                self._held -= len(item)
                self._change.notify()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Stop fetching."""
        with self._change:
            self._closed = True
            self._queue.clear()
            self._change.notify_all()
