"""WARC files: the pages of a web crawl, as it archived them.

The records are parsed here, not by a library: the available ones stop without an error where a file breaks off within a
record, and lose the following records after one malformed chunked body.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from io import BufferedReader
from itertools import islice
from typing import TYPE_CHECKING, BinaryIO

from stagger.errors import BadInput, BadRecord, StaggerError, agreeing, counted
from stagger.pipeline import Document
from stagger.pipeline.compression import Content, buffered
from stagger.steps.charset import text_of
from stagger.steps.http_body import PIECE_BYTES, decoded, looks_decoded
from stagger.steps.http_header import divided, http_fields, wanted_type
from stagger.steps.reader import OpenShard, ShardReader, default_id

if TYPE_CHECKING:
    from stagger.steps.warc_members import Members

#: Content types read by default: pages.
PAGES = ("text/html", "application/xhtml+xml", "text/plain")

#: Types of the records that are read, and of those that are left out.
READ_TYPES = (b"response", b"conversion")
OTHER_TYPES = (b"request", b"metadata", b"warcinfo", b"revisit", b"resource", b"continuation")

#: Allowance in bytes for an HTTP header when a whole record is compared with the limit for bodies.
HTTP_BYTES = 2**20

#: Maximum lines of a record's header, and maximum bytes of one of them.
HEADER_LINES = 1000
LINE_BYTES = 2**18

_STATUS = re.compile(rb"HTTP/\S+[ \t]+(\d{3})")

Fields = dict[bytes, bytes]

#: What becomes of a record: its document, the reason to leave it out, or the error if it is bad.
Made = Document | str | BadRecord


@dataclass(kw_only=True)
class ReadWarc(ShardReader):
    """Reads the pages of WARC files: `response` records, and the texts of WET files (`conversion` records).

    The text is the decoded body, after transfer and content encodings are undone. The first charset that fits is used;
    in this order: a byte order mark, the charset of the Content-Type, that of the page's <meta> or XML declaration,
    UTF-8. If none fits, the first of them is used, with replacement characters; if that is UTF-8 and it replaces more
    characters than it decodes beyond ASCII, Windows-1252 is used. The id is the WARC-Record-ID. The metadata are
    `url`, `date` (as in the file), `content_type` and, for a response, `status`.

    Other record types, other content types, and records without text are left out, and counted by reason. A body whose
    encoding is incomplete or damaged is a bad record; but if the record has the field WARC-Truncated, an incomplete one
    is read as far as it goes. Bodies in the encoding `br` need the extra `warc`.

    With `on_bad_record: skip`, a damaged record of a .warc.gz or .warc.zst whose records are compressed one by one is
    a bad record, too: the reader goes on with the next gzip member or zstd frame.

    Args:
        content_types: the content types to read, with `*` for any characters; by default text/html,
            application/xhtml+xml and text/plain. The type that the crawler identified overrides the server's;
            a body without either is HTML if it begins with `<`.
        max_body_bytes: size in bytes above which responses and bodies are left out; by default, those above
            max_record_bytes are bad records.
    """

    content_types: list[str] | None = None
    max_body_bytes: int | None = None
    _wanted: Callable[[bytes], str | None] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_body_bytes is not None and self.max_body_bytes < 1:
            raise StaggerError(
                f"max_body_bytes is {self.max_body_bytes}; give the size of a body in bytes, at least 1."
            )
        if self.content_types is not None and not self.content_types:
            raise StaggerError("content_types is empty, so nothing would be read; leave it out, or list types.")
        types = PAGES if self.content_types is None else self.content_types
        self._wanted = partial(wanted_type, tuple(name.lower() for name in types))

    def read(self, shard: OpenShard) -> Iterator[Document]:
        assert self._task is not None
        skips = self.on_bad_record == "skip" and shard.codec in ("gzip", "zstd")
        left_out, stop = self._task.left_out, self._task.circumstances.stop
        for made, _ in self._past_damage(shard) if skips else self._records(shard, shard.stream):
            if isinstance(made, str):
                left_out[made] = left_out.get(made, 0) + 1
                if stop.signal is not None:
                    stop.check()
            elif isinstance(made, BadRecord):
                self.bad(shard, made.kind, str(made))
            else:
                yield made

    def _made(self, shard: OpenShard, fields: Fields, block: bytes) -> Made:
        try:
            return self._document(shard, fields, block)
        except BadRecord as error:
            return error

    def _document(self, shard: OpenShard, fields: Fields, block: bytes) -> Document | str:
        """The document of a record, or the reason to leave the record out.

        Raises BadRecord for a body that cannot be decoded.
        """
        if min(fields) < b"!":
            raise BadRecord(
                "header", "a line of the record's header continues on the next line, which is not supported"
            )
        head, body, http = b"", block, fields
        if block.startswith(b"HTTP/"):
            head, body = divided(block)
            http = http_fields(head)
        said = http.get(b"content-type", b"")
        type_ = self._wanted(fields.get(b"warc-identified-payload-type", b"").strip() or said)
        if type_ is None:
            return "content_types"
        if b"content-encoding" in http or b"transfer-encoding" in http:
            limit = self.max_record_bytes if self.max_body_bytes is None else self.max_body_bytes
            undone = decoded(body, http, b"warc-truncated" in fields, min(limit, self.max_record_bytes))
            if undone is None:
                if limit < self.max_record_bytes:
                    return "max_body_bytes"
                raise self._beyond_limit("the decoded body is larger")
            body = undone
        elif self.max_body_bytes is not None and len(body) > self.max_body_bytes:
            return "max_body_bytes"
        if not type_:
            type_ = self._wanted(guessed_type(body))
            if type_ is None:
                return "content_types" if body else empty(head)
        text = text_of(body, said)
        if not text or text.isspace():
            return empty(head)
        # Some crawlers put the URL in angle brackets, as an old version of the standard required.
        metadata: dict[str, str | int] = {
            "url": fields.get(b"warc-target-uri", b"").strip(b"<> \r\n").decode("utf-8", "replace"),
            "date": fields.get(b"warc-date", b"").strip().decode("utf-8", "replace"),
            "content_type": type_,
        }
        if (status := _STATUS.match(head)) is not None:
            metadata["status"] = int(status[1])
        id_ = fields.get(b"warc-record-id", b"").strip().decode("utf-8", "replace")
        return Document(text, id_ or default_id(shard.name, shard.record), [], metadata)

    def _records(
        self, shard: OpenShard, stream: BufferedReader, begin: int = 0, *, empty: int = 2
    ) -> Iterator[tuple[Made, int]]:
        """What becomes of each record of a stream that begins at byte `begin` of the content; the offset after it.

        This is yielded once it is certain that another record, or the end, follows. Raises BadInput for anything but
        records that are each followed by two empty lines. Missing or additional empty lines between two records are
        tolerated; fewer than `empty` of them at the end of the file mean that it is truncated.
        """
        tell, read, readline = stream.tell, stream.read, partial(stream.readline, LINE_BYTES)
        made: Made | None = None
        found = 0
        while True:
            start = begin + tell()
            while (line := readline()) == b"\r\n" or line == b"\n":
                found += 1
                start += len(line)
            if line and not line.startswith(b"WARC/"):
                shard.record += 1
                shard.byte = start
                raise no_record(line)
            if made is not None:
                if not line and found < empty:
                    raise breaks_off("the last record is not followed by two empty lines")
                yield made, start
            if not line:
                return
            shard.record += 1
            shard.byte = start
            fields, length = header(line, readline)
            made = unread_type(fields.get(b"warc-type", b"")) or self._too_large(length)
            if made is None or length <= PIECE_BYTES:
                block = read(length)
                if len(block) < length:
                    raise lacks_content(len(block), length)
                made = made or self._made(shard, fields, block)
            else:
                skip(stream, length)
            found = 0

    def _too_large(self, length: int) -> Made | None:
        """What becomes of a record whose content of `length` bytes is not read."""
        if self.max_body_bytes is not None and length > self.max_body_bytes + HTTP_BYTES:
            return "max_body_bytes"
        if length > self.max_record_bytes:
            return self._beyond_limit(f"the record has {counted(length, 'byte')}")
        return None

    def _beyond_limit(self, what: str) -> BadRecord:
        return BadRecord("size", f"{what}, more than max_record_bytes ({self.max_record_bytes})")

    def _past_damage(self, shard: OpenShard) -> Iterator[tuple[Made, int]]:
        """The records of a compressed shard; where it is damaged, those that follow the damage."""
        place = 0
        number = -1
        try:
            for record in self._records(shard, shard.stream):
                place, number = record[1], shard.record
                yield record
            return
        except BadInput as error:
            damage = error
        from stagger.steps.warc_members import Members

        members = Members(self._again(shard), shard.codec)
        try:
            shard.took(members.size)
            start: int | None = members.find(place, number + 1, damage)
            shard.record = number
            while start is not None:
                start = yield from self._record_of_member(shard, members, start)
        finally:
            members.close()

    def _again(self, shard: OpenShard) -> BinaryIO:
        """The file as stored, opened once more: the first pass cannot go back."""
        assert self._task is not None
        (planned,) = [one for one in self._task.shards if self.path_of(one) == shard.path]
        pieces = self._task.storage.stream(shard.path, planned.size, planned.version)
        return OpenShard(shard.name, shard.path, shard.codec, pieces).as_file()

    def _record_of_member(
        self, shard: OpenShard, members: Members, start: int
    ) -> Generator[tuple[Made, int], None, int | None]:
        """The record that the member at byte `start` of the file holds; counts it if it is damaged.

        Returns where the next record's member begins, or None. Raises BadInput if the damage has no certain end.
        """
        number, place = shard.record, members.given
        found = False
        try:
            stream = buffered(Content(members.record(start)))
            for record in self._records(shard, stream, place, empty=0):
                found = True
                yield record
            return members.next()
        except BadInput as error:
            damage = error
        if found:  # The member holds several records: it is unknown how many would be lost.
            raise damage
        shard.record, shard.byte = number + 1, place
        following = members.after(start, damage)
        if following is None and isinstance(damage, BreaksOff):
            raise damage
        self.bad(shard, "damaged", str(damage))
        return following


@lru_cache
def unread_type(value: bytes) -> str | None:
    """The reason to leave out a record, by the value of its field WARC-Type; None if such records are read."""
    kind = value.strip().lower()
    if kind in READ_TYPES:
        return None
    return f"record type {kind.decode()}" if kind in OTHER_TYPES else "record type unknown"


def empty(head: bytes) -> str:
    """The reason to leave out a record without text; with the status of its response, if that is not 200."""
    status = _STATUS.match(head)
    return "empty" if status is None or status[1] == b"200" else f"empty, status {status[1].decode()}"


def header(line: bytes, readline: Callable[[], bytes]) -> tuple[Fields, int]:
    """The header that begins with `line`, by lower-case name, and the record's content length in bytes."""
    if not line.endswith(b"\r\n"):
        raise BadInput("the record's first line does not end with CRLF: the file is truncated, or was converted")
    fields: Fields = {}
    for line in islice(iter(readline, b"\r\n"), HEADER_LINES):
        name, _, value = line.partition(b":")
        fields[name.lower()] = value
    if b"warc-type" not in fields or b"content-length" not in fields:  # Perhaps there are spaces before the colons.
        fields = {name.rstrip(b" \t"): value for name, value in fields.items()}
    if b"warc/1.0\r\n" in fields or b"warc/1.1\r\n" in fields:
        raise BadInput("another record begins within the record's header: the file is damaged")
    try:
        length = int(fields[b"content-length"])
    except (KeyError, ValueError):
        raise no_length(fields) from None
    if length < 0:
        raise no_length(fields)
    return fields, length


class BreaksOff(BadInput):
    """The end of the file, or of a record's part of it, is missing."""


def breaks_off(reason: str) -> BadInput:
    return BreaksOff(f"the file is truncated: {reason}")


def no_record(line: bytes) -> BadInput:
    """The error for a line that stands where a record should begin."""
    if line == b"\r" or b"WARC/".startswith(line):
        return breaks_off("it ends within a line")
    return BadInput(f"expected a record, found {line[:40]!r}: the file is damaged, or not a WARC file")


def lacks_content(found: int, length: int) -> BadInput:
    return breaks_off(
        f"only {found:,} of the {counted(length, 'byte')} of the record's content {agreeing(found, 'is')} there"
    )


def no_length(fields: dict[bytes, bytes]) -> BadInput:
    """The error for a record whose header has no valid Content-Length."""
    if b"" in fields:  # readline() returned nothing: the end of the file.
        return breaks_off("the header of the last record has no end")
    said = fields.get(b"content-length")
    what = "there is no Content-Length" if said is None else f"the Content-Length is {said.strip()[:40]!r}"
    return BadInput(f"{what} in the record's header: the file is damaged")


def skip(stream: BufferedReader, length: int) -> None:
    """Read past a record's content. Raises BadInput if it is incomplete."""
    left = length
    while left:
        piece = len(stream.read(min(left, PIECE_BYTES)))
        if not piece:
            raise lacks_content(length - left, length)
        left -= piece


def guessed_type(body: bytes) -> bytes:
    return b"text/html" if looks_decoded(body) else b"application/octet-stream"
