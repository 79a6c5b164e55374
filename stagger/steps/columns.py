"""The base of readers of tables: makes documents of Arrow's batches of rows. Needs the extra `parquet`."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, ClassVar

import orjson

from stagger.errors import BadInput, BadRecord, agreeing, counted, missing_extra
from stagger.pipeline import Document
from stagger.pipeline.media import BYTES, media_of
from stagger.steps.arrow_types import decoded, has_nanoseconds, in_microseconds, is_json, is_plain, is_text, jsonable
from stagger.steps.reader import OpenShard, ShardReader, default_id

#: Digits of which an integer beyond 64 bits has at least as many.
LONG_NUMBER = re.compile(r"\d{19}")

#: Names of the columns for a document's media, and for its metadata as a whole.
MEDIA, METADATA = "media", "metadata"


def need_pyarrow() -> None:
    """Raise StaggerError when pyarrow is not installed; the import itself waits for the first file."""
    if importlib.util.find_spec("pyarrow") is None:
        raise missing_extra("parquet", "pyarrow", ModuleNotFoundError("No module named 'pyarrow'"))


@dataclass(kw_only=True)
class ColumnReader(ShardReader):
    """Reads files of rows in columns. All other columns go into the metadata; null becomes None.

    A column `metadata` of structs, or of strings with JSON objects, is merged into the metadata; a column `media` of
    lists becomes the documents' media. Values that JSON does not have become strings: dates and times in ISO 8601
    (nanoseconds cut to microseconds), decimals as digits, binary values decoded as UTF-8. Durations become seconds. A
    binary value that is not UTF-8 is a bad record if `metadata_keys` names its column; else it becomes None, which the
    log and the completion record count.

    Args:
        text_key: the column that holds the text.
        id_key: the column that holds the id; documents without one get `<file>/<row number>`.
        metadata_keys: the other columns to read; null for all.
    """

    text_key: str = "text"
    id_key: str = "id"
    metadata_keys: list[str] | None = None

    adapts_records: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        need_pyarrow()

    def columns(self, schema: Any) -> list[Column]:
        """The columns to read, the text's first. Raises BadInput for a missing column."""
        own = () if self._adapt else (self.text_key, self.id_key)
        others = [name for name in (self.metadata_keys or ()) if name not in own]
        if self.metadata_keys is None:
            others = [name for name in schema.names if name not in own]
        if len(set(schema.names)) < len(schema.names):
            raise BadInput(f"two columns have the same name; the columns are {', '.join(map(repr, schema.names))}")
        for name in (*own[:1], *others):
            if name not in schema.names:
                raise BadInput(f"there is no column {name!r}; the columns are {', '.join(map(repr, schema.names))}")
        asked = {self.text_key, self.id_key, *(self.metadata_keys or ())}
        wanted = dict.fromkeys((*(name for name in own if name in schema.names), *others))
        columns = [Column.of(schema.field(name), asked=name in asked) for name in wanted]
        if own and not is_text(columns[0].type):
            raise BadInput(
                f"the column {self.text_key!r} holds {columns[0].type}, not strings; set text_key to another"
            )
        return columns

    def tell_left_out(self, shard: OpenShard, columns: list[Column]) -> None:
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

    def documents_of(self, shard: OpenShard, columns: list[Column], batch: Any) -> Iterator[Document]:
        """The documents of a batch. A row that cannot be read is a bad record."""
        wrong = self._too_large(batch)
        values = {column.name: column.values(batch.column(column.name), wrong) for column in columns}
        if self._adapt is not None:
            yield from self._adapted_rows(shard, values, wrong)
            return
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
                if text is None and self.leaves_out_empty:
                    text = ""
                if text is None:
                    raise BadRecord("text", f"{self.text_key!r} is null; with skip_empty_text: true, it is left out")
                if type(id_) is not str:
                    id_ = default_id(shard.name, shard.record) if id_ is None else id_of(id_)
                metadata = dict(zip(names, row, strict=True))
                if more is not None and not isinstance(more, dict):
                    metadata, more = {**metadata, METADATA: more}, None
                if items:
                    items = media_of(items)
                if more and any(metadata[name] != more[name] for name in more.keys() & metadata.keys()):
                    raise BadRecord("metadata", f"a column and {METADATA!r} hold different values for the same name")
            except BadRecord as error:
                self.bad(shard, error.kind, str(error))
                continue
            yield Document(text, id_, items or [], {**more, **metadata} if more else metadata)

    def _adapted_rows(
        self, shard: OpenShard, values: dict[str, Sequence[Any]], wrong: dict[int, BadRecord]
    ) -> Iterator[Document]:
        """The documents that the adapter makes of the rows."""
        for number, row in enumerate(zip(*values.values(), strict=True)):
            shard.record += 1
            if number in wrong:
                self.bad(shard, wrong[number].kind, str(wrong[number]))
            elif (document := self.adapted(shard, dict(zip(values, row, strict=True)))) is not None:
                yield document

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
        if field.name == METADATA and is_text(field.type):
            return cls(field.name, field.type, True, object_or_text, decode)
        is_metadata = field.name == METADATA and (types.is_struct(field.type) or types.is_map(field.type))
        is_media = field.name == MEDIA and (types.is_list(field.type) or types.is_large_list(field.type))
        convert = None if is_plain(field.type) else with_content if is_media else jsonable
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


def object_or_text(value: Any) -> Any:
    """The JSON object in a string, as some programs store metadata; any other string as it is."""
    text = value.decode() if isinstance(value, bytes) else value
    if not text.lstrip().startswith("{"):
        return text
    try:
        return exact(text)
    except ValueError:
        return text


def with_content(media: Any) -> Any:
    """A list of media in a form that JSON has, except for their bytes."""
    if not isinstance(media, list):
        return jsonable(media)
    return [
        {key: value if key == BYTES and isinstance(value, bytes) else jsonable(value) for key, value in medium.items()}
        if isinstance(medium, dict)
        else jsonable(medium)
        for medium in media
    ]


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


def first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(".")
