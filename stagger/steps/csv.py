"""CSV and TSV: one document per record. Columns hold its text, id and metadata."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from stagger.errors import BadInput, StaggerError, counted
from stagger.pipeline import Document
from stagger.pipeline.compression import EXTENSIONS, LongLine
from stagger.steps.jsonl import object_in
from stagger.steps.reader import CR_ONLY, OpenShard, ShardReader, default_id

#: Maximum characters of a field: far more than any text has, but fewer than a large file with an unclosed quote.
FIELD_CHARS = 2**28

QUOTE = b'"'

#: The column whose strings may be JSON objects, as some programs store metadata.
METADATA = "metadata"

#: Raised where the lines of one record exceed the limit, not one line.
TOO_LONG = LongLine("several lines")


@dataclass(kw_only=True)
class ReadCsv(ShardReader):
    """Reads CSV in UTF-8, quoted as spreadsheets and databases do: `"a ""quoted"" field, over two lines"`.

    All values are strings; empty lines are skipped. A file truncated within a quoted field or between fields is
    detected; one truncated within the last field of a record is detected only if it was compressed.

    Args:
        text_key: the column that holds the text.
        id_key: the column that holds the id; documents with an empty id or none get `<file>/<record number>`.
        metadata_keys: the columns that go into the metadata; null for all others.
        delimiter: the character between fields; by default a tab for files named .tsv, otherwise a comma.
        columns: the columns' names, if the files have no header line.
    """

    text_key: str = "text"
    id_key: str = "id"
    metadata_keys: list[str] | None = None
    delimiter: str | None = None
    columns: list[str] | None = None

    adapts_records: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise StaggerError(f"delimiter is {self.delimiter!r}; give one character, such as ',' or a tab.")
        if self.columns is not None:
            try:
                Layout.of(self, self.columns)
            except BadInput as error:
                raise StaggerError(f"columns: {error}.") from error

    def read(self, shard: OpenShard) -> Iterator[Document]:
        csv.field_size_limit(max(csv.field_size_limit(), FIELD_CHARS))
        delimiter = self.delimiter or delimiter_of(shard.name)
        lines = Lines(shard, self.max_record_bytes)
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        layout = None if self.columns is None else Layout.of(self, self.columns)
        while True:
            start = lines.start = lines.place
            lines.not_utf8 = ""
            try:
                row = next(rows, None)
                wrong = ("utf-8", lines.not_utf8) if lines.not_utf8 else None
            except (csv.Error, LongLine) as error:
                row, wrong = [""], self._why(shard, start, lines, error)
                rows = csv.reader(lines, delimiter=delimiter, strict=True)
            if row is None:
                break
            if not row:
                continue
            if layout is None:
                shard.record, shard.byte = 0, start
                if wrong is not None:
                    raise BadInput(f"the header line cannot be read: {wrong[1]}")
                if lines.broken_off:
                    raise BadInput("the header line breaks off: the file is truncated")
                layout = Layout.of(self, row)
                shard.record = shard.byte = -1
                continue
            shard.record += 1
            if wrong is None and len(row) != layout.width:
                shard.byte = start
                if len(row) < layout.width and lines.broken_off:
                    raise BadInput(
                        f"the last line breaks off after {counted(len(row), 'field')}: the file is truncated"
                    )
                wrong = ("columns", f"{counted(len(row), 'field')} for {counted(layout.width, 'column')}")
            if wrong is not None:
                shard.byte = start
                self.bad(shard, *wrong)
                if wrong[0] == "size" and not lines.pass_record():
                    shard.byte = start
                    raise BadInput(f"{wrong[1]}; its last quoted field is not closed at the end of the file")
                continue
            if self._adapt is None:
                yield layout.document(shard, row)
            elif (document := self.adapted(shard, dict(zip(layout.names, row, strict=True)))) is not None:
                yield document
        if layout is None:
            raise BadInput("there is no header line: the file is empty; if the files have no header, set columns")

    def _why(self, shard: OpenShard, start: int, lines: Lines, error: csv.Error | LongLine) -> tuple[str, str]:
        """The kind of a malformed record, and the reason. Raises BadInput if the rest cannot be read either."""
        if isinstance(error, LongLine):
            return "size", self.too_long("record")
        if lines.ended:
            shard.record += 1
            shard.byte = start
            raise BadInput(
                "a quoted field is not closed: the file is truncated, or the quote belongs to the text"
            ) from error
        if "field limit" in str(error):
            return "size", f"a field has more than {FIELD_CHARS} characters; is a quote not closed?"
        if "new-line character" not in str(error):
            return "csv", f"not CSV: {error}"
        if lines.only_line:
            shard.record += 1
            shard.byte = start
            raise BadInput(CR_ONLY) from error
        return "csv", "not CSV: a carriage return (CR) stands outside quotes; lines end with LF or CRLF"


def delimiter_of(name: str) -> str:
    """The default delimiter for a file of this name."""
    root, dot, ending = name.lower().rpartition(".")
    return "\t" if (root if dot + ending in EXTENSIONS else name.lower()).endswith(".tsv") else ","


class Lines:
    """The lines of a shard, decoded, for the csv module. Raises LongLine where a record exceeds `limit` bytes.

    `place` is the offset after the last line read; `start` is that of the current record, which the reader sets.
    `not_utf8` is the reason why a line was not UTF-8, `ended` whether the end was reached.
    """

    def __init__(self, shard: OpenShard, limit: int) -> None:
        self._shard = shard
        self._limit = limit
        self._stream = shard.text_stream(limit)
        self._line = b"\n"
        self._cut = False  # Whether the line after the last one was found too long while it was read.
        shard.content.quote = QUOTE
        self.start = self.place = self._first = self._stream.tell()
        self.not_utf8 = ""
        self.ended = False

    @property
    def broken_off(self) -> bool:
        """Whether the last line read has no line end."""
        return not self._line.endswith((b"\n", b"\r"))

    @property
    def only_line(self) -> bool:
        """Whether the last line read is the whole file."""
        return self.place - len(self._line) == self._first and not self._line.endswith(b"\n")

    def __iter__(self) -> Iterator[str]:
        try:
            for line in self._stream:
                self._line = line
                self.place += len(line)
                if self.place - self.start > self._limit:
                    raise TOO_LONG
                try:
                    text = line.decode()
                except UnicodeDecodeError as error:
                    text = line.decode(errors="replace")
                    self.not_utf8 = f"not UTF-8: byte {line[error.start]:#04x} at position {error.start} of a line"
                yield text
        except LongLine as error:
            self._cut = error is not TOO_LONG
            raise
        self.ended = True

    def pass_record(self) -> bool:
        """Read past the rest of a record that is too long; whether its end was found."""
        # A record goes on after a line end only within quotes.
        if self._cut:
            quoted = (self.place > self.start) ^ (self._shard.content.quotes % 2 > 0)
        else:
            quoted = (self.place - len(self._line) > self.start) ^ (self._line.count(QUOTE) % 2 > 0)
        closed = self._shard.pass_line(QUOTE, quoted) if self._cut or quoted else True
        self._cut = False
        self.place = self._stream.tell()
        return closed


@dataclass(frozen=True)
class Layout:
    """The roles of a file's columns, by their indices."""

    names: list[str]
    text: int
    id: int | None
    metadata: list[tuple[str, int]] = field(default_factory=list)

    @property
    def width(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, step: ReadCsv, names: list[str]) -> Layout:
        """The layout of a file with these column names. Raises BadInput for a missing or a duplicate column."""
        there = f"the columns are {', '.join(map(repr, names))}"
        index = {name: place for place, name in enumerate(names)}
        if len(index) < len(names):
            twice = next(name for place, name in enumerate(names) if index[name] != place)
            raise BadInput(f"the column {twice!r} appears twice; {there}")
        others = [name for name in names if name not in (step.text_key, step.id_key)]
        wanted = others if step.metadata_keys is None else step.metadata_keys
        own = () if step.adapter is not None else (step.text_key,)
        for name in (*own, *wanted):
            if name not in index:
                raise BadInput(f"there is no column {name!r}; {there}")
        return cls(
            names, index.get(step.text_key, -1), index.get(step.id_key), [(name, index[name]) for name in wanted]
        )

    def document(self, shard: OpenShard, row: list[str]) -> Document:
        id_ = "" if self.id is None else row[self.id]
        metadata: dict[str, Any] = {name: row[place] for name, place in self.metadata}
        if METADATA in metadata and (found := object_in(metadata[METADATA])) is not None:
            del metadata[METADATA]
            metadata = {**found, **metadata}
        return Document(row[self.text], id_ or default_id(shard.name, shard.record), [], metadata)
