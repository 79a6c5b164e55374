"""Reading Arrow's files (IPC, Feather 2): one document per row, batch by batch. Needs the extra `parquet`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from stagger.errors import BadInput
from stagger.pipeline import Document
from stagger.pipeline.signatures import recognized
from stagger.steps.columns import ColumnReader, first_line
from stagger.steps.reader import OpenShard

#: How a file with a table of its contents begins and ends; what is between begins like a stream.
MAGIC = b"ARROW1"
PADDED = MAGIC + b"\0\0"

#: How a file of Feather's version 1 begins, which is another format.
FEATHER_1 = b"FEA1"

#: Rows of a batch that become documents at once.
ROWS = 1000


@dataclass(kw_only=True)
class ReadArrow(ColumnReader):
    """Reads Arrow IPC: files (`.arrow`, `.feather`) and streams (`.arrows`, and what `datasets` of Hugging Face saves).

    A file is read from its beginning to its end, so it is not first copied from remote storage. Memory holds one of the
    file's batches. A stream without its end mark counts as truncated.
    """

    def read(self, shard: OpenShard) -> Iterator[Document]:
        import pyarrow

        source = Source(shard)
        try:
            yield from self._batches(shard, source)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            shard.record += 1  # The error concerns the next record.
            what = "the file is truncated" if source.ended else "the file is damaged"
            raise BadInput(f"{what} ({first_line(error)})") from error

    def _batches(self, shard: OpenShard, source: Source) -> Iterator[Document]:
        import pyarrow

        is_file = source.begin()
        batches = pyarrow.ipc.open_stream(source)
        columns = self.columns(batches.schema)
        names = [column.name for column in columns]
        try:
            for batch in batches:
                wanted = batch.select(names)
                for start in range(0, wanted.num_rows, ROWS):
                    yield from self.documents_of(shard, columns, wanted.slice(start, ROWS))
        finally:
            self.tell_left_out(shard, columns)
        if source.ended:
            shard.record += 1
            raise BadInput("the file is truncated: its last batch is not followed by the mark of the end")
        rest = source.rest()
        if is_file and not rest.endswith(MAGIC):
            raise BadInput("the file is truncated: its table of contents does not end")
        if rest and not is_file:
            raise BadInput("more follows after the end of the stream; write each stream to a file of its own")


class Source:
    """The content of a shard, as pyarrow reads it. `ended` is whether it had fewer bytes than were asked for."""

    closed = False

    def __init__(self, shard: OpenShard) -> None:
        self._stream: IO[bytes] = shard.stream
        self._first = b""
        self.ended = False

    def begin(self) -> bool:
        """Pass the mark of a file; whether there was one. Raises BadInput when the content is not Arrow's."""
        start = self._stream.read(len(PADDED))
        if start == PADDED:
            return True
        if start.startswith(FEATHER_1):
            raise BadInput("the file is Feather of version 1; write it again as version 2, which is Arrow")
        # A stream begins with the mark of a message or, before Arrow 0.15, with the length of its header.
        if len(start) < len(PADDED) or not (start.startswith(b"\xff\xff\xff\xff") or start[2:4] == b"\0\0"):
            what = recognized(start) if start else ""
            raise BadInput(f"not an Arrow file{f', but {what}' if what else ''}")
        self._first = start
        return False

    def read(self, size: int = -1) -> bytes:
        data = self._first[:size] if size >= 0 else self._first
        self._first = self._first[len(data) :]
        if size < 0:
            return data + self._stream.read()
        if len(data) < size:
            data += self._stream.read(size - len(data))
        self.ended |= len(data) < size
        return data

    def rest(self) -> bytes:
        """The last bytes of what is left, at most 1 MiB of them."""
        last = b""
        while piece := self._stream.read(2**20):
            last = (last + piece)[-(2**20) :]
        return last

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def writable(self) -> bool:
        return False

    def close(self) -> None: ...
