"""Which failed requests to remote storage are worth a retry: by error code, HTTP status, exception and text."""

from __future__ import annotations

import re
from typing import Any

#: S3 error code -> the kind of fault. A status below 500 that is in neither table is an answer, not a fault.
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

#: HTTP status -> the kind of fault, when the error code is not in CODES. None: an answer, not a fault.
STATUSES: dict[int, str | None] = {
    408: "time-out",
    429: "throttled",
    501: None,  # Not implemented.
    503: "throttled",
    505: None,  # HTTP version not supported.
    511: None,  # A network that wants a login first.
}

#: Names of network exceptions (Python's, botocore's, aiohttp's, fsspec's) -> the kind of fault; None: not transient.
#: The first name found in the exception's method resolution order counts.
EXCEPTIONS: dict[str, str | None] = {
    "Superseded": None,  # Raised by the confirmation of a commit whose request has failed.
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
    "NotKept": "not kept by the store",
    "WrongAnswer": "wrong answer",
    "TooSlow": "too slow",
    "ClientPayloadError": "broken off",
    "IncompleteReadError": "broken off",
    "IncompleteRead": "broken off",
    "ResponseStreamingError": "broken off",
    "ResponseParserError": "broken off",
    "ContentLengthError": "broken off",
    "ConnectionClosedError": "reset",
    "ServerDisconnectedError": "reset",
    "ClientOSError": "reset",
    "HTTPException": "broken off",
    "ConnectionError": "reset",
    "HTTPClientError": "reset",
}

FAULT_TEXTS = (
    (re.compile(r"IncompleteBody|UnexpectedEof|IncompleteMessage"), "broken off"),
    (re.compile(r"ConnectionRefused|ConnectError|dns error|HostUnreachable|NetworkUnreachable"), "unreachable"),
    (re.compile(r"TimedOut|timed out"), "time-out"),
    (re.compile(r"missing from response|non-partial response|Content-Range|Requested .*, got"), "wrong answer"),
    (re.compile(r"error sending request|response body error|ConnectionReset|ConnectionAborted|BrokenPipe"), "reset"),
)

#: obstore's errors are plain text; they contain the HTTP status if there was a response.
STATUS_TEXT = re.compile(r"status code: (\d{3})")

CODE_TEXT = re.compile(r"<Code>(\w+)</Code>")


class BrokenOff(Exception):
    """A body ended before its announced length."""


class NotKept(Exception):
    """The store accepted an object, but does not hold what was sent. `etag` is that of what it holds instead."""

    def __init__(self, message: str, etag: str = "") -> None:
        super().__init__(message)
        self.etag = etag


class WrongAnswer(Exception):
    """A store's answer is not one to the request: another range, another version, a page that is not S3's."""


class TooSlow(Exception):
    """A body arrives so slowly that it would never end."""


def fault_of(error: BaseException) -> str | None:
    """The kind of a transient fault; None for an answer that a retry would not change (403, 404, a bad request)."""
    seen: BaseException | None = error
    for _ in range(8):  # Libraries wrap each other's errors.
        if seen is None:
            return None
        response = getattr(seen, "response", None)
        if isinstance(response, dict):
            return _fault_in_response(response)
        if type(seen).__module__.startswith("obstore"):
            return _fault_in_text(str(seen))
        inner = getattr(seen, "kwargs", {}).get("error")  # The error that botocore wraps.
        if isinstance(inner, Exception) and (kind := fault_of(inner)):
            return kind
        for cls in type(seen).__mro__:
            if cls.__name__ in EXCEPTIONS:
                return EXCEPTIONS[cls.__name__]
        seen = seen.__cause__ or seen.__context__
    return None


def status_of(error: BaseException) -> int:
    """The HTTP status behind an error of a store; 0 if it has none."""
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            break
        response = getattr(seen, "response", None)
        if isinstance(response, dict):
            return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
        if type(seen).__module__.startswith("obstore") and (status := STATUS_TEXT.search(str(seen))):
            return int(status[1])
        seen = seen.__cause__ or seen.__context__
    return 0


def _fault_in_response(response: dict[str, Any]) -> str | None:
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    if code.isdecimal():  # A response without a body, as to HEAD: the code is the status.
        status = status or int(code)
    return _fault_in_answer(status, code)


def _fault_in_answer(status: int, code: str) -> str | None:
    return CODES.get(code) or STATUSES.get(status, "server error" if status >= 500 else None)


def _fault_in_text(text: str) -> str | None:
    if status := STATUS_TEXT.search(text):
        code = CODE_TEXT.search(text)
        return _fault_in_answer(int(status[1]), code[1] if code else "")
    return next((kind for pattern, kind in FAULT_TEXTS if pattern.search(text)), None)
