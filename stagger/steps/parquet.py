"""Reading Parquet: one document per row. Columns hold its text, id and metadata. Needs the extra `parquet`."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import orjson

from stagger.errors import BadInput, BadRecord, StaggerError, agreeing, counted, missing_extra
from stagger.pipeline import Document
from stagger.steps.arrow_types import decoded, has_nanoseconds, in_microseconds, is_json, is_plain, is_text, jsonable
from stagger.steps.reader import OpenShard, ShardReader, default_id

#: Digits of which an integer beyond 64 bits has at least as many.
LONG_NUMBER = re.compile(r"\d{19}")

#: Approximate maximum of a batch of rows, in uncompressed bytes; and its maximum in rows.
BATCH_BYTES = 8 * 2**20
BATCH_ROWS = 1000

#: Bytes of a column per read: without this, pyarrow reads a row group's whole column.
BUFFER_BYTES = 2**20

#: Names of the columns for a document's media, and for its metadata as a whole.
MEDIA, METADATA = "media", "metadata"


def need_pyarrow() -> None:
    """Raise StaggerError when pyarrow is not installed; the import itself waits for the first file."""
    if importlib.util.find_spec("pyarrow") is None:
        raise missing_extra("parquet", "pyarrow", ModuleNotFoundError("No module named 'pyarrow'"))


@dataclass(kw_only=True)
class ReadParquet(ShardReader):
    """Reads Parquet files. All other columns go into the metadata; null becomes None.

    Only the requested columns are read. Memory use does not grow with the size of the file or its row groups. A column
    `metadata` of structs is merged into the metadata, a column `media` of lists becomes the documents' media. Values
    that JSON does not have become strings: dates and times in ISO 8601 (nanoseconds cut to microseconds), decimals as
    digits, binary values decoded as UTF-8. Durations become seconds. A binary value that is not UTF-8 is a bad record
    if `metadata_keys` names its column; else it becomes None, which the log and the completion record count.

    Args:
        text_key: the column that holds the text.
        id_key: the column that holds the id; documents without one get `<file>/<row number>`.
        metadata_keys: the other columns to read; null for all.
        batch_size: rows read at a time; by default about 8 MiB of them, but at most 1000.
    """

    text_key: str = "text"
    id_key: str = "id"
    metadata_keys: list[str] | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size is not None and self.batch_size < 1:
            raise StaggerError(f"batch_size is {self.batch_size}; give a number of rows, at least 1.")
        need_pyarrow()

    def read(self, shard: OpenShard) -> Iterator[Document]:
        import pyarrow

        with shard.as_file() as file:
            shard.took(file.seek(0, 2))
            file.seek(0)
            try:
                yield from self._rows(shard, file)
            except (pyarrow.ArrowException, OSError, ValueError) as error:
                shard.record += 1  # The error concerns the next record.
                raise BadInput(f"{why_not_parquet(file)} ({first_line(error)})") from error

    def _rows(self, shard: OpenShard, file: Any) -> Iterator[Document]:
        from pyarrow import parquet

        source = parquet.ParquetFile(
            file,
            buffer_size=BUFFER_BYTES,
            pre_buffer=False,
            page_checksum_verification=True,
            coerce_int96_timestamp_unit="us",  # By default nanoseconds, which wrap around outside 1677 to 2262.
        )
        columns = self._columns(source.schema_arrow)
        size = self.batch_size or rows_at_a_time(source.metadata)
        names = [column.name for column in columns]
        try:
            for batch in source.iter_batches(batch_size=size, columns=names, use_threads=False):
                yield from self._documents_of(shard, columns, batch)
        finally:
            self._tell_left_out(shard, columns)
        if shard.record + 1 != source.metadata.num_rows:
            raise BadInput(
                f"the file is damaged: only {shard.record + 1:,} of {counted(source.metadata.num_rows, 'row')}"
                f" {agreeing(shard.record + 1, 'is')} there"
            )

    def _columns(self, schema: Any) -> list[Column]:
        """The columns to read, the text's first. Raises BadInput for a missing column."""
        own = (self.text_key, self.id_key)
        others = [name for name in (self.metadata_keys or ()) if name not in own]
        if self.metadata_keys is None:
            others = [name for name in schema.names if name not in own]
        if len(set(schema.names)) < len(schema.names):
            raise BadInput(f"two columns have the same name; the columns are {', '.join(map(repr, schema.names))}")
        for name in (self.text_key, *others):
            if name not in schema.names:
                raise BadInput(f"there is no column {name!r}; the columns are {', '.join(map(repr, schema.names))}")
        ids = [self.id_key] if self.id_key in schema.names else []
        asked = {self.text_key, self.id_key, *(self.metadata_keys or ())}
        wanted = dict.fromkeys((self.text_key, *ids, *others))
        columns = [Column.of(schema.field(name), asked=name in asked) for name in wanted]
        if not is_text(columns[0].type):
            raise BadInput(
                f"the column {self.text_key!r} holds {columns[0].type}, not strings; set text_key to another"
            )
        return columns

    def _tell_left_out(self, shard: OpenShard, columns: list[Column]) -> None:
        """Log and note the binary values that became null; `metadata_keys` leaves their column out, or asks for it."""
        assert self._task is not None
        for column in columns:
            if count := column.decode.left_out:
                from stagger.terminal import logger  # Costs a task 1000 file-system calls.

                logger.warning(
                    f"{shard.path}: {counted(count, 'value')} of the column {column.name!r} {agreeing(count, 'is')}"
                    " binary and not UTF-8, and became null. Name the columns to read in metadata_keys."
                )
                noted = self._task.notes.setdefault("binary_values_left_out", {})
                noted[column.name] = noted.get(column.name, 0) + count

    def _documents_of(self, shard: OpenShard, columns: list[Column], batch: Any) -> Iterator[Document]:
        """The documents of a batch. A row that cannot be read is a bad record."""
        wrong = self._too_large(batch)
        values = {column.name: column.values(batch.column(column.name), wrong) for column in columns}
        whole = {column.name for column in columns if column.is_whole}
        texts = values.pop(self.text_key)
        ids = values.pop(self.id_key, repeat(None))
        media = values.pop(MEDIA) if MEDIA in whole else repeat(None)
        merged = values.pop(METADATA) if METADATA in whole else repeat(None)
        names = list(values)
        rows: Iterable[tuple[Any, ...]] = zip(*values.values(), strict=True) if names else repeat(())
        start = shard.record + 1
        # Not strict: the repeat iterators are endless.
        for text, id_, items, more, row in zip(texts, ids, media, merged, rows, strict=False):
            shard.record += 1
            try:
                if wrong and shard.record - start in wrong:
                    raise wrong[shard.record - start]
                if text is None:
                    raise BadRecord("text", f"{self.text_key!r} is null")
                if type(id_) is not str:
                    id_ = default_id(shard.name, shard.record) if id_ is None else id_of(id_)
                metadata = dict(zip(names, row, strict=True))
                if more and any(metadata[name] != more[name] for name in more.keys() & metadata.keys()):
                    raise BadRecord("metadata", f"a column and {METADATA!r} hold different values for the same name")
            except BadRecord as error:
                self.bad(shard, error.kind, str(error))
                continue
            yield Document(text, id_, items or [], {**more, **metadata} if more else metadata)

    def _too_large(self, batch: Any) -> dict[int, BadRecord]:
        """The rows of more than `max_record_bytes` in Arrow's memory, by their number in the batch."""
        limit = self.max_record_bytes
        if batch.nbytes <= limit:
            return {}
        sizes = ((row, batch.slice(row, 1).nbytes) for row in range(batch.num_rows))
        return {
            row: BadRecord("size", f"the row has {counted(size, 'byte')}, more than max_record_bytes ({limit})")
            for row, size in sizes
            if size > limit
        }


@dataclass(frozen=True)
class Column:
    """A column to read, and the conversion of its values.

    `is_whole` is set if a value is the document's whole media or metadata. `convert` is None if Arrow's own conversion
    yields values that JSON has.
    """

    name: str
    type: Any
    is_whole: bool
    convert: Callable[[Any], Any] | None
    decode: Decoder

    @classmethod
    def of(cls, field: Any, *, asked: bool) -> Column:
        """The column of a field; `asked` if the user has named it."""
        from pyarrow import types

        decode = Decoder(strict=asked)
        if is_json(field):
            return cls(field.name, field.type, field.name in (MEDIA, METADATA), exact, decode)
        is_metadata = field.name == METADATA and (types.is_struct(field.type) or types.is_map(field.type))
        is_media = field.name == MEDIA and (types.is_list(field.type) or types.is_large_list(field.type))
        convert = None if is_plain(field.type) else jsonable
        return cls(field.name, field.type, is_metadata or is_media, convert, decode)

    def values(self, data: Any, wrong: dict[int, BadRecord]) -> Sequence[Any]:
        """The values of a part of the column. Unreadable ones are None, and added to `wrong` by their row's number."""
        if has_nanoseconds(self.type):
            data = in_microseconds(data)
        convert = self.convert
        try:
            values: list[Any] = data.to_pylist()
            return values if convert is None else [None if value is None else convert(value) for value in values]
        except (ValueError, OverflowError):
            return [self._value(data[index], index, wrong) for index in range(len(data))]

    @property
    def _advice(self) -> str:
        return "" if self.decode.strict else "; metadata_keys: [...], with the columns to read, leaves it out"

    def _value(self, scalar: Any, index: int, wrong: dict[int, BadRecord]) -> Any:
        try:
            value = scalar.as_py()
            if value is None or self.convert is None:
                return value
            return self.convert(decoded(value, self.decode))
        except UnicodeDecodeError as error:
            place = f"byte {error.object[error.start]:#04x} at position {error.start} of the value"
            wrong[index] = BadRecord("utf-8", f"{self.name!r} is not UTF-8: {place}{self._advice}")
        except (ValueError, OverflowError) as error:
            wrong[index] = BadRecord("value", f"{self.name!r} cannot be read: {first_line(error)}{self._advice}")
        return None


def exact(text: str) -> Any:
    """The JSON value in `text`. orjson turns integers beyond 64 bits into floats."""
    return json.loads(text) if LONG_NUMBER.search(text) else orjson.loads(text)


class Decoder:
    """Decodes binary values as UTF-8. Others are errors if the user has named their column, else None and counted."""

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self.left_out = 0

    def __call__(self, value: bytes) -> str | None:
        try:
            return value.decode()
        except UnicodeDecodeError:
            if self.strict:
                raise
            self.left_out += 1
            return None


def id_of(value: Any) -> str:
    """An integer id as a string. Raises BadRecord for any other type: it might not name a document exactly."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise BadRecord("id", f"the id {value!r} is neither a string nor an integer")


def rows_at_a_time(metadata: Any) -> int:
    """The number of rows that make up about BATCH_BYTES, based on the row group with the largest rows."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size / group.num_rows for group in groups if group.num_rows), default=0.0)
    return BATCH_ROWS if largest < 1 else max(1, min(BATCH_ROWS, int(BATCH_BYTES / largest)))


def why_not_parquet(file: Any) -> str:
    """The reason why a file cannot be read, from its first and last bytes."""
    magic = b"PAR1"
    file.seek(0)
    if file.read(len(magic)) != magic:
        return "not a Parquet file"
    size = file.seek(0, 2)
    file.seek(max(size - len(magic), len(magic)))
    return "the file is damaged" if file.read() == magic else "the file is truncated: it has no footer"


def first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(".")
