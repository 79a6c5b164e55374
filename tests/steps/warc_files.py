"""Makes WARC files, right ones and odd ones, and reads them."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

from stagger import Document, ReadWarc
from stagger.pipeline.task_context import TaskContext
from stagger.storage.storage import Storage

PAGE = "<html><body>größer als nichts</body></html>"


def response(index: int, block: bytes, *, kind: str = "response", length: int | None = None, more: str = "") -> bytes:
    """A record whose content is `block`: an HTTP header and a body. `length` may be wrong."""
    header = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{index}>\r\n"
        f"WARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Target-URI: http://a.example/{index}\r\n"
        f"Content-Type: application/http; msgtype={kind}\r\n{more}"
        f"Content-Length: {len(block) if length is None else length}\r\n\r\n"
    )
    return header.encode() + block + b"\r\n\r\n"


def page(index: int, body: bytes = PAGE.encode(), *fields: str, **options: Any) -> bytes:
    """A response with header `fields`; by default a page in UTF-8."""
    lines = ["HTTP/1.1 200 OK", *(fields or ("Content-Type: text/html; charset=utf-8",)), "", ""]
    return response(index, "\r\n".join(lines).encode() + body, **options)


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def zstd_framed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


#: File name ending -> compression of a record.
PACKED: dict[str, Callable[[bytes], bytes]] = {".warc.gz": gzipped, ".warc.zst": zstd_framed}


def bound(folder: Path, **options: Any) -> tuple[ReadWarc, TaskContext]:
    step = ReadWarc(str(folder), **options)
    task = TaskContext(Storage(), 0, 1, step.find_shards(Storage()), "tag")
    step.bind(task)
    return step, task


def read(folder: Path, data: bytes, name: str = "a.warc", **options: Any) -> tuple[list[Document], TaskContext]:
    (folder / name).write_bytes(data)
    step, task = bound(folder, **options)
    return list(step(None, 0, 1)), task


def texts(folder: Path, *records: bytes, **options: Any) -> list[str]:
    return [document.text for document in read(folder, b"".join(records), **options)[0]]


def ids(documents: list[Document]) -> list[int]:
    return [int(document.id[10:-1]) for document in documents]
