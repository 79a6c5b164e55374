"""Reading Parquet: one document per row. Columns hold its text, id and metadata. Needs the extra `parquet`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stagger.errors import BadInput, StaggerError, agreeing, counted
from stagger.pipeline import Document
from stagger.steps.columns import ColumnReader, first_line
from stagger.steps.reader import OpenShard

#: Approximate maximum of a batch of rows, in uncompressed bytes; and its maximum in rows.
BATCH_BYTES = 8 * 2**20
BATCH_ROWS = 1000

#: Bytes of a column per read: without this, pyarrow reads a row group's whole column.
BUFFER_BYTES = 2**20


@dataclass(kw_only=True)
class ReadParquet(ColumnReader):
    """Reads Parquet files, and of them only the requested columns.

    Memory use does not grow with the size of the file or its row groups.

    Args:
        batch_size: rows read at a time; by default about 8 MiB of them, but at most 1000.
    """

    batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size is not None and self.batch_size < 1:
            raise StaggerError(f"batch_size is {self.batch_size}; give a number of rows, at least 1.")

    def read(self, shard: OpenShard) -> Iterator[Document]:
        import pyarrow

        with shard.as_file() as file:
            shard.took(file.seek(0, 2))
            file.seek(0)
            try:
                yield from self._rows(shard, file)
            except (pyarrow.ArrowException, OSError, ValueError) as error:
                shard.record += 1  # The error concerns the next record.
                raise BadInput(f"{why_not_parquet(file, error)} ({first_line(error)})") from error

    def _rows(self, shard: OpenShard, file: Any) -> Iterator[Document]:
        from pyarrow import parquet

        source = parquet.ParquetFile(
            file,
            buffer_size=BUFFER_BYTES,
            pre_buffer=False,
            page_checksum_verification=True,
            coerce_int96_timestamp_unit="us",  # By default nanoseconds, which wrap around outside 1677 to 2262.
        )
        columns = self.columns(source.schema_arrow)
        size = self.batch_size or rows_at_a_time(source.metadata)
        names = [column.name for column in columns]
        try:
            for batch in source.iter_batches(batch_size=size, columns=names, use_threads=False):
                yield from self.documents_of(shard, columns, batch)
        finally:
            self.tell_left_out(shard, columns)
        if shard.record + 1 != source.metadata.num_rows:
            raise BadInput(
                f"the file is damaged: only {shard.record + 1:,} of {counted(source.metadata.num_rows, 'row')}"
                f" {agreeing(shard.record + 1, 'is')} there"
            )


def rows_at_a_time(metadata: Any) -> int:
    """The number of rows that make up about BATCH_BYTES, based on the row group with the largest rows."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size / group.num_rows for group in groups if group.num_rows), default=0.0)
    return BATCH_ROWS if largest < 1 else max(1, min(BATCH_ROWS, int(BATCH_BYTES / largest)))


def why_not_parquet(file: Any, error: Exception) -> str:
    """The reason why a file cannot be read, from its first and last bytes, and from what pyarrow raised."""
    magic = b"PAR1"
    file.seek(0)
    if file.read(len(magic)) != magic:
        return "not a Parquet file"
    size = file.seek(0, 2)
    file.seek(max(size - len(magic), len(magic)))
    if file.read() != magic:
        return "the file is truncated: it has no footer"
    if "lists to be of size=" in str(error):  # https://github.com/apache/arrow/issues/35692
        return "pyarrow before 26 cannot read lists of a fixed size that are null: leave the column out (metadata_keys)"
    return "the file is damaged"
