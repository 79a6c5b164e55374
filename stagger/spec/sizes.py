"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from stagger.spec.base import Says

#: Unit -> bytes. As in SI, K is 1000 and Ki is 1024.
UNITS = {"": 1, "B": 1} | {
    f"{letter}{'i' if base == 1024 else ''}B": base**power
    for power, letter in enumerate("KMGTP", 1)
    for base in (1000, 1024)
}

#: A size with its unit.
SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)")


def parse_bytes(value: Any) -> Any:
    """The number of bytes of a text such as `2GB`; any other value as it is. Raises ValueError for another text.

    >>> parse_bytes("2GB"), parse_bytes("1.5 GiB"), parse_bytes(7)
    (2000000000, 1610612736, 7)
    """
    if not isinstance(value, str):
        return value
    found = SIZE.fullmatch(value.strip())
    units = {unit.lower(): size for unit, size in UNITS.items()}
    if found is None or found[2].lower() not in units:
        raise ValueError(
            "write a number of bytes, or a number and its unit: 2GB (2,000,000,000 bytes) or 2GiB (2,147,483,648 bytes)"
        )
    return round(float(found[1]) * units[found[2].lower()])


Bytes = Annotated[
    int,
    BeforeValidator(parse_bytes),
    Field(ge=1, le=2**63 - 1),
    Says("a number of bytes, with or without a unit", "2GB"),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "examples": ["2GB", "2GiB"]}]}),
]
