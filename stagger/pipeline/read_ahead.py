"""Input from remote storage, fetched while what came before it is still being worked on."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator

from stagger.pipeline.document import Shard
from stagger.storage.storage import Storage

#: How often a reader that waits for input looks whether the task has been told to stop, in seconds.
LOOK_UP_S = 0.2


class Closed(Exception):
    """Nobody reads any more."""


class Left(Exception):
    """Nobody reads this shard any more."""


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
        self._queue: deque[tuple[int, bytes | BaseException | None]] = deque()  # (shard, piece); None ends a shard.
        self._held = 0
        self._wanted = 0  # Nobody reads the shards before this one any more.
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
        except BaseException as error:  # Raised in the reader, when it has come to the place.
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
        """Wait for room. Raises Closed, or Left when this shard is not read any more."""

        def room() -> bool:
            # One piece always fits: a limit below a piece's size must not stop everything.
            return not self._held or self._held + size <= self._limit()

        self._change.wait_for(lambda: self._closed or index < self._wanted or room())
        if self._closed:
            raise Closed
        if index < self._wanted:
            raise Left

    def shard(self, index: int) -> Iterator[bytes]:
        """The pieces of a shard. Those before it need not have been read, and cannot be any more."""
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
