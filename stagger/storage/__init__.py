"""Bytes at any path: local files, S3, and any fsspec URL. Knows nothing of runs, plans or Slurm.

This file defines the types that all backends share; storage.py picks a backend by path. (They live in the package's
own file because every task imports it: one more file would cost each task six file-system calls.)
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import lt
from typing import NamedTuple, Protocol

#: Larger objects are sent in parts while they are written; up to this size, one PUT is cheaper.
ONE_PUT_BYTES = 64 * 2**20

#: Maximum requests to S3 that a process has in flight.
S3_CONNECTIONS = 32

#: How the version of a local file begins: its content may be the same under another version.
MTIME = "mtime:"


#: Bytes of a file after which isal's CRC-32, 14 times as fast as zlib's, is worth its import.
FEW_BYTES = 2**20


class Crc:
    """The CRC-32 of the bytes of a file, while they are written or read."""

    def __init__(self) -> None:
        self._value = 0
        self._few = FEW_BYTES
        self._add: Callable[[bytes, int], int] = zlib.crc32

    def add(self, data: bytes) -> None:
        if self._few > 0:
            self._few -= len(data)
            if self._few <= 0:
                from isal import isal_zlib

                self._add = isal_zlib.crc32
        self._value = self._add(data, self._value)

    def __str__(self) -> str:
        return f"crc32:{self._value:08x}"


class Entry(NamedTuple):
    """A file found below a folder: its path relative to that folder, and its size in bytes (-1 for a dangling link).

    The name of a folder marker, as some tools make them in object stores, ends with `/`; it is empty for the folder's
    own.

    `version` is an object store's identifier for this content (S3's ETag) or, for a local file, MTIME and its time of
    modification in nanoseconds; empty in other stores.
    """

    name: str
    size: int
    version: str = ""


class Files(NamedTuple):
    """Part of a listing, in columns, which cost less than an `Entry` for each file."""

    names: Sequence[str]
    sizes: Sequence[int]
    versions: Sequence[str]

    @classmethod
    def of(cls, entries: Iterable[tuple[str, int, str]]) -> Files:
        """The columns of entries or shards."""
        names, sizes, versions = list(zip(*entries, strict=True)) or ((), (), ())
        return cls(names, sizes, versions)

    def entries(self) -> Iterator[Entry]:
        return map(Entry._make, zip(*self, strict=True))


def ascending(names: Sequence[str]) -> bool:
    r"""Whether each name is greater than the one before it, by its code points: the order of S3, that of UTF-8's bytes.

    >>> ascending(["a", "a/b", "b"]), ascending(["a", "a"]), ascending(["\uffff", "\U00010000"])
    (True, False, True)
    """
    return all(map(lt, names, names[1:]))


class Output(Protocol):
    """A file being written: invisible under its final path until `commit`, discarded by `abort`.

    `version` identifies the finished content for `Backend.remove`; it is empty as long as it is not known.
    `digest` is the checksum of the finished content, as `stagger.storage.content` compares it: `crc32:...`, or for S3
    `md5:...`, the usual ETag.
    """

    path: str
    size: int
    version: str

    @property
    def digest(self) -> str: ...

    @property
    def pending(self) -> str:
        """What `Backend.revoke` removes to make the commit of a finished output impossible.

        A temporary file or a multipart upload. Empty for what one request writes: a condition protects its path.
        """

    @property
    def held(self) -> int:
        """Bytes buffered in memory."""

    def write(self, data: bytes) -> int: ...

    def pause(self) -> None:
        """Give up what only an open file needs, such as a descriptor, until the next `write`."""

    def finish(self) -> None:
        """Make everything written durable, but still invisible. After it, `commit` hardly ever fails."""

    def commit(self, confirm: Callable[[], None], replaces: str | None) -> None:
        """Make the file visible, but perhaps not yet durable: `Storage.settle` does that for many files at once.

        `confirm` raises when the writer has lost the right to commit. It is called when something else has happened to
        the file or the path meanwhile. `replaces` is the version that the path holds now: empty for
        nothing, None if that is not known.
        """

    def withdraw(self) -> None:
        """Remove the committed file, if the path still holds this one."""

    def abort(self) -> None: ...


class Backend(Protocol):
    """The operations that stagger needs from a file system or an object store."""

    def read(self, path: str) -> bytes: ...

    def read_range(self, path: str, start: int, end: int) -> bytes: ...

    def read_many(self, paths: list[str]) -> list[bytes | None]: ...

    def write(self, path: str, data: bytes, *, private: bool) -> None: ...

    def create(self, path: str, data: bytes) -> bool: ...

    def remove(self, path: str, version: str) -> None: ...

    def revoke(self, path: str, pending: str) -> None: ...

    def named(self, folder: str, start: str) -> list[str]: ...

    def listed(self, folder: str, *, recursive: bool) -> Iterator[Files]:
        """The files in a folder or, with `recursive`, below it, and its folder markers: many at a time.

        Those of one part are in order.
        """

    def entry(self, path: str) -> Entry | None: ...

    def stream(self, path: str, size: int, version: str) -> Iterator[bytes]: ...

    def output(self, path: str, tag: str, begin: Callable[[str], None], *, record: bool) -> Output: ...

    def abort_uploads(self, path: str) -> int: ...

    def make_folder(self, folder: str) -> None: ...

    def remove_leftovers(self, folder: str, tag: str) -> None: ...

    def check_writable(self, folder: str) -> None: ...


class RemoteBackend(Backend, Protocol):
    """A backend of object stores. S3's may be used by several threads at once."""

    @property
    def library(self) -> str:
        """The library that makes the requests, and why it is not the usual one."""

    def stream_part(
        self, path: str, size: int, version: str, span: tuple[int, int], waiting: Callable[[], None]
    ) -> Iterator[bytes]:
        """The bytes from the start to the end (exclusive) of `span`, like `stream`, and never more or fewer of them.

        `waiting` is called again and again while a retry is waited for, and may raise.
        """
