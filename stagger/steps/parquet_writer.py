"""Writing Parquet: one row per document. Columns hold its text, id and metadata."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from stagger.errors import StaggerError
from stagger.pipeline import Document
from stagger.pipeline.compression import LEVELS
from stagger.pipeline.task_context import OutputFile
from stagger.steps.arrow_types import (
    GUESSED,
    JSON_MARK,
    Json,
    array_type,
    column_type,
    converted,
    json_of,
    kept,
    named_type,
    one_type,
    python_types,
    size_of,
    suggested,
    type_name,
)
from stagger.steps.columns import MEDIA, METADATA, first_line, need_pyarrow
from stagger.steps.writer import ShardWriter, strings_of

#: Valid levels of Arrow's codecs.
LEVEL_RANGES = {"zstd": (1, 22), "gzip": (1, 9)}

#: Most different schemas that a rank notes.
MAX_NOTED = 10


@dataclass(kw_only=True)
class WriteParquet(ShardWriter):
    """Writes Parquet, and passes the documents on.

    The first row group of a file determines the file's columns and their types; the next files of a rank (`max_bytes`)
    have those of its first file. A document that does not fit is an error; none of it is silently dropped. Objects,
    lists of anything but one simple type, and media are written as JSON; ReadParquet restores them. Values that a
    document lacks become null.

    Args:
        compression: zstd, snappy, gzip, or null for none.
        level: the codec's level; by default 3 for zstd, 6 for gzip.
        text_key: the column for the text.
        id_key: the column for the id.
        metadata: whether each key of the metadata becomes a column, or all of them one column `metadata` of JSON.
        columns: types of metadata columns, which then always exist: Arrow's names such as string, int64, float64, bool,
            date32 or timestamp[us]; timestamp (microseconds in UTC); json.
        one_schema: whether a launch fails at the stage's end, and names columns and ranks, if the files in `path` have
            different columns. `columns` makes them the same.
        row_group_bytes: uncompressed size of a row group in bytes. As much is kept in memory.
        save_media_bytes: whether the bytes of media are written, as base64. Otherwise they are left out, and the media
            without them counted.
    """

    filename: str = field(default="{rank}.parquet", kw_only=False)
    compression: Literal["zstd", "snappy", "gzip"] | None = "zstd"
    level: int | None = None
    text_key: str = "text"
    id_key: str = "id"
    metadata: Literal["columns", "json"] = "columns"
    columns: dict[str, str] | None = None
    one_schema: bool = True
    row_group_bytes: int = 16 * 2**20
    save_media_bytes: bool = False
    _schema: Any = field(default=None, init=False, repr=False)
    _rows: Rows | None = field(default=None, init=False, repr=False)  # Of the last file.

    def __post_init__(self) -> None:
        super().__post_init__()
        need_pyarrow()
        if self.row_group_bytes < 1:
            raise StaggerError(f"row_group_bytes is {self.row_group_bytes}; give a number of bytes, at least 1.")
        if self.level is not None:
            low, high = LEVEL_RANGES.get(self.compression or "", (1, 0))
            if not low <= self.level <= high:
                ranges = ", ".join(f"{codec} {low} to {high}" for codec, (low, high) in LEVEL_RANGES.items())
                raise StaggerError(
                    f"compression {self.compression} has no level {self.level} in Parquet; valid levels: {ranges}."
                )
        if self.columns and self.metadata == "json":
            raise StaggerError(
                "columns sets types of metadata columns, but metadata: json writes none; remove one of them."
            )
        if self.text_key == self.id_key or {self.text_key, self.id_key} & {METADATA, MEDIA}:
            raise StaggerError(
                f"text_key {self.text_key!r} and id_key {self.id_key!r} must differ from each other, and from"
                f" {METADATA!r} and {MEDIA!r}; give another name."
            )
        for key in self.columns or ():
            if key in (self.text_key, self.id_key):
                raise StaggerError(f"columns contains {key!r}, which is the column of the text or the id; remove it.")
        self.types()

    def types(self) -> dict[str, Any]:
        """The Arrow types of `columns`; None stands for JSON. Raises StaggerError for an unknown type."""
        if not self.columns:
            return {}
        import pyarrow

        types: dict[str, Any] = {}
        for key, name in self.columns.items():
            try:
                types[key] = None if name == "json" else named_type(name)
            except ValueError as error:
                raise StaggerError(
                    f"columns: there is no type {name!r} for {key!r}; valid are string, int64, float64, bool, date32,"
                    f" timestamp, json, and Arrow's others (pyarrow {pyarrow.__version__})."
                ) from error
        return types

    def adapted_document(self, document: Document) -> Document:
        """The document that the adapter's record amounts to. Raises StaggerError when text or id is missing."""
        record = dict(self.adapted(document))
        for key in (self.text_key, self.id_key):
            if key not in record:
                raise StaggerError(
                    f"The adapter's record of {document.id!r} lacks the key {key!r}, a column of its own: add it, or"
                    " set text_key and id_key."
                )
        return Document(record.pop(self.text_key), record.pop(self.id_key), [], record)

    @property
    def schema(self) -> Any:
        """The schema of the rank's first file, which its next files have, too; None if there is none yet."""
        return self._schema

    def note(self, schema: Any, empty: Collection[str]) -> None:
        """Keep a file's schema for the rank's next files, and note it. `empty` are columns without a value."""
        if not self.one_schema:
            return
        assert self._task is not None
        self._schema = schema
        columns = {field.name: "null" if field.name in empty else column_type(field) for field in schema}
        noted = self._task.notes.setdefault("schemas", {}).setdefault(self.path, [])
        if columns not in noted and len(noted) < MAX_NOTED:
            noted.append(columns)

    def end_shard(self) -> None:
        super().end_shard()
        if self.shard_by_shard:  # A resumed rank does not know the schemas of its earlier shards.
            self._schema = None

    def new_output(self, path: str) -> OutputFile:
        file = super().new_output(path)
        self._rows = Rows(self, file)
        file.closing = self._rows.close
        return file

    def waiting_of(self, file: OutputFile) -> Rows:
        assert self._rows is not None
        return self._rows

    def write(self, documents: Iterable[Document]) -> Iterator[Document]:
        return self._write_split(documents) if self._fields else self._write(documents)

    def _write_split(self, documents: Iterable[Document]) -> Iterator[Document]:
        split = self.split
        for document in documents:
            series = split.series_for(document, 1)
            rows, file = series.waiting, series.file
            assert isinstance(rows, Rows)
            assert file is not None
            before = rows.waiting
            rows.add(document)
            file.records += 1
            split.wrote(series, before)
            yield document

    def _write(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            file = self.file_for(1)
            assert self._rows is not None
            self._rows.add(document)
            file.records += 1
            yield document


class Rows:
    """The rows of one file: buffered, and written as a row group once there are enough bytes."""

    def __init__(self, step: WriteParquet, file: OutputFile) -> None:
        self._step = step
        self._sink = Sink(file)
        self._enough = min(step.row_group_bytes, step.max_bytes or step.row_group_bytes)
        self._texts: list[str] = []
        self._ids: list[str] = []
        self._metadata: list[dict[str, Any]] = []
        self._size = 0
        self._schema = step.schema
        self._writer: Any = None

    def add(self, document: Document) -> None:
        """Add a row. The document may be modified afterwards."""
        if self._step.adapter is not None:
            document = self._step.adapted_document(document)
        row = self._row(document)
        text, id_ = document.text, document.id
        if type(text) is not str or type(id_) is not str:
            text, id_ = strings_of(document)
        self._texts.append(text)
        self._ids.append(id_)
        self._metadata.append(row)
        self._size += size_of(text) + sum(map(size_of, row.values()))
        if self._size >= self._enough:
            self.spill()

    @property
    def waiting(self) -> int:
        """Bytes of the rows that are not written yet."""
        return self._size

    def _row(self, document: Document) -> dict[str, Any]:
        step = self._step
        row: dict[str, Any]
        if step.metadata == "json":
            row = {METADATA: json_of(document.metadata), MEDIA: None}
        else:
            row = {key: kept(value) for key, value in document.metadata.items()}
        own = {step.text_key, step.id_key, *((MEDIA,) if document.media else ())}
        if step.metadata == "columns" and (taken := row.keys() & own):
            raise StaggerError(
                f"The metadata of {document.id} has the key {min(taken)!r}, which is a column of its own; give text_key"
                " or id_key another name, or use metadata: json."
            )
        if document.media:
            row[MEDIA] = json_of(step.media_records(document, with_bytes=step.save_media_bytes))
        return row

    def close(self) -> None:
        """Write the remaining rows and the footer."""
        self.spill()
        if self._writer is not None:
            with self._sink:
                self._writer.close()

    def spill(self) -> None:
        """Write the rows that wait, as a row group."""
        if not self._texts:
            return
        import pyarrow

        if self._schema is None:  # Another file of the rank may have one by now.
            self._schema = self._step.schema or self._first_schema()
        self._refuse_new_keys()
        names = self._schema.names[2:]
        columns: list[list[Any]] = [
            self._texts,
            self._ids,
            *([row.get(name) for row in self._metadata] for name in names),
        ]
        arrays = [self._array(field, values) for field, values in zip(self._schema, columns, strict=True)]
        with self._sink:
            if self._writer is None:
                self._writer = self._open()
            self._writer.write_table(pyarrow.Table.from_arrays(arrays, schema=self._schema))
        self._texts, self._ids, self._metadata, self._size = [], [], [], 0

    def _open(self) -> Any:
        from pyarrow import parquet

        step = self._step
        level = LEVELS["zstd"] if step.level is None and step.compression == "zstd" else step.level
        return parquet.ParquetWriter(
            self._sink,
            self._schema,
            compression=step.compression or "none",
            compression_level=level,
            use_dictionary=self._schema.names[2:],
            write_page_checksum=True,
            write_statistics=self._schema.names[1:],  # The least text and the greatest would be most of a small file.
        )

    def _first_schema(self) -> Any:
        import pyarrow

        step = self._step
        given = step.types() if step.metadata == "columns" else {METADATA: None, MEDIA: None}
        keys = dict.fromkeys([*(key for row in self._metadata for key in row), *given])
        fields = [pyarrow.field(name, pyarrow.string(), nullable=False) for name in (step.text_key, step.id_key)]
        for key in keys:
            type_ = given[key] if key in given else self._guessed_type(key)
            mark = None if type_ is not None else JSON_MARK
            fields.append(pyarrow.field(key, pyarrow.string() if type_ is None else type_, metadata=mark))
        schema = pyarrow.schema(fields)
        step.note(
            schema, {key for key in keys.keys() - given.keys() if all(row.get(key) is None for row in self._metadata)}
        )
        return schema

    def _guessed_type(self, key: str) -> Any:
        """The type of a column, inferred from the first rows; None for JSON. Raises StaggerError when values differ."""
        import pyarrow

        values = [row[key] for row in self._metadata if row.get(key) is not None]
        kinds = set(map(type, values))
        if len(kinds) == 1 and (name := array_type(values[0])) is not None:
            return named_type(name)
        if kinds <= {Json, list} and kinds:
            items = {type(item) for value in values if type(value) is list for item in value}
            simple = Json not in kinds and items <= GUESSED.keys() and one_type(items) is not None
            return pyarrow.list_(pyarrow.type_for_alias(one_type(items))) if simple else None
        if not kinds:
            return pyarrow.string()
        if (name := one_type(kinds)) is not None:
            return named_type(name)
        first = type(values[0])
        other = next((value for value in values if type(value) is not first), None)
        if other is None:
            raise self._misfit(key, "JSON values", values[0])
        raise self._misfit(key, type_name(values[0]), other)

    def _array(self, field: Any, values: list[Any]) -> Any:
        """A column of the row group. Raises StaggerError for a value that does not fit."""
        import pyarrow

        if field.metadata:
            return pyarrow.array([None if value is None else json_of(value) for value in values], field.type)
        allowed = python_types(field.type) if field.nullable else {str}
        if allowed is not None and (strange := set(map(type, values)) - allowed):
            value = next(value for value in values if type(value) in strange)
            raise self._misfit(field.name, str(field.type), value)
        try:
            return converted(values, field.type)
        except (pyarrow.ArrowException, ValueError, TypeError, OverflowError):
            for value in values:
                try:
                    converted([value], field.type)
                except (pyarrow.ArrowException, ValueError, TypeError, OverflowError) as error:
                    raise self._misfit(field.name, str(field.type), value, f" ({first_line(error)})") from error
            raise

    def _misfit(self, key: str, type_: str, value: Any, why: str = "") -> StaggerError:
        step = self._step
        if key in (step.text_key, step.id_key):
            values = self._texts if key == step.text_key else self._ids
            document = self._ids[next(index for index, one in enumerate(values) if one is value)]
            return StaggerError(
                f"The column {key!r} cannot hold the value of document {document}{why}; it takes valid strings."
            )
        document = self._ids[next(index for index, row in enumerate(self._metadata) if row.get(key) is value)]
        return StaggerError(
            f"The column {key!r} holds {type_}, but the metadata of {document} has {type_name(value)} there{why}; set a"
            f" type that takes both in columns, such as {key}: json, or use metadata: json."
        )

    def _refuse_new_keys(self) -> None:
        known = set(self._schema.names)
        for id_, row in zip(self._ids, self._metadata, strict=True):
            if new := [key for key in row if key not in known]:
                raise StaggerError(
                    f"{id_} has {new[0]!r} ({type_name(row[new[0]])}), which is not a column of this file: no document"
                    f" of the first row group has it; set its type in columns, as {new[0]}: {suggested(row[new[0]])},"
                    " or use metadata: json."
                )


class Sink:
    """The file that pyarrow writes to. Ignores writes outside its `with`: a dropped writer would write its footer."""

    def __init__(self, file: OutputFile) -> None:
        self._output = file.output
        self._open = False
        self._place = 0
        self.closed = False

    def __enter__(self) -> None:
        self._open = True

    def __exit__(self, *_: object) -> None:
        self._open = False

    def write(self, data: Any) -> int:
        data = bytes(data)
        if self._open:
            self._output.write(data)
        self._place += len(data)
        return len(data)

    def tell(self) -> int:
        return self._place

    def flush(self) -> None: ...

    def close(self) -> None: ...
