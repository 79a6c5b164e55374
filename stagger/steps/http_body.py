"""The body of an HTTP response in a WARC record: reads its header, and undoes transfer and content encodings."""

from __future__ import annotations

import codecs
import io
import re
import zlib
from collections.abc import Callable

from stagger.errors import BadRecord, missing_extra

#: Bytes per read when a record is skipped.
PIECE_BYTES = 128 * 2**10

#: Bytes at the start of a page that are searched for its charset: browsers search 1024, authors are less careful.
META_BYTES = 2048

#: Leading bytes of gzip data.
GZIP = b"\x1f\x8b"

_HTTP_FIELDS = re.compile(rb"\n(?i:(content-(?:type|encoding)|transfer-encoding)):[ \t]*([^\r\n]*)")
_FOLD = re.compile(rb"\r?\n[ \t]+")


def http_fields(head: bytes) -> dict[bytes, bytes]:
    """The HTTP header fields that determine how to read the body, by lower-case name."""
    if b"\n " in head or b"\n\t" in head:
        head = _FOLD.sub(b" ", head)
    return {name.lower(): value for name, value in _HTTP_FIELDS.findall(head)}


def divided(block: bytes) -> tuple[bytes, bytes]:
    """The header and the body of a response, split at the first empty line."""
    for end in (b"\r\n\r\n", b"\n\n"):
        if (place := block.find(end)) >= 0:
            return block[: place + 2], block[place + len(end) :]
    return block, b""


def looks_decoded(body: bytes) -> bool:
    """Whether a body looks like an unencoded page."""
    return body[:META_BYTES].removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"<"


def decoded(body: bytes, http: dict[bytes, bytes], truncated: bool, limit: int | None) -> bytes:
    """The body without its transfer and content encodings; empty if it then has more than `limit` bytes.

    Many crawlers decode the body but keep the original header: a body that is not in the declared encoding is returned
    as it is. Raises BadRecord for a damaged body, and for an incomplete one unless `truncated` is set.
    """
    codings = http.get(b"content-encoding", b"") + b"," + http.get(b"transfer-encoding", b"")
    for name in reversed([coding.strip().lower() for coding in codings.split(b",")]):
        undo = CODINGS.get(name)
        if undo is None or not body:
            continue
        try:
            body, whole = undo(body, -1 if limit is None else limit + 1)
        except (ValueError, OSError, zlib.error) as error:
            raise BadRecord("encoding", f"the body cannot be decoded as {name.decode()}: {error}") from error
        if limit is not None and len(body) > limit:
            return b""
        if not whole and not truncated:
            raise BadRecord("encoding", f"the body breaks off: its {name.decode()} encoding has no end")
    return body


def unchunked(body: bytes, _limit: int) -> tuple[bytes, bool]:
    chunks: list[bytes] = []
    place = 0
    while (end := body.find(b"\n", place)) >= 0:
        size = chunk_size(body[place:end])
        if size is None:
            if not chunks:
                return body, True
            raise ValueError(f"no chunk begins at its byte {place}")
        if not size:
            return b"".join(chunks), True
        chunks.append(body[end + 1 : end + 1 + size])
        place = end + 3 + size
        if place <= len(body) and body[place - 2 : place] != b"\r\n":
            raise ValueError(f"no chunk ends at its byte {place - 2}")
    return (b"".join(chunks), False) if chunks else (body, True)


def chunk_size(line: bytes) -> int | None:
    digits = line.partition(b";")[0].strip()
    return int(digits, 16) if 0 < len(digits) <= 16 and not digits.strip(b"0123456789abcdefABCDEF") else None


def inflated(body: bytes, limit: int, wbits: int) -> tuple[bytes, bool]:
    """All streams in the body, joined: a gzip file may have several members."""
    parts: list[bytes] = []
    size = 0
    while limit < 0 or size < limit:
        stream = zlib.decompressobj(wbits)
        parts.append(stream.decompress(body, max(limit - size, 0)))
        size += len(parts[-1])
        body = stream.unused_data
        if not stream.eof or not body.startswith(GZIP):
            return b"".join(parts), stream.eof
    return b"".join(parts), True


def ungzipped(body: bytes, limit: int) -> tuple[bytes, bool]:
    return inflated(body, limit, 31) if body.startswith(GZIP) else (body, True)


def undeflated(body: bytes, limit: int) -> tuple[bytes, bool]:
    """The body inflated. HTTP's deflate is a zlib stream, but some servers send raw deflate data."""
    if looks_decoded(body):
        return body, True
    try:
        return inflated(body, limit, 15)
    except zlib.error:
        return inflated(body, limit, -15)


def unbrotlied(body: bytes, limit: int) -> tuple[bytes, bool]:
    if looks_decoded(body):
        return body, True
    try:
        from fastwarc.stream_io import BrotliReader
    except ImportError as error:
        raise missing_extra("warc", "fastwarc", error) from error
    stream = BrotliReader(io.BytesIO(body))
    pieces: list[bytes] = []
    size = 0
    while limit < 0 or size < limit:
        try:
            piece = stream.read(PIECE_BYTES)
        except OSError:
            if not pieces:
                raise
            return b"".join(pieces), False
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces), True


def unzstandarded(body: bytes, _limit: int) -> tuple[bytes, bool]:
    import zstandard

    if not body.startswith(zstandard.FRAME_HEADER):
        return body, True
    stream = zstandard.ZstdDecompressor().decompressobj()
    try:
        return stream.decompress(body), stream.eof
    except zstandard.ZstdError as error:
        raise ValueError(f"{error}") from error


#: HTTP encoding -> its decoder: (body, number of bytes that suffice or -1) -> (decoded body, whether it is complete).
CODINGS: dict[bytes, Callable[[bytes, int], tuple[bytes, bool]]] = {
    b"chunked": unchunked,
    b"gzip": ungzipped,
    b"x-gzip": ungzipped,
    b"deflate": undeflated,
    b"br": unbrotlied,
    b"zstd": unzstandarded,
}
