"""Codecs: decompress the bytes of a shard, and compress those of an output.

Decompression uses every check of its codec: a stream that ends before its end mark, or fails its checksum, is an error,
never a shorter file. A codec is imported when the first file needs it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any, Literal, Protocol, cast

from stagger.errors import BadInput

#: Codecs for outputs, and for inputs.
Codec = Literal["gzip", "zstd"]
ReadCodec = Literal["gzip", "zstd", "bz2", "xz"]

#: Compressed bytes per call of a decompressor, and bytes buffered after it: larger ones overflow the processor's cache.
PIECE_BYTES = 128 * 2**10

#: Approximate decompressed bytes per call: input that expands a thousandfold is fed in smaller pieces.
OUTPUT_BYTES = 2**20

#: Window in bytes needed to decompress files of `zstd --long=31`.
MAX_WINDOW = 2**31

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


class _Decompressor(Protocol):
    """The standard library's decompressor interface, which zstandard shares."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: Any, /) -> bytes: ...


def _decompressor(codec: ReadCodec, dictionary: Any) -> _Decompressor:
    if codec == "bz2":
        import bz2

        return bz2.BZ2Decompressor()
    if codec == "xz":
        import lzma

        return lzma.LZMADecompressor()
    import zstandard

    return zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=MAX_WINDOW).decompressobj()


class _Content(io.RawIOBase):
    """The content of a file, from its pieces as storage yields them.

    `taken` counts the bytes of those pieces; `line_start` is the offset of the last line begun so far.
    """

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._output = b""
        self._at = 0
        self._given = 0
        self.taken = 0
        self.line_start = 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._given

    def readinto(self, buffer: Any) -> int:
        while self._at == len(self._output):
            if not self._refill():
                return 0
        start, end = self._at, min(self._at + len(buffer), len(self._output))
        buffer[: end - start] = memoryview(self._output)[start:end]
        if (newline := self._output.rfind(b"\n", start, end)) >= 0:
            self.line_start = self._given + newline + 1 - start
        self._at = end
        self._given += end - start
        return end - start

    def _refill(self) -> bool:
        """Produce more output; False at the end of the file."""
        self._set(self._take())
        return bool(self._output)

    def _set(self, output: bytes) -> None:
        self._output, self._at = output, 0

    def _take(self) -> bytes:
        piece = next(self._pieces, b"")
        self.taken += len(piece)
        return piece


class _Gunzipped(_Content):
    """The content of a gzip file of any number of members. isal's own file object is faster for small members."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        from isal import igzip, isal_zlib

        super().__init__(iter(()))
        self._source = _Content(pieces)
        self._file: io.BufferedIOBase = igzip.IGzipFile(fileobj=self._source, mode="rb")  # type: ignore[no-untyped-call]
        self._damage: Any = (igzip.BadGzipFile, isal_zlib.error)

    def _refill(self) -> bool:
        try:
            self._set(self._file.read1(PIECE_BYTES))
        except EOFError as error:
            raise BadInput("the gzip stream breaks off: the file is truncated") from error
        except self._damage as error:
            raise BadInput(f"the gzip stream is damaged: {error}") from error
        self.taken = self._source.taken
        if not self.taken:
            raise BadInput("the gzip stream breaks off: the file is truncated")
        return bool(self._output)


class _Decompressed(_Content):
    """The decompressed content of a file of any number of frames."""

    def __init__(self, pieces: Iterator[bytes], codec: ReadCodec) -> None:
        super().__init__(pieces)
        self._codec = codec
        self._dictionary: Any = None
        self._stream: _Decompressor | None = None
        self._streams = 0
        self._input = memoryview(b"")
        self._feed = 4096

    def _refill(self) -> bool:
        if not self._input and not self._has_more():
            self._input = memoryview(self._take())
            if not self._input:
                if self._stream is not None or not self._streams:
                    raise BadInput(f"the {self._codec} stream breaks off: the file is truncated")
                return False
        if self._stream is None:
            self._stream = _decompressor(self._codec, self._dictionary)
            self._streams += 1
        data = b"" if self._has_more() else self._input[: self._feed]
        try:
            output = self._decompress(self._stream, data)
        except Exception as error:  # Each codec raises its own: ZstdError, LZMAError, OSError.
            if "Dictionary mismatch" in str(error):
                raise BadInput(
                    "the zstd frames need a dictionary that the file does not contain; decompress it with zstd -D"
                ) from error
            raise BadInput(f"the {self._codec} stream is damaged: {error}") from error
        self._feed = max(self._feed // 8, 64) if len(output) > OUTPUT_BYTES else min(self._feed * 2, PIECE_BYTES)
        self._set(output)
        left = self._input[len(data) :]
        if self._stream.eof:
            rest, self._stream = self._stream.unused_data, None
            # The remainder is usually a suffix of the input; some decompressors return more than they were just given.
            left = self._input[len(data) - len(rest) :] if len(rest) <= len(data) else memoryview(rest + left.tobytes())
        self._input = left
        return True

    def _take(self) -> bytes:
        if self._codec != "zstd" or self.taken:
            return super()._take()
        from stagger.pipeline.zstd_dictionary import dictionary_of

        piece, self._dictionary = dictionary_of(self._pieces)
        self.taken += len(piece)
        return piece

    def _has_more(self) -> bool:
        """Whether the decompressor can yield more output without more input; zstandard never can."""
        return self._stream is not None and not getattr(self._stream, "needs_input", True)

    def _decompress(self, stream: Any, data: bytes | memoryview) -> bytes:
        return cast(
            "bytes", stream.decompress(data) if self._codec == "zstd" else stream.decompress(data, OUTPUT_BYTES)
        )


def content(pieces: Iterator[bytes], codec: ReadCodec | None) -> io.BufferedReader:
    """The decompressed content of a file, to be read once from start to end; `tell()` is the offset in it.

    Reading raises BadInput where the compressed stream is damaged or truncated. `raw.taken` counts the stored bytes.
    """
    if codec is None:
        return io.BufferedReader(_Content(pieces), PIECE_BYTES)
    return io.BufferedReader(_Gunzipped(pieces) if codec == "gzip" else _Decompressed(pieces, codec), PIECE_BYTES)


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
