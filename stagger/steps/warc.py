"""WARC files: the pages of a web crawl, as it archived them.

The records are parsed here, not by a library: the available ones stop without an error where a file breaks off within a
record, and lose the following records after one malformed chunked body.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice

from stagger.errors import BadInput, BadRecord, StaggerError
from stagger.pipeline import Document
from stagger.steps.charset import text_of
from stagger.steps.http_body import PIECE_BYTES, decoded, divided, http_fields, looks_decoded
from stagger.steps.reader import OpenShard, ShardReader, default_id

#: Content types read by default: pages.
PAGES = ("text/html", "application/xhtml+xml", "text/plain")

#: Types of the records that are read.
READ_TYPES = (b"response", b"conversion")

#: Allowance in bytes for an HTTP header when a whole record is compared with the limit for bodies.
HTTP_BYTES = 2**20

#: Maximum lines of a record's header.
HEADER_LINES = 1000

_STATUS = re.compile(rb"HTTP/\S+[ \t]+(\d{3})")


@dataclass(kw_only=True)
class ReadWarc(ShardReader):
    """Reads the pages of WARC files: `response` records, and the texts of WET files (`conversion` records).

    The text is the decoded body, after transfer and content encodings are undone. The first charset that fits is used;
    in this order: a byte order mark, the charset of the Content-Type, that of the page's <meta> or XML declaration,
    UTF-8. If none fits, the first of them is used, with replacement characters; if that is UTF-8 and it replaces more
    characters than it decodes beyond ASCII, Windows-1252 is used. The id is the WARC-Record-ID. The metadata are
    `url`, `date` (as in the file), `content_type` and, for a response, `status`.

    Other record types, other content types, and records without text are skipped. A body whose encoding is incomplete
    or damaged is a bad record; but if the record has the field WARC-Truncated, an incomplete one is read as far as it
    goes. Bodies in the encoding `br` need the extra `warc`.

    Args:
        content_types: the content types to read, with `*` for any characters; by default text/html,
            application/xhtml+xml and text/plain. The type that the crawler identified overrides the server's;
            a body without either is HTML if it begins with `<`.
        max_body_bytes: size in bytes above which responses and bodies are skipped; by default only memory limits it.
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
        limit = self.max_body_bytes
        for fields, length in records(shard):
            kind = fields.get(b"warc-type", b"").strip()
            if kind not in READ_TYPES or (limit is not None and length > limit + HTTP_BYTES):
                skip(shard, length)
                continue
            block = shard.stream.read(length)
            if len(block) < length:
                raise breaks_off(f"only {len(block)} of the {length} bytes of the record's content are there")
            try:
                document = self._document(shard, fields, block)
            except BadRecord as error:
                self.bad(shard, error.kind, str(error))
            else:
                if document is not None:
                    yield document

    def _document(self, shard: OpenShard, fields: dict[bytes, bytes], block: bytes) -> Document | None:
        """The document of a record; None to skip the record. Raises BadRecord for a body that cannot be decoded."""
        if min(fields) < b"!":
            raise BadRecord(
                "header", "a line of the record's header continues on the next line, which is not supported"
            )
        head, body, http = b"", block, fields
        if block.startswith(b"HTTP/"):
            head, body = divided(block)
            http = http_fields(head)
        said = http.get(b"content-type", b"")
        type_ = self._wanted(fields.get(b"warc-identified-payload-type", b"").strip() or said or guessed_type(body))
        if type_ is None or not body:
            return None
        if b"content-encoding" in http or b"transfer-encoding" in http:
            body = decoded(body, http, b"warc-truncated" in fields, self.max_body_bytes)
        elif self.max_body_bytes is not None and len(body) > self.max_body_bytes:
            return None
        text = text_of(body, said)
        if not text or text.isspace():
            return None
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


def records(shard: OpenShard) -> Iterator[tuple[dict[bytes, bytes], int]]:
    """The header of each record, by lower-case name, and its content length in bytes; the caller reads the content.

    Raises BadInput for anything but records that are each followed by two empty lines. Missing or additional empty
    lines between two records are tolerated; missing ones at the end of the file mean that it is truncated.
    """
    stream = shard.stream
    tell, readline = stream.tell, stream.readline
    empty = 2
    while True:
        start = tell()
        while (line := readline(PIECE_BYTES)) == b"\r\n" or line == b"\n":
            empty += 1
            start += len(line)
        if not line:
            if empty < 2:
                raise breaks_off("the last record is not followed by two empty lines")
            return
        shard.record += 1
        shard.byte = start
        if not line.startswith(b"WARC/"):
            if line == b"\r" or b"WARC/".startswith(line):
                raise breaks_off("it ends within a line")
            raise BadInput(f"expected a record, found {line[:40]!r}: the file is damaged, or not a WARC file")
        if not line.endswith(b"\r\n"):
            raise BadInput("the record's first line does not end with CRLF: the file is truncated, or was converted")
        fields = {}
        for line in islice(iter(readline, b"\r\n"), HEADER_LINES):
            name, _, value = line.partition(b":")
            fields[name.lower()] = value
        try:
            length = int(fields[b"content-length"])
        except (KeyError, ValueError):
            raise no_length(fields) from None
        if length < 0:
            raise no_length(fields)
        yield fields, length
        empty = 0


def breaks_off(reason: str) -> BadInput:
    return BadInput(f"the file is truncated: {reason}")


def no_length(fields: dict[bytes, bytes]) -> BadInput:
    """The error for a record whose header has no valid Content-Length."""
    if b"" in fields:  # readline() returned nothing: the end of the file.
        return breaks_off("the header of the last record has no end")
    said = fields.get(b"content-length")
    what = "there is no Content-Length" if said is None else f"the Content-Length is {said.strip()[:40]!r}"
    return BadInput(f"{what} in the record's header: the file is damaged")


def skip(shard: OpenShard, length: int) -> None:
    """Read past a record's content. Raises BadInput if it is incomplete."""
    left = length
    while left:
        piece = len(shard.stream.read(min(left, PIECE_BYTES)))
        if not piece:
            raise breaks_off(f"only {length - left} of the {length} bytes of the record's content are there")
        left -= piece


@lru_cache(1024)
def wanted_type(patterns: tuple[str, ...], header: bytes) -> str | None:
    """The content type in a header, without its parameters; None if it matches none of the patterns."""
    name = header.partition(b";")[0].strip().lower().decode("utf-8", "replace")
    return name if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) else None


def guessed_type(body: bytes) -> bytes:
    return b"text/html" if looks_decoded(body) else b"application/octet-stream"
