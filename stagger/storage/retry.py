"""The one retry policy, for everything that asks an object store.

Full jitter (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015): the n-th wait is uniform
between 0 and min(CAP_S, BASE_S * 2^n), so that tasks that were refused together do not come back together. It is
bounded by time, not by attempts: thousands of tasks that share a limit need minutes, however often each has asked.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, TypeVar

from stagger.backoff import full_jitter
from stagger.storage.faults import fault_of

#: A wait is this often interrupted to look whether the task has been told to stop.
NAP_S = 0.2

T = TypeVar("T")


class Retry:
    """Calls again what failed by a fault that may pass, for up to `seconds` after the first failure.

    An endpoint that cannot be reached at all is given up after `unreachable_s`: a task waits for it as for any fault, a
    person at a terminal has rather mistyped it. `check` is called while it waits, and raises when the process has been
    told to stop; `tell` is told of each wait.
    """

    def __init__(
        self,
        seconds: float = 600.0,
        unreachable_s: float | None = None,
        *,
        check: Callable[[], None] = lambda: None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.seconds = seconds
        self.unreachable_s = seconds if unreachable_s is None else min(seconds, unreachable_s)
        self._check = check
        self._tell = tell
        self._retried: Counter[str] = Counter()
        self._waited_s = 0.0
        self._account = threading.Lock()
        self.random = Random()  # noqa: S311 # Seeded by the system, anew in each process.

    def call(self, path: str, ask: Callable[[], T]) -> T:
        """What `ask` returns. Raises its last error when that is none that may pass, or the time is over."""
        trial = Trial(self, path)
        while True:
            try:
                return ask()
            except Exception as error:
                trial.failed(error)

    def pause(self, path: str, kind: str, seconds: float) -> None:
        """Note the fault, and sleep, unless the task is told to stop."""
        with self._account:
            self._retried[kind] += 1
            self._waited_s += seconds
        if self._tell is not None:
            self._tell(f"{path}: {kind}; trying again in {seconds:.1f} s")
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._check()
            time.sleep(min(left, NAP_S))

    def take_account(self) -> dict[str, Any]:
        """Requests that were made again, by the kind of fault, and the seconds waited; then it begins anew."""
        with self._account:
            account = {"requests": dict(self._retried), "waited_s": round(self._waited_s, 3)}
            self._retried, self._waited_s = Counter(), 0.0
        return account


class Trial:
    """One thing that is tried until it succeeds: how often it has failed, and since when."""

    def __init__(self, retry: Retry, path: str) -> None:
        self._retry = retry
        self._path = path
        self._failures = 0
        self._since = 0.0

    def failed(self, error: Exception) -> None:
        """Wait before the next attempt. Raises `error` when there should be none."""
        kind = fault_of(error)
        if kind is None:
            raise error
        now = time.monotonic()
        self._since = self._since or now
        delay = full_jitter(self._failures, self._retry.random)
        limit = self._retry.unreachable_s if kind == "unreachable" else self._retry.seconds
        if now + delay - self._since > limit:
            raise error
        self._failures += 1
        self._retry.pause(self._path, kind, delay)

    def progressed(self) -> None:
        """Part of it succeeded: a body that breaks off is asked for from there, with the whole time again."""
        self._failures = 0
        self._since = 0.0
