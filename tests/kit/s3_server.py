"""An S3 server for load and fault tests: fast, seeded faults, counts of every request; standard library only.

As a program it prints one JSON line with its endpoint and runs until its standard input, if that is a pipe, is closed:

    python -m tests.kit.s3_server --bucket data --virtual data/shards/:1000:64M --rate 3500 --p-503 0.01 --seed 7

From tests: `with running("--bucket", "data") as server: server.set_faults(p_reset=0.1)`. Signatures are not checked.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import contextlib
import dataclasses
import gc
import hashlib
import itertools
import json
import mmap
import os
import re
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
import zlib
from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from random import Random
from typing import Any, Protocol
from urllib.parse import parse_qsl, quote, unquote
from urllib.request import Request as UrlRequest
from urllib.request import urlopen
from xml.etree import ElementTree
from xml.sax.saxutils import escape

SLICE = 256 * 1024
INBOX_LIMIT = 1024 * 1024
HEAD_LIMIT = 64 * 1024
MIN_PART = 5 * 1024 * 1024
PACED_SLICE = 64 * 1024
XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
ADMIN = "_admin"  # no bucket's name may start with an underscore


# ---- Contents: what an object's bytes come from ----


class Content(Protocol):
    size: int

    def read(self, start: int, stop: int) -> bytes | memoryview: ...


class Memory:
    __slots__ = ("data", "size")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read(self, start: int, stop: int) -> bytes | memoryview:
        return memoryview(self.data)[start:stop]


class Mapped:
    """A local file, mapped when it is first read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        self.view: memoryview | None = None

    def read(self, start: int, stop: int) -> memoryview:
        if self.view is None:
            with self.path.open("rb") as file:
                self.view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b"")
        return self.view[start:stop]


class Virtual:
    """Bytes that follow from the key and the offset alone, and need no memory."""

    __slots__ = ("shift", "size")
    #: A prime number of bytes: a chunk at the wrong multiple of a usual chunk size has the wrong content.
    PERIOD = 1_048_583
    NOISE = memoryview(Random(0).randbytes(PERIOD) * 2)

    def __init__(self, key: str, size: int) -> None:
        self.shift = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % self.PERIOD
        self.size = size

    def read(self, start: int, stop: int) -> bytes | memoryview:
        begin = (self.shift + start) % self.PERIOD
        if stop - start <= self.PERIOD:
            return self.NOISE[begin : begin + stop - start]
        whole = bytes(self.NOISE[begin : begin + self.PERIOD]) * ((stop - start) // self.PERIOD + 1)
        return memoryview(whole)[: stop - start]


# ---- Store ----


@dataclass(slots=True)
class StoredObject:
    content: Content
    etag: str
    headers: dict[str, str]
    modified: float


@dataclass
class Part:
    data: bytes
    etag: str
    modified: float


@dataclass
class Upload:
    key: str
    headers: dict[str, str]
    started: float
    parts: dict[int, Part] = field(default_factory=dict)


class Bucket:
    """Objects by key, and the keys in the order S3 lists them: by code point, as UTF-8 sorts too."""

    def __init__(self) -> None:
        self.objects: dict[str, StoredObject] = {}
        self.keys: list[str] = []
        self.uploads: dict[str, Upload] = {}

    def put(self, key: str, stored: StoredObject) -> None:
        if key not in self.objects:
            insort(self.keys, key)
        self.objects[key] = stored

    def fill(self, objects: dict[str, StoredObject]) -> None:
        self.objects.update(objects)
        self.keys = sorted(self.objects)

    def delete(self, key: str) -> None:
        if self.objects.pop(key, None):
            del self.keys[bisect_left(self.keys, key)]

    def add_virtual(self, prefix: str, count: int, size: int) -> None:
        now = time.time()
        keys = (f"{prefix}{index:08d}" for index in range(count))
        self.fill({key: StoredObject(Virtual(key, size), unhashed_etag(key, size), {}, now) for key in keys})

    def add_folder(self, folder: Path) -> None:
        found: dict[str, StoredObject] = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            content, key, modified = Mapped(path), path.relative_to(folder).as_posix(), path.stat().st_mtime
            found[key] = StoredObject(content, unhashed_etag(key, content.size, modified), {}, modified)
        self.fill(found)


def unhashed_etag(*identity: object) -> str:
    """An ETag of content that was not read; the suffix tells clients that it is not the content's MD5."""
    return f"{md5(repr(identity).encode())}-1"


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


# ---- Requests and responses ----


class S3Error(Exception):
    def __init__(self, status: int, code: str, message: str, more: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.more = more


def failed(condition: str) -> S3Error:
    message = "At least one of the pre-conditions you specified did not hold"
    return S3Error(412, "PreconditionFailed", message, f"<Condition>{condition}</Condition>")


NUMBERS = itertools.count(1)


class Request:
    """One request's head, and its body once that has come."""

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
        """The key, or the prefix that a request to a bucket is about."""
        return self.key or self.query.get("prefix", "")

    @property
    def declared(self) -> int:
        """How long the body says it will be."""
        headers = self.headers
        return int(headers.get("content-length") or headers.get("x-amz-decoded-content-length") or 0)

    def header(self, name: str) -> str:
        return self.headers.get(name, "")

    def decode_body(self) -> None:
        """Undo aws-chunked; check what the client says about the bytes."""
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
    """A request's body while it comes."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0
        self.trailers: dict[str, str] = {}
        self.done = False

    def feed(self, data: bytes, at: int) -> int:
        """Takes what is the body's own from data[at:]; where the rest begins."""
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
    """HTTP's chunked coding; aws-chunked is the same, its signatures are chunk extensions."""

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
        """Takes one chunk or one line of the trailer, if it is all there."""
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
    """An answer; `start` and `stop` say which bytes of the content are its body."""

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
    """The bytes a Range header asks for; None if it is none that S3 follows.

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


# ---- Operations ----

KEPT_HEADERS = ("content-type", "content-encoding", "cache-control", "content-disposition", "content-language")


def kept_headers(request: Request) -> dict[str, str]:
    found = {name: value for name, value in request.headers.items() if name.startswith("x-amz-meta-")}
    return {**{name: request.headers[name] for name in KEPT_HEADERS if request.header(name)}, **found}


def object_headers(stored: StoredObject) -> str:
    more = "".join(f"{name}: {value}\r\n" for name, value in stored.headers.items()) if stored.headers else ""
    kind = "" if "content-type" in stored.headers else "Content-Type: binary/octet-stream\r\n"
    date = http_date(int(stored.modified))
    return f'ETag: "{stored.etag}"\r\nLast-Modified: {date}\r\nAccept-Ranges: bytes\r\n{kind}{more}'


def etags(value: str) -> list[str]:
    return [etag.strip().removeprefix("W/").strip('"') for etag in value.split(",")]


def texts(body: bytes, record: str, *names: str) -> list[tuple[str, ...]]:
    """The named children of each `record` element, whatever their namespace."""
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError as error:
        raise S3Error(400, "MalformedXML", "The XML you provided was not well-formed.") from error
    found = root.findall(f"{{*}}{record}")
    return [tuple(item.findtext(f"{{*}}{name}") or "" for name in names) for item in found]


def after(prefix: str) -> str:
    """The first string behind all that start with this one."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def page(bucket: Bucket, prefix: str, delimiter: str, start: str, limit: int) -> tuple[list[str], list[str], str]:
    """Keys, common prefixes, and where the next page starts: "" after the last."""
    keys, found, folders = bucket.keys, list[str](), list[str]()
    at = bisect_left(keys, max(prefix, start))
    while at < len(keys) and keys[at].startswith(prefix):
        if len(found) + len(folders) == limit:
            return found, folders, keys[at]
        key = keys[at]
        end = key.find(delimiter, len(prefix)) if delimiter else -1
        if end < 0:
            found.append(key)
            at += 1
        else:
            folders.append(key[: end + len(delimiter)])
            at = bisect_left(keys, after(folders[-1]), at)
    return found, folders, ""


class S3:
    """The operations, each a method that answers a request or raises S3Error."""

    def __init__(self) -> None:
        self.buckets: dict[str, Bucket] = {}
        self.upload_ids = itertools.count(1)

    def bucket(self, request: Request) -> Bucket:
        if bucket := self.buckets.get(request.bucket):
            return bucket
        raise S3Error(404, "NoSuchBucket", "The specified bucket does not exist")

    def find(self, bucket: Bucket, key: str) -> StoredObject:
        if stored := bucket.objects.get(key):
            return stored
        raise S3Error(404, "NoSuchKey", "The specified key does not exist.")

    def upload(self, request: Request) -> Upload:
        found = self.bucket(request).uploads.get(request.query["uploadId"])
        if found is None or found.key != request.key:
            raise S3Error(404, "NoSuchUpload", "The specified upload does not exist, or was completed or aborted.")
        return found

    def list_buckets(self, _: Request) -> Response:
        date = iso_date(0)
        rows = (f"<Bucket><Name>{n}</Name><CreationDate>{date}</CreationDate></Bucket>" for n in sorted(self.buckets))
        return xml("ListAllMyBucketsResult", f"<Owner><ID>owner</ID></Owner><Buckets>{''.join(rows)}</Buckets>")

    def create_bucket(self, request: Request) -> Response:
        self.buckets.setdefault(request.bucket, Bucket())
        return Response(200, f"Location: /{request.bucket}\r\n")

    def head_bucket(self, request: Request) -> Response:
        self.bucket(request)
        return Response(200, "x-amz-bucket-region: us-east-1\r\n")

    def delete_bucket(self, request: Request) -> Response:
        if self.bucket(request).objects:
            raise S3Error(409, "BucketNotEmpty", "The bucket you tried to delete is not empty")
        del self.buckets[request.bucket]
        return Response(204)

    def get_bucket_location(self, request: Request) -> Response:
        self.bucket(request)
        return xml("LocationConstraint", "")

    def get_bucket_versioning(self, request: Request) -> Response:
        self.bucket(request)
        return xml("VersioningConfiguration", "")

    def list_objects_v2(self, request: Request) -> Response:
        bucket, query = self.bucket(request), request.query
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        token, begin = query.get("continuation-token", ""), query.get("start-after", "")
        limit = min(1000, int(query.get("max-keys", 1000)))
        start = f"{begin}\0" if begin else ""
        if token:
            try:
                start = base64.urlsafe_b64decode(token).decode()
            except (binascii.Error, UnicodeDecodeError) as error:
                raise S3Error(400, "InvalidArgument", "The continuation token provided is incorrect") from error
        keys, folders, following = page(bucket, prefix, delimiter, start, limit) if limit else ([], [], "")
        url = query.get("encoding-type") == "url"

        def text(value: str) -> str:
            return quote(value) if url else escape(value)

        fields = {
            "Name": request.bucket,
            "Prefix": text(prefix),
            "StartAfter": text(begin),
            "ContinuationToken": token,
            "NextContinuationToken": base64.urlsafe_b64encode(following.encode()).decode(),
            "KeyCount": str(len(keys) + len(folders)),
            "MaxKeys": str(limit),
            "Delimiter": text(delimiter),
            "IsTruncated": "true" if following else "false",
            "EncodingType": "url" if url else "",
        }
        rows = [f"<{name}>{value}</{name}>" for name, value in fields.items() if value or name == "Prefix"]
        for key in keys:
            stored = bucket.objects[key]
            rows.append(
                f"<Contents><Key>{text(key)}</Key><LastModified>{iso_date(int(stored.modified))}</LastModified>"
                f"<ETag>&quot;{stored.etag}&quot;</ETag><Size>{stored.content.size}</Size>"
                "<StorageClass>STANDARD</StorageClass></Contents>"
            )
        rows += [f"<CommonPrefixes><Prefix>{text(folder)}</Prefix></CommonPrefixes>" for folder in folders]
        return xml("ListBucketResult", "".join(rows))

    def get_object(self, request: Request) -> Response:
        stored = self.find(self.bucket(request), request.key)
        headers = request.headers
        if "if-match" in headers and not {"*", stored.etag} & set(etags(headers["if-match"])):
            raise failed("If-Match")
        if "if-none-match" in headers and {"*", stored.etag} & set(etags(headers["if-none-match"])):
            return Response(304, f'ETag: "{stored.etag}"\r\n')
        size = stored.content.size
        wanted = parse_range(headers["range"], size) if "range" in headers else None
        if wanted is None:
            return Response(200, object_headers(stored), stored.content, 0, size)
        start, stop = wanted
        more = f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n"
        return Response(206, object_headers(stored) + more, stored.content, start, stop)

    def put_object(self, request: Request) -> Response:
        bucket = self.bucket(request)
        request.decode_body()
        stored = StoredObject(Memory(request.body), md5(request.body), kept_headers(request), time.time())
        self.commit(bucket, request, stored)
        return Response(200, f'ETag: "{stored.etag}"\r\n')

    def commit(self, bucket: Bucket, request: Request, stored: StoredObject) -> None:
        if "if-match" in request.headers:
            current = self.find(bucket, request.key)
            if not {"*", current.etag} & set(etags(request.headers["if-match"])):
                raise failed("If-Match")
        if request.header("if-none-match") == "*" and request.key in bucket.objects:
            raise failed("If-None-Match")
        bucket.put(request.key, stored)

    def copy_object(self, request: Request) -> Response:
        name, _, key = unquote(request.headers["x-amz-copy-source"]).removeprefix("/").partition("/")
        if name not in self.buckets:
            raise S3Error(404, "NoSuchBucket", "The specified bucket does not exist")
        source = self.find(self.buckets[name], key.partition("?versionId=")[0])
        headers = kept_headers(request) if request.header("x-amz-metadata-directive") == "REPLACE" else source.headers
        stored = StoredObject(source.content, source.etag, headers, time.time())
        self.commit(self.bucket(request), request, stored)
        date = iso_date(int(stored.modified))
        return xml("CopyObjectResult", f"<LastModified>{date}</LastModified><ETag>&quot;{stored.etag}&quot;</ETag>")

    def delete_object(self, request: Request) -> Response:
        self.bucket(request).delete(request.key)
        return Response(204)

    def delete_objects(self, request: Request) -> Response:
        bucket = self.bucket(request)
        request.decode_body()
        keys = [key for (key,) in texts(request.body, "Object", "Key")]
        for key in keys:
            bucket.delete(key)
        quiet = b"<Quiet>true</Quiet>" in request.body
        rows = (f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        return xml("DeleteResult", "" if quiet else "".join(rows))

    def create_multipart_upload(self, request: Request) -> Response:
        name = f"upload-{next(self.upload_ids):08d}"
        self.bucket(request).uploads[name] = Upload(request.key, kept_headers(request), time.time())
        body = f"<Bucket>{request.bucket}</Bucket><Key>{escape(request.key)}</Key><UploadId>{name}</UploadId>"
        return xml("InitiateMultipartUploadResult", body)

    def upload_part(self, request: Request) -> Response:
        upload, number = self.upload(request), int(request.query["partNumber"])
        if not 1 <= number <= 10_000:
            raise S3Error(400, "InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive")
        request.decode_body()
        part = Part(request.body, md5(request.body), time.time())
        upload.parts[number] = part
        return Response(200, f'ETag: "{part.etag}"\r\n')

    def complete_multipart_upload(self, request: Request) -> Response:
        upload = self.upload(request)
        chosen = [(int(n), etag.strip('"')) for n, etag in texts(request.body, "Part", "PartNumber", "ETag")]
        if not chosen:
            raise S3Error(400, "MalformedXML", "The XML you provided did not name a part.")
        if any(left >= right for (left, _), (right, _) in itertools.pairwise(chosen)):
            raise S3Error(400, "InvalidPartOrder", "The list of parts was not in ascending order.")
        if any(number not in upload.parts or upload.parts[number].etag != etag for number, etag in chosen):
            raise S3Error(400, "InvalidPart", "One or more of the specified parts could not be found.")
        parts = [upload.parts[number] for number, _ in chosen]
        if any(len(part.data) < MIN_PART for part in parts[:-1]):
            raise S3Error(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size")
        etag = f"{md5(b''.join(bytes.fromhex(part.etag) for part in parts))}-{len(parts)}"
        content = Memory(b"".join(part.data for part in parts))
        self.commit(self.bucket(request), request, StoredObject(content, etag, upload.headers, time.time()))
        del self.bucket(request).uploads[request.query["uploadId"]]
        body = f"<Bucket>{request.bucket}</Bucket><Key>{escape(request.key)}</Key><ETag>&quot;{etag}&quot;</ETag>"
        return xml("CompleteMultipartUploadResult", body)

    def abort_multipart_upload(self, request: Request) -> Response:
        self.upload(request)
        del self.bucket(request).uploads[request.query["uploadId"]]
        return Response(204)

    def list_multipart_uploads(self, request: Request) -> Response:
        prefix = request.query.get("prefix", "")
        uploads = sorted(self.bucket(request).uploads.items(), key=lambda item: (item[1].key, item[0]))
        rows = (
            f"<Upload><Key>{escape(upload.key)}</Key><UploadId>{name}</UploadId>"
            f"<Initiated>{iso_date(int(upload.started))}</Initiated></Upload>"
            for name, upload in uploads
            if upload.key.startswith(prefix)
        )
        body = f"<Bucket>{request.bucket}</Bucket><Prefix>{escape(prefix)}</Prefix><IsTruncated>false</IsTruncated>"
        return xml("ListMultipartUploadsResult", body + "".join(rows))

    def list_parts(self, request: Request) -> Response:
        rows = (
            f"<Part><PartNumber>{number}</PartNumber><LastModified>{iso_date(int(part.modified))}</LastModified>"
            f"<ETag>&quot;{part.etag}&quot;</ETag><Size>{len(part.data)}</Size></Part>"
            for number, part in sorted(self.upload(request).parts.items())
        )
        body = f"<Bucket>{request.bucket}</Bucket><Key>{escape(request.key)}</Key><IsTruncated>false</IsTruncated>"
        return xml("ListPartsResult", body + f"<UploadId>{request.query['uploadId']}</UploadId>" + "".join(rows))


Operation = Callable[[S3, Request], Response]

#: By method and by what is addressed: the query parameter that selects an operation, its name, its method.
OPERATIONS: dict[tuple[str, str], tuple[tuple[str, str, Operation], ...]] = {
    ("GET", "service"): (("", "ListBuckets", S3.list_buckets),),
    ("PUT", "bucket"): (("", "CreateBucket", S3.create_bucket),),
    ("HEAD", "bucket"): (("", "HeadBucket", S3.head_bucket),),
    ("DELETE", "bucket"): (("", "DeleteBucket", S3.delete_bucket),),
    ("POST", "bucket"): (("delete", "DeleteObjects", S3.delete_objects),),
    ("GET", "bucket"): (
        ("list-type", "ListObjectsV2", S3.list_objects_v2),
        ("uploads", "ListMultipartUploads", S3.list_multipart_uploads),
        ("location", "GetBucketLocation", S3.get_bucket_location),
        ("versioning", "GetBucketVersioning", S3.get_bucket_versioning),
    ),
    ("HEAD", "object"): (("", "HeadObject", S3.get_object),),
    ("GET", "object"): (("uploadId", "ListParts", S3.list_parts), ("", "GetObject", S3.get_object)),
    ("PUT", "object"): (("partNumber", "UploadPart", S3.upload_part), ("", "PutObject", S3.put_object)),
    ("POST", "object"): (
        ("uploads", "CreateMultipartUpload", S3.create_multipart_upload),
        ("uploadId", "CompleteMultipartUpload", S3.complete_multipart_upload),
    ),
    ("DELETE", "object"): (
        ("uploadId", "AbortMultipartUpload", S3.abort_multipart_upload),
        ("", "DeleteObject", S3.delete_object),
    ),
}
#: Query parameters that ask for something else than the object or bucket itself, and that nothing here answers.
UNSUPPORTED = {"acl", "attributes", "cors", "lifecycle", "policy", "retention", "tagging", "versions"}


def route(request: Request) -> tuple[str, Operation | None]:
    """The kind of a request, and what answers it: None for what this server does not do."""
    if "x-amz-copy-source" in request.headers:
        return ("UploadPartCopy", None) if "partNumber" in request.query else ("CopyObject", S3.copy_object)
    level = "object" if request.key else "bucket" if request.bucket else "service"
    if not UNSUPPORTED.isdisjoint(request.query):
        return "Unsupported", None
    for selector, kind, operation in OPERATIONS.get((request.method, level), ()):
        if not selector or selector in request.query:
            return kind, operation
    return "Unsupported", None


# ---- Faults and limits ----


@dataclass(frozen=True)
class Settings:
    """What goes wrong, and for which requests. All off by default."""

    rate: float | None = None  # requests/s of a token bucket; what is over it gets 503 SlowDown
    burst: float | None = None  # tokens of a full bucket; one second's worth unless given
    latency: float = 0.0  # s before the first byte of the answer
    jitter: float = 0.0  # s, uniform, on top of the latency
    bandwidth: float | None = None  # bytes/s of each connection, both ways
    p_503: float = 0.0
    p_500: float = 0.0
    p_reset: float = 0.0  # GET and HEAD: half before the answer, half within its body
    p_truncate: float = 0.0  # GetObject: the right Content-Length, half of the body, end of the connection
    p_reset_put: float = 0.0  # PUT, POST, DELETE: half within the request's body, half done but not answered
    seed: int = 0
    only: tuple[str, ...] = ()  # methods or kinds that get the above; all if empty
    prefix: str = ""  # keys that get the above
    deny: str | None = None  # keys below this prefix get 403
    require_auth: bool = False  # requests that are not signed get 403

    def __post_init__(self) -> None:
        if self.p_503 + self.p_500 + max(self.p_reset + self.p_truncate, self.p_reset_put) > 1:
            raise ValueError("the probabilities of one request's faults add up to more than 1")

    @classmethod
    def of(cls, values: dict[str, Any]) -> Settings:
        names = [known.name for known in dataclasses.fields(cls)]
        if unknown := sorted(values.keys() - set(names)):
            raise ValueError(f"unknown {', '.join(unknown)}; there are {', '.join(names)}")
        return cls(**{**values, "only": tuple(values.get("only", ()))})


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to happen to one request."""

    fault: str = ""
    latency: float = 0.0
    bandwidth: float | None = None


UNDISTURBED = Plan()

REFUSALS = {
    "rate": S3Error(503, "SlowDown", "Please reduce your request rate."),
    "503": S3Error(503, "SlowDown", "Please reduce your request rate."),
    "500": S3Error(500, "InternalError", "We encountered an internal error. Please try again."),
    "denied": S3Error(403, "AccessDenied", "Access Denied"),
    "auth": S3Error(403, "AccessDenied", "Access Denied"),
}


@dataclass
class TokenBucket:
    rate: float
    burst: float
    at: float

    def __post_init__(self) -> None:
        self.tokens = self.burst

    def take(self, now: float) -> bool:
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Pacer:
    """The schedule of a transfer at a steady rate; time lost to the other side is not made up for beyond 0.25 s."""

    CREDIT_S = 0.25

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self.start = now
        self.done = 0
        self.slice = max(1, min(PACED_SLICE, int(rate / 50)))

    def due(self, now: float) -> int:
        """Bytes that should have passed by now and have not."""
        self.start = max(self.start, now - self.CREDIT_S - self.done / self.rate)
        return int((now - self.start) * self.rate) - self.done

    def wait(self, size: int, now: float) -> float:
        """Seconds until so many bytes more are due."""
        return self.start + (self.done + size) / self.rate - now


class Faults:
    """Decides each request's fate from the seed, what it asks for, and how often that was asked for before.

    The order in which concurrent requests arrive does not matter, except to the token bucket.
    """

    def __init__(self, settings: Settings, now: float) -> None:
        self.settings = settings
        self.off = settings == Settings(seed=settings.seed)
        self.asked: Counter[str] = Counter()
        self.tokens: TokenBucket | None = None
        if settings.rate is not None:
            self.tokens = TokenBucket(settings.rate, settings.burst or max(1.0, settings.rate), now)

    def plan(self, request: Request, now: float) -> Plan:
        settings = self.settings
        if self.off:
            return UNDISTURBED
        if settings.require_auth and not ("authorization" in request.headers or "X-Amz-Signature" in request.query):
            return Plan("auth")
        if settings.deny is not None and request.subject.startswith(settings.deny):
            return Plan("denied")
        if not request.subject.startswith(settings.prefix) or (
            settings.only and request.method not in settings.only and request.kind not in settings.only
        ):
            return UNDISTURBED
        which, when, how_long = self.draw(request)
        fault = "rate" if self.tokens and not self.tokens.take(now) else self.pick(request, which, when)
        return Plan(fault, settings.latency + settings.jitter * how_long, settings.bandwidth)

    def draw(self, request: Request) -> tuple[float, float, float]:
        detail = request.header("range") or request.query.get("partNumber", "")
        identity = f"{self.settings.seed} {request.kind} {request.subject} {detail}"
        self.asked[identity] += 1
        digest = hashlib.blake2b(f"{identity} {self.asked[identity]}".encode(), digest_size=24).digest()
        first, second, third = struct.unpack(">QQQ", digest)
        return first / 2**64, second / 2**64, third / 2**64

    def pick(self, request: Request, which: float, when: float) -> str:
        settings, reads = self.settings, request.method in ("GET", "HEAD")
        chances = {
            "503": settings.p_503,
            "500": settings.p_500,
            "reset": settings.p_reset if reads else 0.0,
            "truncate": settings.p_truncate if request.kind == "GetObject" else 0.0,
            "put": settings.p_reset_put if not reads else 0.0,
        }
        for fault, chance in chances.items():
            if which < chance:
                if fault == "reset":
                    return "reset_before" if when < 0.5 or request.method == "HEAD" else "reset_body"
                if fault == "put":
                    return "put_cut" if when < 0.5 else "put_lost"
                return fault
            which -= chance
        return ""


# ---- Counts ----


class SlidingPeak:
    """The most events within any window of so many seconds."""

    def __init__(self, window: float) -> None:
        self.window = window
        self.recent: deque[float] = deque()
        self.peak = 0

    def add(self, now: float) -> None:
        recent = self.recent
        recent.append(now)
        while recent[0] <= now - self.window:
            recent.popleft()
        if len(recent) > self.peak:
            self.peak = len(recent)


class Stats:
    def __init__(self, now: float, log_size: int) -> None:
        self.since = now
        self.requests: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.faults: Counter[str] = Counter()
        self.seconds: Counter[int] = Counter()
        self.peaks = {"peak_1s": SlidingPeak(1.0), "peak_100ms": SlidingPeak(0.1)}
        self.windows = tuple(self.peaks.values())
        self.log: deque[tuple[str, str, str, int]] = deque(maxlen=log_size)
        self.bytes_in = 0
        self.bytes_out = 0

    def arrived(self, request: Request, now: float) -> None:
        self.requests[request.kind] += 1
        self.seconds[int(now - self.since)] += 1
        for window in self.windows:
            window.add(now)
        if request.plan.fault:
            self.faults[request.plan.fault] += 1

    def answered(self, request: Request, status: int) -> None:
        self.statuses[status] += 1
        self.log.append((request.kind, request.subject, request.headers.get("range", ""), status))

    def report(self) -> dict[str, Any]:
        return {
            "requests": dict(self.requests),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "faults": dict(self.faults),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            **{name: window.peak for name, window in self.peaks.items()},
            "per_second": [self.seconds[second] for second in range(max(self.seconds, default=-1) + 1)],
        }


# ---- The server ----


class Server:
    """What all connections share."""

    def __init__(self, clock: Callable[[], float], settings: Settings, log_size: int) -> None:
        self.clock = clock
        self.s3 = S3()
        self.log_size = log_size
        self.connections = Counter(open=0, peak=0, total=0)
        self.restart(settings)

    def restart(self, settings: Settings) -> None:
        self.stats = Stats(self.clock(), self.log_size)
        self.faults = Faults(settings, self.clock())

    def connected(self) -> None:
        counts = self.connections
        counts["open"] += 1
        counts["total"] += 1
        counts["peak"] = max(counts["peak"], counts["open"])

    def admit(self, request: Request) -> None:
        """Count a request and decide its fate, when its head is there."""
        if request.bucket == ADMIN:
            request.kind = ADMIN
            return
        now = self.clock()
        request.kind, request.operation = route(request)
        request.plan = self.faults.plan(request, now)
        self.stats.arrived(request, now)

    def answer(self, request: Request) -> Response | None:
        """What the client is told; None if the connection breaks without a word."""
        if request.kind == ADMIN:
            return self.administer(request)
        fault = request.plan.fault
        response: Response | None = None
        if fault in REFUSALS:
            response = error_response(REFUSALS[fault], request)
        elif fault not in ("reset_before", "put_cut"):
            response = self.perform(request)
            if fault == "put_lost":
                response = None
        self.stats.answered(request, response.status if response else 0)
        return response

    def perform(self, request: Request) -> Response:
        try:
            if request.operation is None:
                raise S3Error(501, "NotImplemented", "A header or query you provided asks for what is not implemented.")
            return request.operation(self.s3, request)
        except S3Error as error:
            return error_response(error, request)
        except (ValueError, LookupError) as error:
            return error_response(S3Error(400, "InvalidArgument", str(error)), request)

    def administer(self, request: Request) -> Response:
        answer: Any = None
        try:
            match request.method, request.key:
                case "GET", "stats":
                    answer = self.report()
                case "GET", "log":
                    answer = list(self.stats.log)
                case "GET", "faults":
                    answer = dataclasses.asdict(self.faults.settings)
                case "PUT", "faults":
                    self.faults = Faults(Settings.of(json.loads(request.body)), self.clock())
                    answer = dataclasses.asdict(self.faults.settings)
                case "POST", "reset":
                    self.restart(self.faults.settings)
                case "PUT", "virtual":
                    self.add_virtual(**json.loads(request.body))
                case _:
                    return Response.of('"no such admin request"', 404, "application/json")
        except (ValueError, TypeError) as error:
            return Response.of(json.dumps(str(error)), 400, "application/json")
        return Response.of(json.dumps(answer), content_type="application/json")

    def add_virtual(self, bucket: str, prefix: str, count: int, size: int) -> None:
        self.s3.buckets.setdefault(bucket, Bucket()).add_virtual(prefix, count, size)

    def report(self) -> dict[str, Any]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            **self.stats.report(),
            "open_uploads": sum(len(bucket.uploads) for bucket in self.s3.buckets.values()),
            "connections": dict(self.connections),
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "peak_memory": usage.ru_maxrss * 1024,
        }


class Connection(asyncio.Protocol):
    """One client: takes requests one after the other, in the order they came."""

    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self.server = server
        self.inbox = b""
        self.at = 0  # where the unread part of the inbox begins
        self.request: Request | None = None
        self.body: Body | None = None
        self.content: Content | None = None
        self.position = self.stop = 0
        self.pacer: Pacer | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.busy = False  # an answer is not finished, or there will be no more
        self.paused = False  # the client does not read
        self.advancing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.connected()

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections["open"] -= 1
        self.busy = True
        self.content = self.body = None
        if self.timer:
            self.timer.cancel()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self.content and not self.timer:
            self.pump()
        else:
            self.advance()

    def data_received(self, data: bytes) -> None:
        self.inbox = self.inbox[self.at :] + data if self.at < len(self.inbox) else data
        self.at = 0
        if not (self.busy or self.paused):
            self.advance()
        elif len(self.inbox) > INBOX_LIMIT:
            self.transport.pause_reading()

    def advance(self) -> None:
        """Take up what has arrived, until an answer has to wait."""
        if self.advancing:
            return
        self.advancing = True
        try:
            while not (self.busy or self.paused) and self.at < len(self.inbox) and self.take_up():
                pass
        except ValueError:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.close()
        self.advancing = False
        if not self.busy:
            self.transport.resume_reading()

    def take_up(self) -> bool:
        if self.body:
            before = self.body.size
            self.at = self.body.feed(self.inbox, self.at)
            self.received(self.body, self.body.size - before)
            return True
        end = self.inbox.find(b"\r\n\r\n", self.at)
        if end < 0:
            if len(self.inbox) - self.at > HEAD_LIMIT:
                raise ValueError("the head does not end")
            return False
        head, self.at = self.inbox[self.at : end], end + 4
        self.begin(Request(head))
        return True

    def begin(self, request: Request) -> None:
        self.server.admit(request)
        self.request, headers = request, request.headers
        bandwidth = request.plan.bandwidth
        self.pacer = Pacer(bandwidth, self.server.clock()) if bandwidth else None
        if headers.get("transfer-encoding", "").lower() == "chunked":
            self.body = ChunkedBody()
        elif (length := int(headers.get("content-length") or 0)) > 0:
            self.body = LengthBody(length)
        if self.body is None:
            self.dispatch()
        elif headers.get("expect", "").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def received(self, body: Body, size: int) -> None:
        """Some bytes of the body are there."""
        assert self.request is not None
        if self.request.kind != ADMIN:
            self.server.stats.bytes_in += size
        if self.request.plan.fault == "put_cut" and (body.done or body.size * 2 >= self.request.declared):
            self.dispatch()
            return
        if body.done:
            self.request.body, self.request.trailers, self.body = body.data(), body.trailers, None
        then = self.dispatch if body.done else self.go_on
        wait = 0.0
        if self.pacer:
            self.pacer.done += size
            wait = self.pacer.wait(0, self.server.clock())
        if wait > 0:
            self.wait(wait, then)
        elif body.done:
            self.dispatch()

    def wait(self, seconds: float, then: Callable[[], None]) -> None:
        self.busy = True
        self.timer = asyncio.get_running_loop().call_later(seconds, self.wake, then)

    def wake(self, then: Callable[[], None]) -> None:
        self.timer = None
        then()

    def go_on(self) -> None:
        self.busy = False
        self.advance()

    def dispatch(self) -> None:
        assert self.request is not None
        request = self.request
        response = self.server.answer(request)
        if response is None:
            self.wait(request.plan.latency, self.reset)
        elif request.plan.latency:
            self.wait(request.plan.latency, lambda: self.send(response))
        else:
            self.send(response)

    def send(self, response: Response) -> None:
        assert self.request is not None
        request, head = self.request, response.head(self.request.number)
        start, stop, content = response.start, response.stop, response.content
        if content is None or request.method == "HEAD":
            stop = start
        if request.plan.fault in ("reset_body", "truncate"):
            if stop == start:  # the head alone would be a whole answer
                self.end()
                return
            stop = start + (stop - start) // 2
        if self.pacer is None and stop - start <= SLICE:
            body = content.read(start, stop) if content and stop > start else b""
            self.count_out(stop - start)
            self.transport.write(b"".join((head, body)))
            self.end()
            return
        self.transport.write(head)
        self.busy = True
        self.content, self.position, self.stop = content, start, stop
        if self.pacer:
            self.pacer = Pacer(self.pacer.rate, self.server.clock())
        self.pump()

    def pump(self) -> None:
        """Write on until the client is full, the schedule says to wait, or all is written."""
        while self.position < self.stop and not (self.paused or self.transport.is_closing()):
            size = min(SLICE, self.stop - self.position)
            if self.pacer:
                now, least = self.server.clock(), min(self.pacer.slice, size)
                size = min(size, self.pacer.due(now))
                if size < least:
                    self.wait(self.pacer.wait(least, now), self.pump)
                    return
                self.pacer.done += size
            assert self.content is not None
            self.transport.write(self.content.read(self.position, self.position + size))
            self.position += size
            self.count_out(size)
        if self.position == self.stop:
            self.content = None
            self.end()

    def count_out(self, size: int) -> None:
        assert self.request is not None
        if self.request.kind != ADMIN:
            self.server.stats.bytes_out += size

    def end(self) -> None:
        """The answer is written, as far as it was to be."""
        assert self.request is not None
        request, self.request = self.request, None
        if request.plan.fault == "reset_body":
            self.reset()
        elif request.plan.fault == "truncate" or request.headers.get("connection", "").lower() == "close":
            self.close()
        else:
            self.go_on()

    def close(self) -> None:
        self.busy = True
        self.transport.close()

    def reset(self) -> None:
        self.busy = True
        if self.transport.is_closing():
            return
        # A zero linger time makes the kernel send RST, not FIN.
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


# ---- The program ----


def parse_size(text: str) -> int:
    """Bytes, or KiB, MiB, GiB.

    >>> parse_size("64M"), parse_size("1000")
    (67108864, 1000)
    """
    exponent = " KMGT".find(text[-1])
    return int(text) if exponent < 0 else int(float(text[:-1]) * 1024**exponent)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=0, help="0 chooses a free one")
    options.add_argument("--log", type=int, default=100_000, help="requests that the log holds")
    options.add_argument("--bucket", action="append", default=[], help="a bucket that is there from the start")
    options.add_argument("--virtual", action="append", default=[], metavar="BUCKET/PREFIX:COUNT:SIZE")
    options.add_argument("--serve", action="append", default=[], metavar="BUCKET=DIR", help="the files of a folder")
    faults = options.add_argument_group("faults", "off unless given; see also PUT /_admin/faults")
    for name in ("rate", "burst", "latency", "jitter", "bandwidth", "p-503", "p-500", "p-reset", "p-truncate"):
        faults.add_argument(f"--{name}", type=float)
    faults.add_argument("--p-reset-put", type=float)
    faults.add_argument("--seed", type=int)
    faults.add_argument("--only", action="append", metavar="METHOD|KIND")
    faults.add_argument("--prefix", metavar="PREFIX", help="the keys that get faults")
    faults.add_argument("--deny", metavar="PREFIX", help="keys that are refused with 403")
    faults.add_argument("--require-auth", action="store_true", default=None)
    return options


def prepare(server: Server, given: argparse.Namespace) -> None:
    for name in given.bucket:
        server.s3.buckets.setdefault(name, Bucket())
    for text in given.virtual:
        path, count, size = text.rsplit(":", 2)
        bucket, _, prefix = path.partition("/")
        server.add_virtual(bucket, prefix, int(count), parse_size(size))
    for text in given.serve:
        bucket, _, folder = text.partition("=")
        server.s3.buckets.setdefault(bucket, Bucket()).add_folder(Path(folder))


async def serve(given: argparse.Namespace, settings: Settings) -> None:
    loop = asyncio.get_running_loop()
    server = Server(loop.time, settings, given.log)
    prepare(server, given)
    gc.collect()
    gc.freeze()
    listener = await loop.create_server(lambda: Connection(server), given.host, given.port, backlog=4096)
    host, port = listener.sockets[0].getsockname()[:2]
    print(json.dumps({"endpoint": f"http://{host}:{port}", "port": port, "pid": os.getpid()}), flush=True)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    mode = os.fstat(0).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        loop.add_reader(0, lambda: None if os.read(0, 4096) else ended.set())
    await ended.wait()


def main() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65536)), hard))
    options = parser()
    given = options.parse_args()
    names = [known.name for known in dataclasses.fields(Settings)]
    try:
        settings = Settings.of({name: getattr(given, name) for name in names if getattr(given, name) is not None})
    except ValueError as error:
        options.error(str(error))
    asyncio.run(serve(given, settings))


# ---- For tests ----


@dataclass(frozen=True)
class S3Server:
    """A running server, seen from the process that started it."""

    endpoint: str
    pid: int

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = self.admin("GET", "stats")
        return found

    def log(self) -> list[tuple[str, str, str, int]]:
        """(kind, key or prefix, range, status) of each request, oldest first; status 0 if it was not answered."""
        return [tuple(entry) for entry in self.admin("GET", "log")]

    def set_faults(self, **settings: Any) -> None:
        """Sets what goes wrong: see `Settings`; what is not named is off."""
        self.admin("PUT", "faults", settings)

    def reset(self) -> None:
        """Counts and log start again, and so do the faults' seed and token bucket; objects stay."""
        self.admin("POST", "reset")

    def add_virtual(self, bucket: str, prefix: str, count: int, size: int) -> None:
        """Objects `{prefix}00000000` and so on, that take no memory."""
        self.admin("PUT", "virtual", {"bucket": bucket, "prefix": prefix, "count": count, "size": size})

    def admin(self, method: str, name: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urlopen(UrlRequest(f"{self.endpoint}/{ADMIN}/{name}", data, method=method), timeout=60) as response:
            return json.load(response)


@contextlib.contextmanager
def running(*options: str | int | float | Path) -> Iterator[S3Server]:
    """A server in a process of its own, with the program's options, until the block ends."""
    command = [sys.executable, __file__, *map(str, options)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            started = json.loads(process.stdout.readline())
            yield S3Server(started["endpoint"], started["pid"])
        finally:
            process.stdin.close()


if __name__ == "__main__":
    main()
