"""Decompresses the bytes of a shard.

Decompression uses every check of its codec: a stream that ends before its end mark, or fails its checksum, is an error,
never a shorter file. A call of a decompressor yields about a megabyte at most, however far the input expands.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, Protocol

from stagger.errors import BadInput, counted
from stagger.pipeline.compression import MAGIC, PIECE_BYTES, Content, ReadCodec

#: Decompressed bytes per call of bz2 and xz, of gzip, and approximately of zstd, where more would slow down. A thread
#: waits for Python's lock after each call: blocks of 128 KiB took longer to be handed over than to be decompressed.
OUTPUT_BYTES = 2**20
GZIP_OUTPUT_BYTES = 2**19
ZSTD_OUTPUT_BYTES = 2**18

#: Memory in bytes that a decompressor may use: as much as the window of `zstd --long=31`.
MAX_MEMORY = 2**31

#: Maximum bytes of the header of a frame.
HEADER_BYTES = 18

#: Maximum decompressed bytes of a block.
BLOCK_BYTES = 2**17

TOO_LARGE_WINDOW = f"the zstd frame needs more than {MAX_MEMORY:,} bytes of memory; compress it with --long=31 or less"

#: Types of blocks (0 is a block that is not compressed).
REPEATED_BYTE, COMPRESSED = 1, 2


def decompressed(pieces: Iterator[bytes], codec: ReadCodec, check: Callable[[], None] = lambda: None) -> Content:
    """The decompressed content of a file. Reading raises BadInput where the stream is damaged or truncated."""
    if codec == "gzip":
        return _Gunzipped(pieces, check)
    return _Unzstd(pieces, check) if codec == "zstd" else _Decompressed(pieces, check, codec)


class _Gunzipped(Content):
    """The content of a gzip file of any number of members. isal's own file object is faster for small members."""

    def __init__(self, pieces: Iterator[bytes], check: Callable[[], None]) -> None:
        from isal import igzip, isal_zlib

        super().__init__(iter(()), check)
        self._source = Content(pieces, check)
        self._file: io.BufferedIOBase = igzip.IGzipFile(fileobj=self._source, mode="rb")  # type: ignore[no-untyped-call]
        self._damage: Any = (igzip.BadGzipFile, isal_zlib.error)

    def _refill(self) -> bool:
        try:
            self._set(self._file.read1(GZIP_OUTPUT_BYTES))
        except EOFError as error:
            # The gzip reader takes less than the header of a member for a member that breaks off.
            reason = "the gzip stream breaks off: the file is truncated, or ends with a few bytes that are not gzip"
            raise self._source.fault("gzip", reason) from error
        except self._damage as error:
            reason = f"the gzip stream is damaged: {error}"
            if "Not a gzipped file" in str(error):
                reason = "after the gzip stream, the file has bytes that are not gzip"
            raise self._source.fault("gzip", reason) from error
        self.taken = self._source.taken
        if not self.taken:
            raise BadInput("the gzip stream breaks off: the file is truncated")
        return bool(self._output)


class _Decompressed(Content):
    """The decompressed content of a bz2 or xz file of any number of streams."""

    def __init__(self, pieces: Iterator[bytes], check: Callable[[], None], codec: ReadCodec) -> None:
        super().__init__(pieces, check)
        self._codec = codec
        self._stream: _Decompressor | None = None
        self._streams = 0
        self._padding = 0
        self._input = memoryview(b"")

    def _refill(self) -> bool:
        if not self._input and (self._stream is None or self._stream.needs_input):
            self._input = memoryview(self._take())
            if not self._input:
                self._check_end()
                return False
        if self._stream is None and not self._begin():
            return True
        assert self._stream is not None
        data = self._input[:PIECE_BYTES] if self._stream.needs_input else b""
        try:
            self._set(self._stream.decompress(data, OUTPUT_BYTES))
        except Exception as error:  # LZMAError, OSError, EOFError.
            if "Memory usage limit" in str(error):
                raise BadInput(f"the {self._codec} stream needs more than {MAX_MEMORY:,} bytes of memory") from error
            raise self.fault(self._codec, f"the {self._codec} stream is damaged: {error}") from error
        left = self._input[len(data) :]
        if self._stream.eof:
            rest, self._stream = self._stream.unused_data, None
            # The remainder is usually a suffix of the input; some decompressors return more than they were just given.
            left = self._input[len(data) - len(rest) :] if len(rest) <= len(data) else memoryview(rest + left.tobytes())
        self._input = left
        return True

    def _begin(self) -> bool:
        """Begin a stream; False when more input is needed for that."""
        if self._streams:
            if self._codec == "xz":
                rest = bytes(self._input).lstrip(b"\0")
                self._padding += len(self._input) - len(rest)
                self._input = memoryview(rest)
                if not rest:
                    return False
            magic = MAGIC[self._codec][0]
            while len(self._input) < len(magic) and (piece := self._take()):
                self._input = memoryview(bytes(self._input) + piece)
            if not magic.startswith(self._input[: len(magic)]):
                raise BadInput(f"after the {self._codec} stream, the file has bytes that are not {self._codec}")
        self._check_padding()
        self._stream = _decompressor(self._codec)
        self._streams += 1
        return True

    def _check_padding(self) -> None:
        if self._padding % 4:
            raise BadInput(
                f"the padding after an xz stream is {counted(self._padding, 'byte')}, not a multiple of four"
            )
        self._padding = 0

    def _check_end(self) -> None:
        """Raise BadInput at the end of the input, unless it is the end of a stream."""
        if self._stream is not None or not self._streams:
            raise self.fault(self._codec, f"the {self._codec} stream breaks off: the file is truncated")
        self._check_padding()


class _Decompressor(Protocol):
    """The standard library's decompressor interface."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: Any, max_length: int, /) -> bytes: ...


def _decompressor(codec: ReadCodec) -> _Decompressor:
    if codec == "bz2":
        import bz2

        return bz2.BZ2Decompressor()
    import lzma

    return lzma.LZMADecompressor(memlimit=MAX_MEMORY)


class _Unzstd(Content):
    """The decompressed content of a file of any number of zstd frames."""

    def __init__(self, pieces: Iterator[bytes], check: Callable[[], None]) -> None:
        import zstandard

        super().__init__(pieces, check)
        self._zstd = zstandard
        self._codec = zstandard.ZstdDecompressor(max_window_size=MAX_MEMORY)
        self._dictionary: Any = None
        self._frame: Any = None
        self._begun = False
        self._input = memoryview(b"")
        self._skip = 0  # Bytes left of a frame to skip.
        self._due = 0  # Bytes left of the frame's header, of its current block, or of its checksum.
        self._last = False  # Whether the current block is the frame's last.
        self._checksum = 0  # Bytes of the frame's checksum.

    def _refill(self) -> bool:
        if self._skip:
            return self._skip_frame()
        if self._frame is None:
            return self._begin()
        if not self._due and not self._last:
            self._gather(3)
        elif not self._input:
            self._gather(1)
        end = self._end()
        data, self._input = self._input[:end], self._input[end:]
        self._due = end - len(data)
        if not data:
            raise self._breaks_off()
        try:
            self._set(self._frame.decompress(data))
        except self._zstd.ZstdError as error:
            raise BadInput(
                f"the zstd stream is damaged, or was compressed with a dictionary, which is not supported: {error}"
            ) from error
        if self._last and not self._due:
            if not self._frame.eof:
                raise BadInput("the zstd stream is damaged: a frame does not end with its last block")
            self._frame = None
        return True

    def _take(self) -> bytes:
        if self.taken:
            return super()._take()
        piece = next(self._pieces, b"")
        if not piece.startswith(MAGIC["zstd"][0]):
            from stagger.pipeline.zstd_dictionary import dictionary_of  # Imported late: few files begin with one.

            piece, self._dictionary = dictionary_of(chain((piece,), self._pieces))
        if self._dictionary is not None:
            self._codec = self._zstd.ZstdDecompressor(dict_data=self._dictionary, max_window_size=MAX_MEMORY)
        self._pieces = chain((piece,), self._pieces)
        return super()._take()

    def _end(self) -> int:
        """The end in the input of what the decompressor is given next: as many blocks as yield ZSTD_OUTPUT_BYTES."""
        end, most, source = self._due, 0, self._input
        while most < ZSTD_OUTPUT_BYTES and not self._last and end + 3 <= len(source):
            header = source[end] | source[end + 1] << 8 | source[end + 2] << 16
            kind, size = header >> 1 & 3, header >> 3
            most += BLOCK_BYTES if kind == COMPRESSED else size
            end += 3 + (1 if kind == REPEATED_BYTE else size)
            if header & 1:
                self._last = True
                end += self._checksum
        return end

    def _begin(self) -> bool:
        """Begin a frame; False at the end of the file."""
        self._gather(HEADER_BYTES)
        start = bytes(self._input[:HEADER_BYTES])
        magics = MAGIC["zstd"]
        if not start and self._begun:
            return False
        if not start.startswith(magics):
            if any(magic.startswith(start) for magic in magics):
                raise self._breaks_off()
            raise self.fault("zstd", "after the zstd stream, the file has bytes that are not zstd")
        if not start.startswith(magics[0]):
            if len(start) < 8:
                raise self._breaks_off()
            self._input = self._input[8:]
            self._skip = int.from_bytes(start[4:8], "little")
            self._begun = True
            return True
        self._begin_frame(start)
        return True

    def _begin_frame(self, start: bytes) -> None:
        try:
            header = self._zstd.get_frame_parameters(start)
        except self._zstd.ZstdError as error:
            if "too much memory" in str(error):
                raise BadInput(TOO_LARGE_WINDOW) from error
            if len(start) < HEADER_BYTES:
                raise self._breaks_off() from error
            raise BadInput(f"the zstd stream is damaged: {error}") from error
        if header.dict_id and (self._dictionary is None or self._dictionary.dict_id() != header.dict_id):
            raise BadInput(
                f"the file was compressed with the zstd dictionary {header.dict_id}; dictionaries are not supported,"
                " except one in the first frame: decompress it with `zstd -d -D DICTIONARY FILE`"
            )
        if header.window_size > MAX_MEMORY:
            raise BadInput(TOO_LARGE_WINDOW)
        self._frame = self._codec.decompressobj()
        self._due = self._zstd.frame_header_size(start)
        self._last, self._checksum, self._begun = False, 4 * header.has_checksum, True

    def _skip_frame(self) -> bool:
        self._gather(1)
        size = min(self._skip, len(self._input))
        if not size:
            raise self._breaks_off()
        self._skip -= size
        self._input = self._input[size:]
        return True

    def _gather(self, size: int) -> None:
        """Take input until there are `size` bytes, or all of them."""
        while len(self._input) < size and (piece := self._take()):
            self._input = memoryview(bytes(self._input) + piece if self._input else piece)

    def _breaks_off(self) -> BadInput:
        return BadInput("the zstd stream breaks off: the file is truncated")
