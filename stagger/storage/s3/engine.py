"""The interface of an S3 engine: one HTTP request per call, tried once. store.py adds retries and resumption."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from stagger.storage import Entry

#: Bytes per piece of a body: large enough to make handing it over cheap, small compared to the memory limit.
CHUNK_BYTES = 2**20

#: Keys per page of a listing: S3's maximum.
PAGE_KEYS = 1000

#: Concurrent requests for many small objects.
CONNECTIONS = 32


class Changed(Exception):
    """The object is no longer the requested version (412), or is gone where a PUT was to replace a version (404)."""


class Body(NamedTuple):
    """An object's content as it arrives. `version` is its ETag."""

    version: str
    chunks: Iterator[bytes]


class Page(NamedTuple):
    """Part of a listing. `more` is the token of the next page, empty on the last. Names are whole keys."""

    entries: list[Entry]
    more: str


class Engine(Protocol):
    """Raises its library's errors, but FileNotFoundError for 404, FileExistsError for 412 on create, and Changed.

    A PUT or a completed upload with `create` makes a new object (If-None-Match: *); with `match`, it replaces only the
    version with this ETag (If-Match). Both return the ETag that the store answered. A delete with `match` deletes only
    that version.
    """

    def get(self, bucket: str, key: str, start: int, end: int | None, version: str) -> Body:
        """Bytes from `start` to `end` (exclusive; None: to the last byte), only of `version` if one is given.

        Empty if the object ends before `start`.
        """

    def put(self, bucket: str, key: str, data: bytes, *, create: bool = False, match: str = "") -> str: ...

    def delete(self, bucket: str, key: str, *, match: str = "") -> None: ...

    def head(self, bucket: str, key: str) -> Entry | None: ...

    def page(self, bucket: str, prefix: str, *, recursive: bool, more: str) -> Page: ...

    def has_bucket(self, bucket: str) -> bool: ...

    def begin_upload(self, bucket: str, key: str) -> str: ...

    def put_part(self, bucket: str, key: str, upload: str, number: int, data: bytes) -> str:
        """Send part `number` (from 1). Returns its ETag."""

    def complete_upload(
        self, bucket: str, key: str, upload: str, parts: list[str], *, create: bool = False, match: str = ""
    ) -> str: ...

    def abort_upload(self, bucket: str, key: str, upload: str) -> None: ...

    def uploads(self, bucket: str, prefix: str) -> list[tuple[str, str]]:
        """(key, upload id) of the uploads that were neither completed nor aborted."""
