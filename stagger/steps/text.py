"""Plain text files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from stagger.errors import BadInput
from stagger.pipeline import Document
from stagger.pipeline.compression import PIECE_BYTES
from stagger.steps.reader import CR_ONLY, OpenShard, ShardReader, default_id


@dataclass(kw_only=True)
class ReadText(ShardReader):
    """Reads UTF-8 text.

    Args:
        document: whether each line is a document (empty lines are skipped), or each file.
    """

    document: Literal["line", "file"] = "line"

    def read(self, shard: OpenShard) -> Iterator[Document]:
        return self._lines(shard) if self.document == "line" else self._file(shard)

    def _file(self, shard: OpenShard) -> Iterator[Document]:
        data = self._whole(shard)
        shard.record = 0
        if data is None:
            shard.byte = 0
            self.bad(shard, "size", self.too_long("file"))
            for _ in iter(partial(shard.stream.read, PIECE_BYTES), b""):
                pass
        elif (text := self._decoded(shard, data)) is not None:
            yield Document(text, shard.name)

    def _whole(self, shard: OpenShard) -> bytes | None:
        """The content of the file; None, before it has been read to its end, if it exceeds `max_record_bytes`."""
        stream = shard.text_stream()
        pieces, size = [], 0
        while piece := stream.read(PIECE_BYTES):
            pieces.append(piece)
            size += len(piece)
            if size > self.max_record_bytes:
                return None
        return b"".join(pieces)

    def _lines(self, shard: OpenShard) -> Iterator[Document]:
        stream, number, line = shard.text_stream(self.max_record_bytes), shard.record + 1, b"\n"
        for shard.record, line in enumerate(stream, number):
            text = self._decoded(shard, line)
            if text is not None and (text := text.rstrip("\r\n")):
                yield Document(text, default_id(shard.name, shard.record))
        if shard.record == 0 and b"\r" in line.rstrip() and not line.endswith(b"\n"):
            shard.byte = 0
            raise BadInput(CR_ONLY)

    def _decoded(self, shard: OpenShard, data: bytes) -> str | None:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            reason = f"not UTF-8: byte {data[error.start]:#04x} at position {error.start} of the record"
            shard.byte = shard.stream.tell() - len(data)
            self.bad(shard, "utf-8", reason)
            return None
