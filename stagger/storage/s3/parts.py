"""Sends the parts of a multipart upload in threads, while the task goes on."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from stagger.storage.retry import NAP_S, GivenUp

#: Parts in flight at once, and parts that may wait for that before the writer waits for them. Two connections carry
#: more than a core compresses.
CONNECTIONS, WAITING = 2, 1

#: Seconds for which `stop` waits for parts in flight: the upload must not be aborted before they have arrived.
STOP_S = 10.0


class PartSender:
    """Sends numbered parts; `send` makes the requests of one, retries included, and returns its ETag and MD5.

    Its last argument is to be called while a retry is waited for; it raises GivenUp once the sender is stopped.
    """

    def __init__(
        self, send: Callable[[int, bytes, Callable[[], None]], tuple[str, bytes]], check: Callable[[], None]
    ) -> None:
        self._send = send
        self._check = check
        self._jobs: deque[tuple[int, bytes]] = deque()
        self._sent: dict[int, tuple[str, bytes]] = {}
        self._count = 0
        self._threads = 0
        self._error: BaseException | None = None
        self._stopped = False
        self._change = threading.Condition()
        self.held = 0  # Bytes that are not sent yet.

    def put(self, data: bytes) -> None:
        """Send the next part; wait as long as WAITING others wait.

        Raises what sending an earlier part has raised, and what `check` raises.
        """
        with self._change:
            self._wait(lambda: len(self._jobs) < WAITING)
            self._count += 1
            self._jobs.append((self._count, data))
            self.held += len(data)
            if self._threads < CONNECTIONS:
                self._threads += 1
                threading.Thread(target=self._run, daemon=True).start()

    def finish(self) -> list[tuple[str, bytes]]:
        """Wait until all parts are sent. Returns their ETags and MD5s, in order."""
        with self._change:
            self._wait(lambda: len(self._sent) == self._count)
            return [self._sent[number] for number in range(1, self._count + 1)]

    def stop(self) -> None:
        """Send no more parts, and wait for those in flight."""
        with self._change:
            self._stopped = True
            self._jobs.clear()
            self._change.wait_for(lambda: not self._threads, STOP_S)

    def _wait(self, done: Callable[[], bool]) -> None:
        while not done() or self._error is not None:
            if self._error is not None:
                raise self._error
            if not self._change.wait(NAP_S):
                self._check()

    def _run(self) -> None:
        while (job := self._take()) is not None:
            number, data = job
            try:
                sent = self._send(number, data, self._waiting)
            except BaseException as error:  # Raised in the writer.
                with self._change:
                    self._error = self._error or error
                    self._jobs.clear()
            else:
                with self._change:
                    self._sent[number] = sent
            with self._change:
                self.held -= len(data)
                self._change.notify_all()
            del job, data  # Not held while waiting.

    def _take(self) -> tuple[int, bytes] | None:
        with self._change:
            if self._jobs:
                return self._jobs.popleft()
            self._threads -= 1
            self._change.notify_all()
            return None

    def _waiting(self) -> None:
        if self._stopped:
            raise GivenUp
