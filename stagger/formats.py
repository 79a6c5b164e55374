"""Codecs: what turns the bytes of a shard into the bytes of its records, and back.

Decompression checks what the codec lets it check: a stream that ends before its end mark, or fails its checksum, is an
error, never a short file. Codecs are imported when the first file needs them.
"""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO, Literal, Protocol, cast

from stagger.errors import BadInput

Codec = Literal["gzip", "zstd"]

#: Compressed bytes read at a time, and decompressed bytes buffered: larger leaves the processor's cache.
CHUNK_BYTES = 128 * 2**10

#: File name endings, and the codec that each stands for.
EXTENSIONS: dict[str, Codec] = {".gz": "gzip", ".zst": "zstd"}

#: Default levels: zstd-3 compresses 13 times as fast as gzip-9, and better; isal's 2 is its default.
LEVELS: dict[Codec, int] = {"gzip": 2, "zstd": 3}


def codec_of(name: str) -> Codec | None:
    """The codec that a file's name stands for, None for an uncompressed file."""
    return EXTENSIONS.get(os.path.splitext(name)[1])


def extension_of(codec: Codec | None) -> str:
    """What a file name of this codec ends with; empty for None."""
    return {codec: extension for extension, codec in EXTENSIONS.items()}[codec] if codec else ""


class _Decompressor(Protocol):
    """The standard library's shape of a decompressor, which isal and zstandard share."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def _decompressor(codec: Codec) -> _Decompressor:
    if codec == "gzip":
        from isal import igzip_lib

        return cast("_Decompressor", igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP))
    import zstandard

    return zstandard.ZstdDecompressor().decompressobj()


class _DecompressedFile(io.RawIOBase):
    """The decompressed bytes of a file, over any number of gzip members or zstd frames."""

    def __init__(self, raw: BinaryIO, codec: Codec) -> None:
        self._raw = raw
        self._codec = codec
        self._stream: _Decompressor | None = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            if not self._refill():
                return 0
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def _refill(self) -> bool:
        """Decompress some more; False at the end of the file."""
        if not self._input:
            self._input = self._raw.read(CHUNK_BYTES)
        if not self._input:
            if self._stream is not None:
                raise BadInput(f"the {self._codec} stream breaks off: the file is truncated")
            return False
        if self._stream is None:
            if self._codec == "gzip":
                self._input = self._input.lstrip(b"\0")  # Tapes and some tools pad the end of a gzip file with zeros.
                if not self._input:
                    return True
            self._stream = _decompressor(self._codec)
        try:
            self._output = memoryview(self._stream.decompress(self._input))
        except Exception as error:  # Each codec has its own: isal's IsalError, zstandard's ZstdError.
            raise BadInput(f"the {self._codec} stream is damaged: {error}") from error
        self._input = b""
        if self._stream.eof:
            self._input, self._stream = self._stream.unused_data, None
        return True


def decompressed(raw: BinaryIO, codec: Codec | None) -> BinaryIO:
    """The content of a file, buffered. Reading raises BadInput where the compressed stream is damaged or truncated."""
    stream = raw if codec is None else cast("BinaryIO", _DecompressedFile(raw, codec))
    return cast("BinaryIO", io.BufferedReader(cast("io.RawIOBase", stream), CHUNK_BYTES))


class Compressor(Protocol):
    """The standard library's shape of a compressor."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def compressor(codec: Codec, level: int | None = None) -> Compressor:
    """A compressor for one file. The same input gives the same bytes: no time stamp, no name, one thread."""
    level = LEVELS[codec] if level is None else level
    if codec == "gzip":
        from isal import isal_zlib

        return cast("Compressor", isal_zlib.compressobj(level, wbits=31))
    import zstandard

    return zstandard.ZstdCompressor(level=level, write_checksum=True).compressobj()
