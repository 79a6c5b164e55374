"""An S3 engine: one HTTP request a call, tried once. Retries and resumption are `stagger.storage.s3.store`'s."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from stagger.storage import Entry

#: Bytes of a body handed on at a time: large enough that handing over costs nothing, small against the memory limit.
CHUNK_BYTES = 2**20

#: Keys in one page of a listing: what S3 gives at most.
PAGE_KEYS = 1000

#: Requests in flight at once, for many small objects.
CONNECTIONS = 32


class Changed(Exception):
    """The object is not the version that was asked for (412)."""


class Body(NamedTuple):
    """An object's content as it arrives; `version` is its ETag."""

    version: str
    chunks: Iterator[bytes]


class Page(NamedTuple):
    """Part of a listing; `more` continues it, empty at its end. Names are whole keys."""

    entries: list[Entry]
    more: str


class Engine(Protocol):
    """Errors are the engine's own, but for FileNotFoundError (404), FileExistsError (412 on create) and Changed."""

    def get(self, bucket: str, key: str, start: int, end: int | None, version: str) -> Body:
        """Bytes from `start` to `end` (exclusive; None: to the last), of `version` alone when one is given.

        Empty when the object ends before `start`.
        """

    def put(self, bucket: str, key: str, data: bytes, *, create: bool) -> None: ...

    def delete(self, bucket: str, key: str) -> None: ...

    def head(self, bucket: str, key: str) -> Entry | None: ...

    def page(self, bucket: str, prefix: str, *, recursive: bool, more: str) -> Page: ...

    def has_bucket(self, bucket: str) -> bool: ...

    def begin_upload(self, bucket: str, key: str) -> str: ...

    def put_part(self, bucket: str, key: str, upload: str, number: int, data: bytes) -> str:
        """Send part `number` (from 1). Returns its ETag."""

    def complete_upload(self, bucket: str, key: str, upload: str, parts: list[str]) -> None: ...

    def abort_upload(self, bucket: str, key: str, upload: str) -> None: ...

    def uploads(self, bucket: str, prefix: str) -> list[tuple[str, str]]:
        """(key, id) of the uploads that were begun and neither completed nor aborted."""
