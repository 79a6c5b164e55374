"""The interface of an S3 engine: one HTTP request per call, tried once. store.py adds retries and resumption."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from stagger.storage import Entry
from stagger.storage.faults import WrongAnswer

#: Bytes per piece of a body: large enough to make handing it over cheap, small compared to the memory limit.
CHUNK_BYTES = 2**20

#: Keys per page of a listing: S3's maximum.
PAGE_KEYS = 1000


class Changed(Exception):
    """The object is no longer the requested version (412), or is gone where a PUT was to replace a version (404)."""


class Body(NamedTuple):
    """An object's content as it arrives. `version` is its ETag; `total` the whole object's bytes, -1 if unknown."""

    version: str
    chunks: Iterator[bytes]
    total: int = -1


class Page(NamedTuple):
    """Part of a listing: the objects' whole keys, their bytes and their ETags, in three lists of equal length.

    `more` is the token of the next page, empty on the last. `folders` stand for the keys below them.
    """

    names: list[str]
    sizes: list[int]
    versions: list[str]
    more: str
    folders: list[str]


class Uploader(Protocol):
    """The requests of multipart uploads. `keyed` is as in `Engine`."""

    @property
    def keyed(self) -> set[str]: ...

    def begin_upload(self, bucket: str, key: str) -> str: ...

    def put_part(self, bucket: str, key: str, upload: str, number: int, data: bytes) -> str:
        """Send part `number` (from 1). Returns its ETag."""

    def complete_upload(self, bucket: str, key: str, upload: str, parts: list[str]) -> str: ...

    def abort_upload(self, bucket: str, key: str, upload: str) -> None: ...


class Engine(Uploader, Protocol):
    """Raises its library's errors, but FileNotFoundError for 404, FileExistsError for 412 on create, and Changed.

    A PUT with `create` makes a new object (If-None-Match: *); with `match`, it replaces only the version with this ETag
    (If-Match). A PUT and a completed upload return the ETag that the store answered, empty if it has none. A delete
    with `match` deletes only that version. `keyed` holds the buckets that encrypt with keys (SSE-KMS, SSE-C), as far as
    the answers have shown: their ETags are no MD5s.
    """

    @property
    def name(self) -> str:
        """The library, or libraries, that it has used so far, and why not another."""

    def get(self, bucket: str, key: str, start: int, end: int | None, version: str) -> Body:
        """Bytes from `start` to `end` (exclusive; None: to the last byte), only of `version` if one is given.

        Empty if the object ends before `start`.
        """

    def put(self, bucket: str, key: str, data: bytes, *, create: bool = False, match: str = "") -> str: ...

    def delete(self, bucket: str, key: str, *, match: str = "") -> None: ...

    def head(self, bucket: str, key: str) -> Entry | None: ...

    def page(self, bucket: str, prefix: str, *, recursive: bool, more: str, after: str = "") -> Page:
        """The keys that begin with `prefix`, from the page `more`, or those after the key `after` (StartAfter)."""

    def has_bucket(self, bucket: str) -> bool: ...

    def uploads(self, bucket: str, prefix: str) -> list[tuple[str, str]]:
        """(key, upload id) of the uploads that were neither completed nor aborted."""


def quoted(etag: str) -> str:
    """An ETag in its standard form: some stores leave out its quotation marks in listings.

    >>> quoted("abc"), quoted('"abc"'), quoted('W/"abc"'), quoted("")
    ('"abc"', '"abc"', 'W/"abc"', '')
    """
    return etag if not etag or etag.endswith('"') else f'"{etag}"'


def check_range(answered: str, start: int, end: int | None) -> tuple[int, int]:
    """Bytes of the body, and of the whole object (-1: unknown), from the Content-Range that answers a ranged GET.

    Raises WrongAnswer when it is not the range from `start` to `end` (exclusive; None: to the last byte).

    >>> check_range("bytes 5-9/10", 5, None), check_range("bytes 5-6/*", 5, 7)
    ((5, 10), (2, -1))
    """
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answered.strip())
    asked = f"bytes {start}-{'' if end is None else end - 1}"
    if found is None:
        raise WrongAnswer(f"{asked} were requested, and the store answered with no range ({answered!r})")
    first, last, total = int(found[1]), int(found[2]), -1 if found[3] == "*" else int(found[3])
    wanted = [limit - 1 for limit in (end, None if total < 0 else total) if limit is not None]
    if first != start or (wanted and (last > min(wanted) or (total >= 0 and last < min(wanted)))):
        raise WrongAnswer(f"{asked} were requested, and the store answered with {answered.strip()}")
    return last - first + 1, total
