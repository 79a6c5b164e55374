"""Media of documents: what readers make of them, and what writers store."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from stagger.errors import BadRecord

#: The field of a medium that holds its content.
BYTES = "media_bytes"


@dataclass(slots=True)
class Media:
    """An image, video, sound or file of a document. It has the fields of datatrove's `Media`."""

    id: str
    type: int
    url: str
    alt: str | None = None
    path: str | None = None
    offset: int | None = None
    length: int | None = None
    media_bytes: bytes | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


#: The keys that a stored medium must have, and may have. An entry of `media` with others stays as it is.
REQUIRED = frozenset(("id", "type", "url"))
ALLOWED = frozenset(one.name for one in fields(Media))


def media_of(entries: Iterable[Any]) -> list[Any]:
    """The media of a record. Entries that do not have the fields of `Media` stay as they are.

    Raises BadRecord when the content of a medium is not base64.
    """
    return [_medium(one) if type(one) is dict and REQUIRED <= one.keys() <= ALLOWED else one for one in entries]


def _medium(entry: dict[str, Any]) -> Media:
    content = entry.get(BYTES)
    if isinstance(content, str):
        try:
            content = base64.b64decode("".join(content.split()), validate=True)
        except (binascii.Error, ValueError):
            raise BadRecord("media", f"{BYTES!r} of the medium {entry['id']!r} is not base64") from None
    return Media(**{**entry, BYTES: content})


def records_of(media: Iterable[Any], *, with_bytes: bool) -> tuple[list[Any], int]:
    """The media as values that JSON has, and the number of those whose content was left out.

    Contents become base64 if `with_bytes` is set, else null.
    """
    left_out = 0
    records = []
    for medium in media:
        record = _fields(medium)
        if isinstance(record, dict) and isinstance(content := record.get(BYTES), (bytes, bytearray, memoryview)):
            left_out += not with_bytes
            record = {**record, BYTES: base64.b64encode(content).decode() if with_bytes else None}
        records.append(record)
    return records, left_out


def _fields(medium: Any) -> Any:
    """A medium as a mapping: `Media`, or datatrove's."""
    if is_dataclass(medium) and not isinstance(medium, type):
        return {one.name: getattr(medium, one.name) for one in fields(medium)}
    return medium
