"""Names of files that hold values of the documents' metadata: `{language}/{rank}.jsonl`. Pure."""

from __future__ import annotations

import datetime
import difflib
import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stagger.errors import StaggerError
from stagger.pipeline import Document

FIELD = re.compile(r"\{([^{}]*)\}")

#: The character before the two hexadecimal digits of each byte of a character that a name cannot have.
ESCAPE = "~"

#: Characters that a value does not keep: of paths, patterns, URLs and shells. Unprintable ones are added to them.
UNSAFE = frozenset("/\\:*?\"'<>|%#{}[]()^`$&;!~")

#: Bytes up to which a value is kept whole, and of its beginning that is kept of a longer one. A name has up to 255.
WHOLE_BYTES, KEPT_BYTES = 100, 60


@dataclass(frozen=True)
class Field:
    """A metadata key in a file name. `escaped` are the characters by which its value ends there."""

    key: str
    escaped: frozenset[str]

    def value(self, document: Document, default: str | None) -> str:
        """The document's value as text. Raises StaggerError when it has none, or one that is no name."""
        value: Any = document.metadata.get(self.key)
        if value is None and "." in self.key:
            value = nested(document.metadata, self.key.split("."))
        if isinstance(value, bool):
            text = str(value).lower()
        elif isinstance(value, (str, int, float)):
            text = str(value)
        elif isinstance(value, (datetime.date, datetime.time)):
            text = value.isoformat()
        elif value is None:
            text = ""
        else:
            raise StaggerError(
                f"The document {document.id!r} has {type(value).__name__} as {self.key!r}, which names no file; give"
                " filename a key with texts or numbers."
            )
        if not text and default is None:
            what = "no value" if value is None else "an empty text"
            raise StaggerError(
                f"The document {document.id!r} has {what} for {self.key!r} in its metadata, which is part of filename;"
                " set filename_default to the value for such documents."
            )
        return text or default or ""

    def in_path(self, text: str) -> str:
        """The value as part of a path. Two values never have the same form.

        >>> field = Field("k", frozenset("-"))
        >>> [field.in_path(text) for text in ("en", "a/b", "..", "_x", "zh-Hant", "~")]
        ['en', 'a~2Fb', '~2E.', '~5Fx', 'zh~2DHant', '~7E']
        """
        escaped = "".join(
            escape(c) if c in UNSAFE or c in self.escaped or not c.isprintable() or (not place and c in "._ ") else c
            for place, c in enumerate(text)
        )
        if len(escaped.encode()) <= WHOLE_BYTES:
            return escaped
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        kept = escaped.encode()[:KEPT_BYTES].decode("utf-8", "ignore")
        return f"{kept}{ESCAPE}{ESCAPE}{digest}"


def escape(character: str) -> str:
    return "".join(f"{ESCAPE}{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def nested(metadata: dict[str, Any], keys: Sequence[str]) -> Any:
    """The value of a key below other keys; None if there is none."""
    value: Any = metadata
    for key in keys:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def fields_of(filename: str, own: Collection[str]) -> list[Field]:
    """The metadata keys of a file name, each once, in their order. `own` are the fields that are no keys.

    Raises StaggerError when the name is not valid.
    """
    _check(filename, own)
    fields: dict[str, frozenset[str]] = {}
    for part in filename.split("/"):
        for key, escaped in _ends(part):
            if key not in own:
                fields[key] = fields.get(key, frozenset()) | escaped
    return [Field(key, escaped) for key, escaped in fields.items()]


def _ends(part: str) -> Iterator[tuple[str, frozenset[str]]]:
    """The fields of a part of a path, and the literal characters that separate each from its neighbours."""
    pieces = FIELD.split(part)  # Literal, field, literal, ..., literal.
    for place in range(1, len(pieces), 2):
        before = pieces[place - 1][-1:] if place > 1 else ""
        after = pieces[place + 1][:1] if place + 2 < len(pieces) else ""
        yield pieces[place], frozenset((before, after)) - {""}


def _check(filename: str, own: Collection[str]) -> None:
    for key in FIELD.findall(filename):
        close = difflib.get_close_matches(key.lower(), own, n=1, cutoff=0.7)
        if not key or (close and key not in own):
            meant = f"did you mean {{{close[0]}}}?" if close else "name a key of the metadata."
            raise StaggerError(f"filename {filename!r}: there is no {{{key}}}; {meant}")
    for part in filename.split("/"):
        literal = FIELD.sub("x", part)
        if not literal or literal.startswith((".", "_")) or len(literal) > 150:
            raise StaggerError(
                f"filename {filename!r}: each part of the path needs 1 to 150 characters, and no leading '.' or '_',"
                " which readers pass over."
            )
        if "}{" in part:
            raise StaggerError(
                f"filename {filename!r}: put a character between two fields, such as a hyphen or a slash, or two values"
                " could give the same name."
            )
