"""Plain text files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from stagger.pipeline.document import Document
from stagger.steps.reader import OpenShard, ShardReader, default_id


@dataclass(kw_only=True)
class ReadText(ShardReader):
    """Reads UTF-8 text.

    Args:
        document: whether each line is a document (empty lines are skipped), or each file.
    """

    document: Literal["line", "file"] = "line"

    def read(self, shard: OpenShard) -> Iterator[Document]:
        if self.document == "file":
            shard.record = 0
            text = self._decoded(shard, shard.text_stream.read())
            if text is not None:
                yield Document(text, shard.name)
            return
        stream = shard.text_stream
        for shard.record, line in enumerate(stream):
            text = self._decoded(shard, line)
            if text is not None and (text := text.rstrip("\r\n")):
                yield Document(text, default_id(shard.name, shard.record))

    def _decoded(self, shard: OpenShard, data: bytes) -> str | None:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            reason = f"not UTF-8: byte {data[error.start]:#04x} at position {error.start} of the record"
            shard.byte = shard.stream.tell() - len(data)
            self.bad(shard, "utf-8", reason)
            return None
