"""Reads the blocks of a model in another thread while the block before is computed."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from stagger.errors import StaggerError

#: Seconds between two checks for a stop request while a block is waited for.
LOOK_UP_S = 0.2


class BlocksAhead:
    """Blocks in the order in which they were asked for. One that is asked for is read at once, and then held.

    A context: its thread ends with it. Its end waits for the block that is being read, and for no other.

    Args:
        read: block -> its weights. Called in the other thread, for one block at a time.
        check: called while a block is waited for. Raises when the process has to stop.
        source: where the blocks are, for error messages.
    """

    def __init__(self, read: Callable[[int], Any], check: Callable[[], None], source: str) -> None:
        self.waited_s = 0.0
        self._read = read
        self._check = check
        self._source = source
        self._asked: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="stagger-blocks-ahead", daemon=True)

    def __enter__(self) -> BlocksAhead:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._asked.put(None)
        self._thread.join()

    def ask(self, block: int) -> None:
        """Begin to read a block, behind those already asked for."""
        self._asked.put(block)

    def take(self) -> Any:
        """The weights of the next block that was asked for.

        Raises what reading it has raised; StaggerError, naming the block, for an error of the system; and what `check`
        raises.
        """
        started = time.monotonic()
        try:
            block, weights, error = self._wait()
        finally:
            self.waited_s += time.monotonic() - started
        if isinstance(error, OSError):
            raise StaggerError(f"Block {block} of {self._source} cannot be read: {error}") from error
        if error is not None:
            raise error
        return weights

    def _wait(self) -> tuple[int, Any, BaseException | None]:
        while True:
            try:
                return self._answers.get(timeout=LOOK_UP_S)
            except queue.Empty:
                self._check()

    def _run(self) -> None:
        while (block := self._asked.get()) is not None and not self._closed:
            try:
                self._answers.put((block, self._read(block), None))
            except BaseException as error:  # Raised where the block is taken.
                self._answers.put((block, None, error))
