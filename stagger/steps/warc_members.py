"""The gzip members, or zstd frames, of a WARC file: the places where reading can go on after damage.

Crawlers compress each record by itself. A member that begins with the first line of a record is therefore a safe place
to go on. The members are read one by one here, which is slower than reading the whole file, so that their limits are
known.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from stagger.errors import BadInput
from stagger.pipeline.compression import ReadCodec
from stagger.pipeline.decompression import MAX_MEMORY
from stagger.steps.http_body import GZIP, ZSTD, is_skippable

#: Bytes of the file per read while the next member is sought.
SEEK_BYTES = 2**20

#: Maximum bytes of a record's header in which its Content-Length is sought.
HEADER_BYTES = 2**18

_HEADER = re.compile(rb"WARC/.*?\r\n\r\n", re.DOTALL)
_LENGTH = re.compile(rb"\ncontent-length[ \t]*:[ \t]*(\d{1,18})", re.IGNORECASE)


class _Format(NamedTuple):
    """How the members of a codec are found and decompressed; `feed` bytes per call expand to some megabytes at most."""

    name: str
    magic: bytes
    feed: int
    decompressor: Callable[[], Any]


def _gunzip() -> Any:
    return zlib.decompressobj(31)


def _format(codec: ReadCodec | None, file: BinaryIO) -> _Format:
    if codec == "gzip":
        return _Format("gzip member", GZIP + b"\x08", 16384, _gunzip)
    import zstandard

    from stagger.pipeline.zstd_dictionary import dictionary_of

    dictionary = dictionary_of(iter(lambda: file.read(SEEK_BYTES), b""))[1]
    options = {"dict_data": dictionary} if dictionary is not None else {}
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_MEMORY, **options)
    return _Format("zstd frame", ZSTD, 1024, decompressor.decompressobj)


class Members:
    """The members of an open file, which `close` closes. Places are byte offsets in the file as it is stored.

    `given` counts the decompressed bytes of the members before the one that is read next.
    """

    def __init__(self, file: BinaryIO, codec: ReadCodec | None) -> None:
        self._file = file
        self._format = _format(codec, file)
        self._end = 0
        self.size = file.seek(0, os.SEEK_END)
        self.given = 0

    def close(self) -> None:
        self._file.close()

    def find(self, place: int, count: int, damage: BadInput) -> int:
        """Where the member begins whose decompressed content begins at byte `place`, as that of a record.

        Raises `damage` if no member begins there, or if the `count` records before it are not in as many members.
        """
        start = self.next()
        records = 0
        while start is not None:
            size = 0
            begin = b""
            try:
                for piece in self.member(start):
                    if len(begin) < 5:
                        begin += piece[:5]
                    size += len(piece)
            except BadInput:
                break
            if self.given + size > place:
                break
            self.given += size
            records += begin.startswith(b"WARC/")
            start = self.next()
        if start is None or self.given != place or records != count:
            raise damage
        return start

    def record(self, start: int) -> Iterator[bytes]:
        """The content of the record whose member begins at `start`, which may go on in the members that follow."""
        begin = b""
        size = 0
        place: int | None = start
        while place is not None:
            for piece in self.member(place):
                if len(begin) < HEADER_BYTES:
                    begin += piece[: HEADER_BYTES - len(begin)]
                self.given += len(piece)
                size += len(piece)
                yield piece
            if size >= record_bytes(begin):
                return
            place = self.next()
            if place is not None and self.begins_record(place):
                return

    def after(self, start: int, damage: BadInput) -> int | None:
        """Where the next member after the one at `start` begins that begins with a record; None at the file's end.

        Raises `damage` if the file does not end with a whole member.
        """
        place: int | None = start
        while place is not None:
            try:
                for _ in self.member(place):
                    pass
            except BadInput:
                found = self._sought(place + 1)
                if found is None:
                    raise damage from None
                return found
            place = self.next()
            if place is not None and self.begins_record(place):
                return place
        return None

    def begins_record(self, start: int) -> bool:
        begin = b""
        try:
            for piece in self.member(start):
                begin += piece
                if len(begin) >= 5:
                    break
        except BadInput:
            return False
        return begin.startswith(b"WARC/")

    def member(self, start: int) -> Iterator[bytes]:
        """The decompressed content of the member that begins at `start`. Raises BadInput if it is damaged."""
        name, magic, feed, decompressor = self._format
        stream = decompressor()
        place = start
        while not stream.eof:
            self._file.seek(place)
            data = self._file.read(feed)
            if place == start and not data.startswith(magic):
                raise BadInput(f"no {name} begins at byte {start} of the file")
            if not data:
                raise BadInput(f"the {name} at byte {start} of the file breaks off")
            try:
                piece = stream.decompress(data)
            except Exception as error:  # zlib.error or ZstdError
                raise BadInput(f"the {name} at byte {start} of the file is damaged: {error}") from error
            place += len(data)
            if piece:
                yield piece
        self._end = place - len(stream.unused_data)

    def next(self) -> int | None:
        """Where the member begins after the one that was read to its end: after padding. None at the file's end."""
        place = self._end
        while place < self.size:
            self._file.seek(place)
            data = self._file.read(SEEK_BYTES)
            if is_skippable(data) and self._format.magic == ZSTD:
                place += 8 + int.from_bytes(data[4:8], "little")
            elif self._format.magic != ZSTD and data.startswith(b"\0"):
                place += len(data) - len(data.lstrip(b"\0"))
            else:
                return place
        return None

    def _sought(self, place: int) -> int | None:
        """The first place from `place` on where a member begins that begins with a record."""
        magic = self._format.magic
        while place < self.size:
            self._file.seek(place)
            data = self._file.read(SEEK_BYTES + len(magic) - 1)
            at = -1
            while (at := data.find(magic, at + 1)) >= 0:
                if self.begins_record(place + at):
                    return place + at
            place += SEEK_BYTES
        return None


def record_bytes(begin: bytes) -> float:
    """The size in bytes of the record that begins with `begin`, by its header; infinite while its header has no end."""
    if not begin.startswith(b"WARC/"):
        return 0
    header = _HEADER.match(begin)
    if header is None:
        return math.inf if len(begin) < HEADER_BYTES else 0
    length = _LENGTH.search(header[0])
    return header.end() + int(length[1]) if length else 0
