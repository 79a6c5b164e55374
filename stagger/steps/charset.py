"""Detects the character set of a web page, and decodes its text."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from functools import lru_cache

from stagger.steps.http_header import effective_type

#: Charsets that browsers read as a superset of them (https://encoding.spec.whatwg.org/#names-and-labels).
LARGER = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
}

#: Charset names that Python does not know.
ALIASES = {"windows-874": "cp874", "windows-31j": "cp932", "iso-8859-8-i": "iso-8859-8", "macintosh": "mac-roman"}

#: Codecs of Python that are not charsets of web pages.
NO_CHARSETS = ("idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined", "utf-7")

#: Byte order mark -> charset.
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}

_CHARSET = re.compile(rb"charset\s*=\s*[\"']?\s*([^\s\"';,]+)", re.I)

#: A declaration of the charset, or the start of a part of the page in which a declaration has no effect.
_MARKUP = re.compile(
    rb"<(?:(meta[\s/]|\?xml\s)|(!--)|(script|style|title|textarea|xmp|iframe|noembed|noframes)(?=[\s/>]))", re.I
)
_DECLARED = re.compile(rb"<(?:meta[\s/][^>]*?charset|\?xml\s[^>]*?encoding)\s*=\s*[\"']?\s*([\w.:+-]+)", re.I)

#: Bytes at the start of a page in which a declaration of its charset is always heeded. Browsers search 1024, and read
#: the page again if they find one later; here one that is later is heeded if the page is not UTF-8.
EARLY_BYTES = 2048

#: Maximum bytes of a <meta> element that is searched for a charset: a search without an end would take quadratic time.
META_BYTES = 2048


def text_of(body: bytes, content_type: bytes) -> str:
    """The body decoded by its likeliest charset that fits; see `ReadWarc` for the order."""
    likeliest = ""
    for charset in charsets(body, content_type):
        try:
            return body.decode(charset)
        except UnicodeError:
            likeliest = likeliest or charset
    try:
        return body.decode()
    except UnicodeError:
        pass
    for charset in declared(body, len(body)):
        try:
            return body.decode(charset)
        except UnicodeError:
            likeliest = likeliest or charset
    text = body.decode(likeliest or "utf-8", "replace")
    if likeliest not in ("", "utf-8"):
        return text
    wrong = text.count("\ufffd")
    right = len(text) - len(text.encode("ascii", "ignore")) - wrong
    return text if wrong <= right else body.decode("cp1252", "replace")


def charsets(body: bytes, content_type: bytes) -> Iterator[str]:
    """Charsets to try before UTF-8, the likeliest first."""
    if body.startswith(tuple(MARKS)):
        yield next(charset for mark, charset in MARKS.items() if body.startswith(mark))
    if (said := charset_of(content_type)) is not None:
        yield said
    if b"\x1b" in body:  # A page in ISO-2022 is valid UTF-8, and has escape characters.
        yield from declared(body, len(body))
        return
    start = body[:EARLY_BYTES].lower()
    if b"charset" in start or b"<?xml" in start:
        yield from declared(body, EARLY_BYTES)


def declared(body: bytes, end: int) -> Iterator[str]:
    """The charset of the first <meta> or XML declaration before byte `end` that names a known one.

    A declaration within a comment, a script or another element whose content is no markup has no effect.
    """
    place = 0
    while (found := _MARKUP.search(body, place, end)) is not None:
        place = found.end()
        if found[1]:
            meta = _DECLARED.match(body, found.start(), found.start() + META_BYTES)
            if meta is not None and (said := known_charset(meta[1])) is not None:
                # A page whose bytes match an ASCII pattern is not UTF-16, whatever it declares.
                yield "utf-8" if said.startswith(("utf-16", "utf-32")) else said
                return
        else:
            place = end_of(found[3], body, place, end)


def end_of(element: bytes | None, body: bytes, place: int, end: int) -> int:
    """Where an element, or a comment if it is None, ends that has begun before `place`; `end` if it goes on there."""
    if element is None:
        place = body.find(b"-->", place - 2, end)  # The shortest comments are <!--> and <!--->.
        return place + 3 if place >= 0 else end
    found = _closing(element.lower()).search(body, place, end)
    return found.end() if found else end


@lru_cache
def _closing(element: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"</" + element + rb"(?=[\s/>])", re.I)


@lru_cache(1024)
def charset_of(content_type: bytes) -> str | None:
    """The charset in a Content-Type header, as Python's name for it."""
    found = _CHARSET.search(effective_type(content_type)) or _CHARSET.search(content_type)
    return known_charset(found[1]) if found else None


@lru_cache(1024)
def known_charset(name: bytes) -> str | None:
    """Python's name for a charset; None if there is no such charset."""
    try:
        label = name.decode("ascii").lower().removeprefix("x-")
        known = codecs.lookup(ALIASES.get(label, label)).name
        b"text".decode(known, "replace")
    except (LookupError, ValueError):  # Unknown, an invalid name, or a codec such as base64 that yields no text.
        return None
    return None if known in NO_CHARSETS else LARGER.get(known, known)
