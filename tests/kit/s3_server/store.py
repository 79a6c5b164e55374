"""Objects, the buckets that hold them, and the sources of an object's bytes."""

from __future__ import annotations

import hashlib
import mmap
import time
from bisect import bisect_left, insort
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Protocol


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
    """A local file, mapped at its first read."""

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
    """Bytes computed from the key and the offset; they need no memory."""

    __slots__ = ("shift", "size")
    #: A prime number, so that a chunk from a wrong multiple of a common chunk size has wrong content.
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
    """Objects by key, and their keys in S3's listing order: by code point, which is also UTF-8's order."""

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
    """An ETag for content that has not been read; its suffix marks it as other than the content's MD5."""
    return f"{md5(repr(identity).encode())}-1"


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
