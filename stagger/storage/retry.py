"""The one retry policy, for everything that asks an object store.

Full jitter (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015): the n-th wait is uniform
between 0 and min(CAP_S, BASE_S * 2^n), so that tasks that were refused together do not come back together. It is
bounded by time, not by attempts: thousands of tasks that share a limit need minutes, however often each has asked.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, TypeVar

from stagger.backoff import full_jitter

#: A wait is this often interrupted to look whether the task has been told to stop.
NAP_S = 0.2

#: What the store says (S3's error codes) -> the kind of fault. Any other status below 500 is an answer, not a fault.
CODES = {
    "SlowDown": "throttled",
    "Throttling": "throttled",
    "ThrottlingException": "throttled",
    "RequestLimitExceeded": "throttled",
    "TooManyRequests": "throttled",
    "RequestTimeout": "time-out",
    "ConditionalRequestConflict": "conflict",
    "OperationAborted": "conflict",
    "BadDigest": "damaged on the way",
    "XAmzContentSHA256Mismatch": "damaged on the way",
    "IncompleteBody": "broken off",
}

#: HTTP status -> the kind of fault, where the code says nothing.
STATUSES = {408: "time-out", 429: "throttled", 503: "throttled"}

#: Names of exceptions of the network (Python's, botocore's, aiohttp's, fsspec's) -> the kind of fault.
#: The first that matches the exception, or a class that it derives from, counts.
EXCEPTIONS: dict[str, str | None] = {
    "SSLError": None,
    "SSLCertVerificationError": None,
    "EndpointConnectionError": "unreachable",
    "ClientConnectorError": "unreachable",
    "ConnectionRefusedError": "unreachable",
    "gaierror": "unreachable",
    "ConnectTimeoutError": "time-out",
    "ReadTimeoutError": "time-out",
    "FSTimeoutError": "time-out",
    "TimeoutError": "time-out",
    "BrokenOff": "broken off",
    "ClientPayloadError": "broken off",
    "IncompleteReadError": "broken off",
    "IncompleteRead": "broken off",
    "ResponseStreamingError": "broken off",
    "ResponseParserError": "broken off",
    "ContentLengthError": "broken off",
    "ConnectionClosedError": "reset",
    "ServerDisconnectedError": "reset",
    "ClientOSError": "reset",
    "ConnectionError": "reset",
    "HTTPClientError": "reset",
}

#: What obstore says of a fault: its errors are text, with the answer in it where there was one.
STATUS_TEXT = re.compile(r"status code: (\d{3})")
CODE_TEXT = re.compile(r"<Code>(\w+)</Code>")
FAULT_TEXTS = (
    (re.compile(r"IncompleteBody|UnexpectedEof|IncompleteMessage"), "broken off"),
    (re.compile(r"ConnectionRefused|ConnectError|dns error|HostUnreachable|NetworkUnreachable"), "unreachable"),
    (re.compile(r"TimedOut|timed out"), "time-out"),
    (re.compile(r"error sending request|response body error|ConnectionReset|ConnectionAborted|BrokenPipe"), "reset"),
)

T = TypeVar("T")


class BrokenOff(Exception):
    """A body ended before its length."""


def fault_of(error: BaseException) -> str | None:
    """The kind of a fault that may pass, None for an answer that will stay the same (403, 404, a bad request)."""
    seen: BaseException | None = error
    for _ in range(8):  # Libraries wrap one another's errors.
        if seen is None:
            return None
        response = getattr(seen, "response", None)
        if isinstance(response, dict):
            return _fault_in_response(response)
        if type(seen).__module__.startswith("obstore"):
            return _fault_in_text(str(seen))
        inner = getattr(seen, "kwargs", {}).get("error")  # What botocore wraps.
        if isinstance(inner, Exception) and (kind := fault_of(inner)):
            return kind
        for cls in type(seen).__mro__:
            if cls.__name__ in EXCEPTIONS:
                return EXCEPTIONS[cls.__name__]
        seen = seen.__cause__ or seen.__context__
    return None


def _fault_in_response(response: dict[str, Any]) -> str | None:
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    if code.isdecimal():  # An answer without a body: HEAD.
        status = status or int(code)
    return _fault_in_answer(status, code)


def _fault_in_answer(status: int, code: str) -> str | None:
    return CODES.get(code) or STATUSES.get(status) or ("server error" if status >= 500 else None)


def _fault_in_text(text: str) -> str | None:
    if status := STATUS_TEXT.search(text):
        code = CODE_TEXT.search(text)
        return _fault_in_answer(int(status[1]), code[1] if code else "")
    return next((kind for pattern, kind in FAULT_TEXTS if pattern.search(text)), None)


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
