"""Codecs: which file has which, the content of files, and compression of outputs; decompression.py undoes it.

A codec is imported when the first file needs it.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol, cast

from stagger.errors import BadInput, counted

#: Codecs for outputs, and for inputs.
Codec = Literal["gzip", "zstd"]
ReadCodec = Literal["gzip", "zstd", "bz2", "xz"]

#: Compressed bytes per call of a decompressor, and bytes buffered after it: larger ones overflow the processor's cache.
PIECE_BYTES = 128 * 2**10

#: Bytes of a shard on disk, and of an output before its codec, from which a codec gets a thread (codec_threads.py): a
#: smaller one is done before a thread is worth its start.
THREAD_BYTES = 2**20

#: Bytes that may wait between the steps and the thread of a codec.
QUEUE_BYTES = 2 * 2**20

#: Leading bytes of a file that are kept, to recognize its format: a header of tar.
HEAD_BYTES = 512

#: Leading bytes of each stream, frame or member of a codec. (zstd's others are frames to skip.)
MAGIC: dict[ReadCodec, tuple[bytes, ...]] = {
    "gzip": (b"\x1f\x8b",),
    "zstd": (b"\x28\xb5\x2f\xfd", *(bytes((0x50 + number, 0x2A, 0x4D, 0x18)) for number in range(16))),
    "bz2": (b"BZh",),
    "xz": (b"\xfd7zXZ\0", b"\x5d\0\0"),
}

#: File name ending -> codec.
EXTENSIONS: dict[str, ReadCodec] = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}

#: Default levels. zstd-3 compresses better than gzip-9, and 13 times as fast; 2 is isal's own default.
LEVELS: dict[Codec, int] = {"gzip": 2, "zstd": 3}

#: Valid levels. gzip is compressed by isal: its highest level is 3, with about the ratio of zlib's 4.
LEVEL_RANGES: dict[Codec, tuple[int, int]] = {"gzip": (0, 3), "zstd": (-7, 22)}


def codec_of(name: str) -> ReadCodec | None:
    """The codec that a file's name implies; None for an uncompressed file."""
    return EXTENSIONS.get(os.path.splitext(name)[1].lower())


def extension_of(codec: ReadCodec | None) -> str:
    """The ending of a codec's file names; empty for None."""
    return {codec: extension for extension, codec in EXTENSIONS.items()}[codec] if codec else ""


class LongLine(BadInput):
    """A line is longer than the limit. It has not been read to its end: `Content.line_limit` may be raised for that."""


class Content(io.RawIOBase):
    """The content of a file, from its pieces as storage yields them.

    `taken` counts the bytes of those pieces; `line_start` is the offset of the last line begun so far. Reading calls
    `check`, which may raise, and raises LongLine before a line exceeds `line_limit` bytes. If `quote` is set, `quotes`
    counts these characters in the part of the last line that has been read.
    """

    def __init__(self, pieces: Iterator[bytes], check: Callable[[], None] = lambda: None) -> None:
        self._pieces = pieces
        self._check = check
        self._output = b""
        self._at = 0
        self._given = 0
        self.taken = 0
        self.head = b""
        self.line_start = 0
        self.line_limit = sys.maxsize
        self.quote = b""
        self.quotes = 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._given

    def readinto(self, buffer: Any) -> int:
        if not self._fill():
            return 0
        start, end = self._at, min(self._at + len(buffer), len(self._output))
        newline = self._output.find(b"\n", start, end)
        if self._given - self.line_start + (end if newline < 0 else newline + 1) - start > self.line_limit:
            raise LongLine(f"a line is longer than {counted(self.line_limit, 'byte')}")
        buffer[: end - start] = memoryview(self._output)[start:end]
        if newline >= 0:
            newline = self._output.rfind(b"\n", start, end)
            self.line_start = self._given + newline + 1 - start
        if self.quote:
            self.quotes = 0 if newline >= 0 else self.quotes
            self.quotes += self._output.count(self.quote, newline + 1 if newline >= 0 else start, end)
        self._at = end
        self._given += end - start
        return end - start

    def beginning(self) -> bytes:
        """The content's first bytes, still to be read: 4 or more, usually thousands, unless there are fewer."""
        start = b""
        while len(start) < 4 and self._fill():
            start += self._output
            self._output = b""
        self._output = start
        return start

    def block(self) -> bytes:
        """The next bytes, as many as come at once; empty at the end."""
        block = self._output if self._fill() else b""
        self._output = b""
        return block

    def _fill(self) -> bool:
        """Whether there is output, or more could be produced."""
        while self._at == len(self._output):
            self._check()
            if not self._refill():
                return False
        return True

    def _refill(self) -> bool:
        """Produce more output; False at the end of the file."""
        self._set(self._take())
        return bool(self._output)

    def _set(self, output: bytes) -> None:
        self._output, self._at = output, 0

    def _take(self) -> bytes:
        piece = next(self._pieces, b"")
        if not self.taken:
            self.head = piece[:HEAD_BYTES]
        self.taken += len(piece)
        return piece

    def fault(self, codec: ReadCodec, reason: str) -> BadInput:
        """The error for a stream that cannot be decompressed: another one if the file is not of this codec at all."""
        magics = MAGIC[codec]
        if not self.head or self.head.startswith(magics) or any(magic.startswith(self.head) for magic in magics):
            return BadInput(reason)
        from stagger.pipeline.signatures import described

        return BadInput(f"the file is not {codec}, but {described(self.head)}; correct its name, or set compression")


def buffered(raw: Content, max_line_bytes: int = sys.maxsize) -> io.BufferedReader:
    """The content, to be read once from start to end; `raw` is the given Content, and `tell()` the offset in it.

    Reading raises LongLine before a line exceeds `max_line_bytes`.
    """
    raw.line_limit = max_line_bytes
    # No line that lies within the buffer is longer than the limit.
    return io.BufferedReader(raw, min(PIECE_BYTES, max_line_bytes))


class Compressor(Protocol):
    """The standard library's compressor interface."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def compressor(codec: Codec, level: int | None = None) -> Compressor:
    """A compressor for one file. Deterministic: no time stamp, no file name, one thread."""
    level = LEVELS[codec] if level is None else level
    if codec == "gzip":
        from isal import isal_zlib

        return cast("Compressor", isal_zlib.compressobj(level, wbits=31))
    import zstandard

    return zstandard.ZstdCompressor(level=level, write_checksum=True).compressobj()


def check_level(codec: Codec | None, level: int | None) -> None:
    """Raise ValueError for a level that the codec does not have, and for a level without a codec."""
    if level is None:
        return
    if codec is None:
        raise ValueError(f"level {level} needs a compression; choose one of {', '.join(LEVELS)}")
    low, high = LEVEL_RANGES[codec]
    if not low <= level <= high:
        raise ValueError(f"{codec} has the levels {low} to {high}, not {level}")
