"""Codecs in threads: a shard is decompressed ahead of its reader, and outputs are compressed behind their writer.

Codecs and files release Python's lock (the GIL) while they work, so that the steps go on meanwhile on another core. The
calls of the codecs are the same as without threads, and in the same order: so are their results and their errors. All
requests and file operations of outputs stay in the task's own thread.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable

from stagger.pipeline.compression import QUEUE_BYTES, Compressor, Content

#: Decompressed bytes for which a waiting reader is woken: to be woken for each block costs more than it decompresses.
WAKE_BYTES = QUEUE_BYTES // 8

#: Seconds after which a waiting reader takes what there is, and looks whether the task has to stop.
LOOK_UP_S = 0.2

#: Seconds for which steps keep Python's lock while a codec waits for it. Python's default, 5 ms, is the time in which a
#: codec works off two megabytes.
SWITCH_S = 0.0002


class DecompressedAhead(Content):
    """The content of a shard, which a thread takes from `content`: at most about QUEUE_BYTES ahead."""

    def __init__(self, content: Content, check: Callable[[], None]) -> None:
        super().__init__(iter(()), check)
        self._queue = _Blocks(content)
        _start(self._queue.fill)

    def _refill(self) -> bool:
        block, self.taken = self._queue.get(self._check)
        self._set(block)
        return bool(block)

    def close(self) -> None:
        """End the thread, once the block that it is at is done. Called when nothing refers to the content any more."""
        self._queue.stop()
        super().close()


class _Blocks:
    """The blocks between the thread and the reader. Apart from DecompressedAhead, which the thread must not keep."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._blocks: deque[tuple[bytes, int]] = deque()  # With the bytes of the file that were taken for them.
        self._held = 0
        self._ended = False
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._drained = threading.Condition(self._lock)

    def fill(self) -> None:
        """The thread."""
        while not self._ended:
            error: BaseException | None = None
            block = b""
            try:
                block = self._content.block()
            except BaseException as raised:  # Raised in the reader, after the blocks before it.
                error = raised
            with self._lock:
                self._blocks.append((block, self._content.taken))
                self._held += len(block)
                if not block:
                    self._ended, self._error = True, error
                if not block or self._held >= WAKE_BYTES:
                    self._arrived.notify()
                while self._held >= QUEUE_BYTES and not self._ended:
                    self._drained.wait()

    def get(self, check: Callable[[], None]) -> tuple[bytes, int]:
        """The next block, empty at the end. Raises what decompressing it has raised, and what `check` raises."""
        with self._lock:
            while not self._blocks:
                if not self._arrived.wait(LOOK_UP_S):
                    check()
            block, taken = self._blocks[0]
            if not block:
                if self._error is not None:
                    raise self._error
                return block, taken
            self._blocks.popleft()
            self._held -= len(block)
            if self._held <= QUEUE_BYTES // 2:
                self._drained.notify()
            return block, taken

    def stop(self) -> None:
        with self._lock:
            self._ended = True
            self._drained.notify()


class CompressionThread:
    """The thread that compresses all outputs of a task, at most QUEUE_BYTES behind their writers."""

    def __init__(self) -> None:
        self._jobs: deque[tuple[CompressedBehind, bytes]] = deque()
        self._held = 0
        self._stopped = False
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._done = threading.Condition(self._lock)
        _start(self._run)

    def compressor(self, codec: Compressor) -> CompressedBehind:
        """The compressor of an output, which works in this thread from now on."""
        return CompressedBehind(codec, self)

    def put(self, output: CompressedBehind, data: bytes) -> None:
        """Have `data` compressed; wait as long as QUEUE_BYTES wait before it."""
        with self._lock:
            while self._held >= QUEUE_BYTES:
                self._done.wait()
            self._jobs.append((output, data))
            self._held += len(data)
            output.behind += len(data)
            self._work.notify()

    def wait_for(self, output: CompressedBehind) -> None:
        """Wait until everything of an output is compressed."""
        with self._lock:
            while output.behind:
                self._done.wait()

    def stop(self) -> None:
        """End the thread. What waits is not compressed any more."""
        with self._lock:
            self._stopped = True
            self._jobs.clear()
            self._work.notify()

    def _run(self) -> None:
        while (job := self._take()) is not None:
            output, data = job
            output.compress_now(data)
            with self._lock:
                self._held -= len(data)
                output.behind -= len(data)
                if self._held <= QUEUE_BYTES // 2 or not output.behind:
                    self._done.notify()
            del job, output, data  # Not held while waiting.

    def _take(self) -> tuple[CompressedBehind, bytes] | None:
        with self._lock:
            while not self._jobs and not self._stopped:
                self._work.wait()
            return self._jobs.popleft() if self._jobs else None


class CompressedBehind:
    """A `Compressor` that works in the thread: `compress` returns what has been compressed by then."""

    def __init__(self, codec: Compressor, thread: CompressionThread) -> None:
        self.behind = 0  # Bytes that wait for the codec.
        self._codec = codec
        self._thread = thread
        self._made: deque[bytes] = deque()
        self._error: BaseException | None = None

    @property
    def held(self) -> int:
        """Bytes in memory: not yet compressed, or not yet returned."""
        return self.behind + sum(map(len, tuple(self._made)))

    def compress(self, data: bytes, /) -> bytes:
        self._thread.put(self, data)
        return self._taken()

    def flush(self) -> bytes:
        return self.caught_up() + self._codec.flush()

    def caught_up(self) -> bytes:
        """What has been compressed, once that is everything given so far."""
        self._thread.wait_for(self)
        return self._taken()

    def compress_now(self, data: bytes) -> None:
        """Called by the thread."""
        try:
            if self._error is None:
                self._made.append(self._codec.compress(data))
        except BaseException as error:  # Raised in the writer.
            self._error = error

    def _taken(self) -> bytes:
        if self._error is not None:
            raise self._error
        made = []
        while self._made:
            made.append(self._made.popleft())
        return b"".join(made)


class _Turns:
    """The threads that run, and how often threads take turns: more often than usual while any of them runs."""

    def __init__(self) -> None:
        self._running = 0
        self._usual = 0.0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if not self._running:
                self._usual = sys.getswitchinterval()
                sys.setswitchinterval(min(self._usual, SWITCH_S))
            self._running += 1

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._running -= 1
            if not self._running:
                sys.setswitchinterval(self._usual)


_TURNS = _Turns()


def _start(run: Callable[[], None]) -> None:
    def work() -> None:
        with _TURNS:
            run()

    threading.Thread(target=work, daemon=True).start()
