"""The one retry policy, for all requests to object stores.

Full jitter (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015): the n-th wait is uniform
between 0 and min(CAP_S, BASE_S * 2^n), so that tasks rejected together do not come back together. Retries are limited
by time, not by attempts: thousands of tasks that share a limit need minutes, however many attempts each makes.
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

#: Seconds between two checks for a stop request during a wait.
NAP_S = 0.2

T = TypeVar("T")


class GivenUp(BaseException):
    """Nobody wants the result of this operation any more. Not an `Exception`, so that nothing takes it for an error."""


class Retry:
    """Retries calls that failed with a transient fault, for up to `seconds` after the first failure.

    An unreachable endpoint is given up after `unreachable_s`: tasks wait for it like for any other fault, but a person
    at a terminal has probably mistyped it. `check` runs during each wait, and raises when the process has to stop;
    `tell` gets a message before each wait.
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
        self.check = check
        self._tell = tell
        self._retried: Counter[str] = Counter()
        self._waited_s = 0.0
        self._account = threading.Lock()
        self.random = Random()  # noqa: S311 # Seeded by the system, anew in each process.

    def call(self, path: str, ask: Callable[[], T], waiting: Callable[[], None] = lambda: None) -> T:
        """The result of `ask`. Raises its last error when that is not transient, or when the time is up; and what
        `waiting` raises before a retry or while one is waited for.
        """
        trial = Trial(self, path, waiting)
        while True:
            try:
                return ask()
            except Exception as error:
                trial.failed(error)

    def pause(self, path: str, kind: str, seconds: float, waiting: Callable[[], None] = lambda: None) -> None:
        """Record the fault and sleep; `check` and `waiting` may interrupt the sleep."""
        with self._account:
            self._retried[kind] += 1
            self._waited_s += seconds
        if self._tell is not None:
            self._tell(f"{path}: {kind}; retrying in {seconds:.1f} s")
        end = time.monotonic() + seconds
        waiting()
        while (left := end - time.monotonic()) > 0:
            self.check()
            waiting()
            time.sleep(min(left, NAP_S))

    def take_account(self) -> dict[str, Any]:
        """Retried requests by kind of fault, and the seconds waited, both since the last call; resets them."""
        with self._account:
            account = {"requests": dict(self._retried), "waited_s": round(self._waited_s, 3)}
            self._retried, self._waited_s = Counter(), 0.0
        return account


class Trial:
    """One operation that is tried until it succeeds: the number of failures, and the time of the first.

    `waiting` is called before each retry and while it is waited for. It may raise, to give the operation up.
    """

    def __init__(self, retry: Retry, path: str, waiting: Callable[[], None] = lambda: None) -> None:
        self._retry = retry
        self._path = path
        self._waiting = waiting
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
        self._retry.pause(self._path, kind, delay, self._waiting)

    def progressed(self) -> None:
        """Reset the time limit after a partial success: a read resumes where its body broke off."""
        self._failures = 0
        self._since = 0.0
