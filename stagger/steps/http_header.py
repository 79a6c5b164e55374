"""The header of an HTTP response: where it ends, and the fields that determine how to read the body."""

from __future__ import annotations

import fnmatch
import re
from functools import lru_cache

#: Spaces before the colon are against the standard, but servers send them, and browsers accept them.
_FIELDS = re.compile(rb"\n(?i:(content-(?:type|encoding)|transfer-encoding))[ \t]*:[ \t]*([^\r\n]*)")
_FOLD = re.compile(rb"\r?\n[ \t]+")

#: One element of a comma-separated list. A comma within quotes does not end it.
_ELEMENT = re.compile(rb'(?:[^,"]|"(?:[^"\\]|\\.)*(?:"|\Z))+', re.DOTALL)


def divided(block: bytes) -> tuple[bytes, bytes]:
    """The header and the body of a response, split at the first empty line. Lines end with CRLF or with LF."""
    end = block.find(b"\n\r\n")
    if (bare := block.find(b"\n\n", 0, end + 2 if end >= 0 else None)) >= 0:
        return block[: bare + 1], block[bare + 2 :]
    if end >= 0:
        return block[: end + 1], block[end + 3 :]
    return block, b""


def http_fields(head: bytes) -> dict[bytes, bytes]:
    """The HTTP header fields that determine how to read the body, by lower-case name.

    A repeated field has the value of one field that lists all values, as the standard prescribes.
    """
    if b"\n " in head or b"\n\t" in head:
        head = _FOLD.sub(b" ", head)
    found: list[tuple[bytes, bytes]] = _FIELDS.findall(head)
    fields = {name.lower(): value for name, value in found}
    if len(fields) < len(found):
        for name in fields:
            fields[name] = b", ".join(value for other, value in found if other.lower() == name)
    return fields


@lru_cache(1024)
def effective_type(header: bytes) -> bytes:
    """The one content type, with its parameters, that a Content-Type header with a list of them means; may be empty.

    It is the last valid one, and inherits the charset of an earlier one that names the same type
    (https://fetch.spec.whatwg.org/#concept-header-extract-mime-type).
    """
    chosen = essence = charset = b""
    for element in _ELEMENT.findall(header):
        name, _, parameters = element.strip().partition(b";")
        name = name.strip().lower()
        if b"/" not in name or name == b"*/*":
            continue
        has_charset = b"charset" in parameters.lower()
        if has_charset or name != essence:
            charset = parameters if has_charset else b""
        chosen, essence = element.strip() if has_charset else name + b";" + charset, name
    return chosen


@lru_cache(1024)
def wanted_type(patterns: tuple[str, ...], header: bytes) -> str | None:
    """The content type in a header, without its parameters; empty if it has none, None if it matches no pattern."""
    name = effective_type(header).partition(b";")[0].strip().lower().decode("utf-8", "replace")
    if not name:
        return ""
    return name if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) else None
