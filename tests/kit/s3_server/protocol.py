"""Parses requests and formats responses: heads, bodies, chunks, ranges, errors."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote
from xml.sax.saxutils import escape

from tests.kit.s3_server.store import Content, Memory

XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
ADMIN = "_admin"  # A bucket's name cannot start with an underscore.


class S3Error(Exception):
    def __init__(self, status: int, code: str, message: str, more: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.more = more


def failed(condition: str) -> S3Error:
    message = "At least one of the pre-conditions you specified did not hold"
    return S3Error(412, "PreconditionFailed", message, f"<Condition>{condition}</Condition>")


@dataclass(frozen=True, slots=True)
class Plan:
    """The treatment of one request: its fault, its latency in s, its bandwidth in bytes/s."""

    fault: str = ""
    latency: float = 0.0
    bandwidth: float | None = None


#: The plan of most requests.
UNDISTURBED = Plan()

#: Numbers of requests, in the order in which their heads arrive.
NUMBERS = itertools.count(1)


class Request:
    """One request's head, and its body once it has arrived."""

    def __init__(self, head: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.method, target, _ = lines[0].split(" ")
        path, _, query = target.partition("?")
        bucket, _, key = path[1:].partition("/")
        self.bucket = bucket
        self.key = unquote(key) if "%" in key else key
        self.query: dict[str, str] = dict(parse_qsl(query, keep_blank_values=True)) if query else {}
        self.headers: dict[str, str] = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()
        self.number = next(NUMBERS)
        self.body = b""
        self.trailers: dict[str, str] = {}
        self.kind = ""
        self.operation: Operation | None = None
        self.plan = UNDISTURBED

    @property
    def subject(self) -> str:
        """The key, or the prefix in a request to a bucket."""
        return self.key or self.query.get("prefix", "")

    @property
    def declared(self) -> int:
        """The declared length of the body."""
        headers = self.headers
        return int(headers.get("content-length") or headers.get("x-amz-decoded-content-length") or 0)

    def header(self, name: str) -> str:
        return self.headers.get(name, "")

    def decode_body(self) -> None:
        """Undo aws-chunked, and verify the checksums that the client sent."""
        encoding = self.header("content-encoding")
        if "aws-chunked" in encoding or self.header("x-amz-content-sha256").startswith("STREAMING-"):
            chunked = ChunkedBody()
            chunked.feed(self.body, 0)
            if not chunked.done:
                raise S3Error(400, "IncompleteBody", "The request body ended within a chunk.")
            self.body, self.trailers = chunked.data(), chunked.trailers
            self.headers["content-encoding"] = re.sub(r"\s*aws-chunked\s*,?", "", encoding)
        given = {**self.headers, **self.trailers}
        for name, digest in DIGESTS.items():
            if name in given and given[name] != base64.b64encode(digest(self.body)).decode():
                raise S3Error(400, "BadDigest", f"The {name} you specified did not match what we received.")


DIGESTS: dict[str, Callable[[bytes], bytes]] = {
    "content-md5": lambda data: hashlib.md5(data, usedforsecurity=False).digest(),
    "x-amz-checksum-crc32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
    "x-amz-checksum-sha1": lambda data: hashlib.sha1(data, usedforsecurity=False).digest(),
    "x-amz-checksum-sha256": lambda data: hashlib.sha256(data).digest(),
}


class Body:
    """A request's body while it arrives."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0
        self.trailers: dict[str, str] = {}
        self.done = False

    def feed(self, data: bytes, at: int) -> int:
        """Take the part of data[at:] that belongs to the body. Returns where the rest begins."""
        raise NotImplementedError

    def data(self) -> bytes:
        return b"".join(self.parts)


class LengthBody(Body):
    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def feed(self, data: bytes, at: int) -> int:
        part = data[at : at + self.length - self.size]
        self.parts.append(part)
        self.size += len(part)
        self.done = self.size == self.length
        return at + len(part)


class ChunkedBody(Body):
    """HTTP's chunked encoding. aws-chunked is the same, with its signatures as chunk extensions."""

    def __init__(self) -> None:
        super().__init__()
        self.rest = bytearray()
        self.last = False

    def feed(self, data: bytes, at: int) -> int:
        self.rest += memoryview(data)[at:]
        while not self.done and self.step():
            pass
        return len(data) - (len(self.rest) if self.done else 0)

    def step(self) -> bool:
        """Take one chunk or one line of the trailer. Returns False while it is incomplete."""
        line, end, _ = self.rest.partition(b"\r\n") if self.last else self.rest[:200].partition(b"\r\n")
        if not end:
            return False
        stop = len(line) + 2
        if self.last:
            name, _, value = line.decode("latin-1").partition(":")
            self.trailers[name.lower()] = value.strip()
            self.done = not line
        elif size := int(line.partition(b";")[0], 16):
            if len(self.rest) < stop + size + 2:
                return False
            self.parts.append(bytes(self.rest[stop : stop + size]))
            self.size += size
            stop += size + 2
        else:
            self.last = True
        del self.rest[:stop]
        return True


@dataclass(slots=True)
class Response:
    """A response; its body is content[start:stop]."""

    status: int = 200
    headers: str = ""
    content: Content | None = None
    start: int = 0
    stop: int = 0

    @classmethod
    def of(cls, body: str, status: int = 200, content_type: str = "application/xml") -> Response:
        data = body.encode()
        return cls(status, f"Content-Type: {content_type}\r\n", Memory(data), 0, len(data))

    def head(self, number: int) -> bytes:
        length = "" if self.status in (204, 304) else f"Content-Length: {self.stop - self.start}\r\n"
        return (
            f"HTTP/1.1 {self.status} {REASONS[self.status]}\r\nServer: AmazonS3\r\nDate: {http_date(int(time.time()))}"
            f"\r\nx-amz-request-id: {number:016X}\r\n{length}{self.headers}\r\n"
        ).encode("latin-1")


#: An operation of `operations.S3`: it answers a request.
Operation = Callable[[Any, Request], Response]

REASONS = {status.value: status.phrase for status in HTTPStatus}


def xml(root: str, body: str) -> Response:
    return Response.of(f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} {XMLNS}>{body}</{root}>')


def error_response(error: S3Error, request: Request) -> Response:
    about = f"/{request.bucket}/{request.key}" if request.key else f"/{request.bucket}"
    return Response.of(
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{error.code}</Code><Message>{escape(str(error))}'
        f"</Message>{error.more}<Resource>{escape(about)}</Resource><RequestId>{request.number:016X}</RequestId></Error>",
        error.status,
    )


@lru_cache(maxsize=1024)
def http_date(second: int) -> str:
    return formatdate(second, usegmt=True)


@lru_cache(maxsize=1024)
def iso_date(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(second))


def parse_range(value: str, size: int) -> tuple[int, int] | None:
    """The start and stop of the bytes in a Range header; None for a header that S3 ignores.

    >>> parse_range("bytes=2-5", 10), parse_range("bytes=-3", 10), parse_range("bytes=8-99", 10)
    ((2, 6), (7, 10), (8, 10))
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", value)
    if not match or match[0] == "bytes=-" or (match[1] and match[2] and int(match[1]) > int(match[2])):
        return None
    if match[1]:
        start, stop = int(match[1]), int(match[2]) + 1 if match[2] else size
    else:
        start, stop = max(0, size - int(match[2])), size
    if start >= size:
        raise S3Error(416, "InvalidRange", "The requested range is not satisfiable")
    return start, min(stop, size)
