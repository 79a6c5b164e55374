"""The body of an HTTP response in a WARC record: undoes its transfer and content encodings."""

from __future__ import annotations

import codecs
import io
import re
import zlib
from collections.abc import Callable

from stagger.errors import BadRecord, missing_extra

#: Bytes per read when a record is skipped.
PIECE_BYTES = 128 * 2**10

#: Bytes of a zstd body that are decompressed at first, and decompressed bytes after which fewer are.
FEED_BYTES = 512
OUTPUT_BYTES = 2**20

#: Bytes at the start of a body that are searched for its first character, and for bytes that no text contains.
START_BYTES = 2048

#: Leading bytes of gzip data, of a zstd frame, and (after their first byte) of a skippable zstd frame.
GZIP = b"\x1f\x8b"
ZSTD = b"\x28\xb5\x2f\xfd"
SKIPPABLE = b"\x2a\x4d\x18"

#: Encodings that are known, but cannot be undone.
UNSUPPORTED = (b"compress", b"x-compress", b"dcb", b"dcz")

#: Control characters that no text contains (https://mimesniff.spec.whatwg.org/#binary-data-byte).
_BINARY = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")

#: What may follow the size 0 of the last chunk: fields, then an empty line. Either may be missing at the body's end.
_TRAILER = re.compile(rb"(?:[!-9;-~]+[ \t]*:[^\n]*(?:\n|\Z))*(?:\r?\n|\r?\Z)")

_BOMS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def looks_decoded(body: bytes) -> bool:
    """Whether a body looks like an unencoded page."""
    return body[:START_BYTES].removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"<"


def decoded(body: bytes, http: dict[bytes, bytes], truncated: bool, limit: int) -> bytes | None:
    """The body without its transfer and content encodings; None if it then has more than `limit` bytes.

    Many crawlers decode the body but keep the original header: a text that is not in the declared encoding is returned
    as it is. Raises BadRecord for a damaged body, for an incomplete one unless `truncated` is set, and for one that is
    neither in the declared encoding nor a text.
    """
    declared = http.get(b"content-encoding", b"") + b"," + http.get(b"transfer-encoding", b"")
    names = [one.partition(b";")[0].strip(b' \t"').lower() for one in declared.split(b",")]
    left: bytes | None = None
    for name in reversed(names):
        if not body or (name not in CODINGS and name not in UNSUPPORTED):
            continue
        before = body
        if name in CODINGS:
            try:
                body, whole = CODINGS[name](body, limit + 1)
            except (ValueError, OSError, zlib.error) as error:
                raise BadRecord("encoding", f"the body cannot be decoded as {name.decode()}: {error}") from error
            if len(body) > limit:
                return None
            if not whole and not truncated:
                raise BadRecord("encoding", f"the body breaks off: its {name.decode()} encoding has no end")
        left = name if body is before else left
    if left is not None and is_binary(body, http.get(b"content-type", b"")):
        raise BadRecord("encoding", f"the body is neither in its declared encoding {left.decode()} nor a text")
    return body


def is_binary(body: bytes, content_type: bytes) -> bool:
    """Whether a body that should be a page contains bytes that no page contains, unless it is UTF-16."""
    said = content_type.lower()
    if body.startswith(_BOMS) or b"utf-16" in said or not (b"text/" in said or b"xhtml" in said):
        return False
    return _BINARY.search(body, 0, START_BYTES) is not None


def unchunked(body: bytes, _limit: int) -> tuple[bytes, bool]:
    """The chunks, joined. A body that does not begin with a whole chunk is a text, and is returned as it is.

    A first chunk without an end is taken for one only if a page or encoded data begin in it: a text may begin with
    digits, or with a word such as "Face".
    """
    chunks: list[bytes] = []
    place = len(body) - len(without_empty_lines(body))
    while (end := body.find(b"\n", place)) >= 0:
        size = chunk_size(body[place:end])
        if size is None or (not size and not _TRAILER.match(body, end + 1)):
            if not chunks:
                return body, True
            raise ValueError(f"no chunk begins at its byte {place}")
        if not size:
            return b"".join(chunks), True
        place = end + 1 + size
        chunks.append(body[end + 1 : place])
        line_end = b"\r\n" if body[end - 1 : end] == b"\r" else b"\n"
        ended = body.startswith(line_end, place)
        if len(chunks) == 1 and not ended and place != len(body) and not begins_content(chunks[0]):
            return body, True
        if not ended and place + 1 < len(body):
            raise ValueError(f"no chunk ends at its byte {place}")
        place += len(line_end)
    return (b"".join(chunks), False) if chunks else (body, True)


def begins_content(data: bytes) -> bool:
    """Whether a page or encoded data begin."""
    return looks_decoded(data) or data.startswith((GZIP, ZSTD)) or is_skippable(data)


def chunk_size(line: bytes) -> int | None:
    digits = line.partition(b";")[0].strip()
    return int(digits, 16) if 0 < len(digits) <= 16 and not digits.strip(b"0123456789abcdefABCDEF") else None


def inflated(body: bytes, limit: int, wbits: int) -> tuple[bytes, bool]:
    """All streams in the body, joined: a gzip file may have several members, and other streams may follow one another.

    What follows a stream, and is none, is ignored.
    """
    parts: list[bytes] = []
    size = 0
    while size < limit:
        stream = zlib.decompressobj(wbits)
        parts.append(stream.decompress(body, limit - size))
        size += len(parts[-1])
        body = stream.unused_data
        if not stream.eof or not begins_stream(body, wbits):
            return b"".join(parts), stream.eof
    return b"".join(parts), True


def begins_stream(data: bytes, wbits: int) -> bool:
    """Whether a gzip member (`wbits` 31), or a zlib stream, begins; raw deflate data cannot be recognised."""
    if wbits == 31:
        return data.startswith(GZIP)
    return wbits > 0 and len(data) > 1 and data[0] & 0x8F == 0x08 and (data[0] << 8 | data[1]) % 31 == 0


def ungzipped(body: bytes, limit: int) -> tuple[bytes, bool]:
    data = without_empty_lines(body)
    return inflated(data, limit, 31) if data.startswith(GZIP) else (body, True)


def without_empty_lines(body: bytes) -> bytes:
    """The body from its first byte that is no line end: some crawlers wrote an additional empty line before it."""
    return body.lstrip(b"\r\n") if body.startswith((b"\r", b"\n")) else body


def undeflated(body: bytes, limit: int) -> tuple[bytes, bool]:
    """The body inflated. HTTP's deflate is a zlib stream, but some servers send raw deflate data."""
    if looks_decoded(body):
        return body, True
    data = without_empty_lines(body)
    try:
        return inflated(data, limit, 15)
    except zlib.error:
        try:
            return inflated(body, limit, -15)
        except zlib.error:
            if begins_stream(data, 15):
                raise
            return body, True


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
    while size < limit:
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


def is_skippable(data: bytes | memoryview) -> bool:
    """Whether a skippable zstd frame begins; it has no content."""
    return len(data) >= 4 and data[0] & 0xF0 == 0x50 and data[1:4] == SKIPPABLE


def unzstandarded(body: bytes, limit: int) -> tuple[bytes, bool]:
    """All frames in the body, joined. What follows a frame, and is none, is ignored."""
    data = memoryview(without_empty_lines(body))
    if not is_skippable(data) and data[:4] != ZSTD:
        return body, True
    import zstandard

    decompressor = zstandard.ZstdDecompressor()
    stream = None
    parts: list[bytes] = []
    size = place = 0
    feed = FEED_BYTES
    while place < len(data) and size < limit:
        if stream is None:
            if is_skippable(data[place:]):
                place += 8 + int.from_bytes(data[place + 4 : place + 8], "little")
                continue
            if data[place : place + 4] != ZSTD:
                break
            stream = decompressor.decompressobj()
        piece = data[place : place + feed]
        try:
            parts.append(stream.decompress(piece))
        except zstandard.ZstdError as error:
            raise ValueError(f"{error}") from error
        size += len(parts[-1])
        place += len(piece)
        # A few bytes can expand to megabytes.
        feed = max(feed // 8, 64) if len(parts[-1]) > OUTPUT_BYTES else min(feed * 2, PIECE_BYTES)
        if stream.eof:
            place -= len(stream.unused_data)
            stream = None
    return b"".join(parts), stream is None and place <= len(data)


#: HTTP encoding -> its decoder: (body, number of bytes that suffice) -> (decoded body, whether it is complete). A body
#: that is not in the encoding is returned as it is.
CODINGS: dict[bytes, Callable[[bytes, int], tuple[bytes, bool]]] = {
    b"chunked": unchunked,
    b"gzip": ungzipped,
    b"x-gzip": ungzipped,
    b"deflate": undeflated,
    b"br": unbrotlied,
    b"zstd": unzstandarded,
}
