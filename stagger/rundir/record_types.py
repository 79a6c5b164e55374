"""Checks a record that was read from the run directory against the types of its fields.

People, other programs and failing disks change these files. A wrong value would otherwise surface as an error of some
computation far away, which names neither the file nor the key.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

from stagger.pipeline.statistics import Signed

#: Numbers of a record are below this: bytes, records, seconds since the epoch. Python's dates and floats can hold it.
LARGEST = 10**15

#: Characters of a wrong value that an error shows.
SHOWN = 60


def check(value: Any, hint: Any, key: str = "") -> None:
    """Check the value at `key` of a record against a type: a dataclass, a TypedDict, or a type of JSON.

    Raises ValueError when its type is wrong, a number is negative or too large, or a key is missing.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if is_dataclass(hint) or is_typeddict(hint):
        _check_object(value, hint, key)
    elif origin in (Union, UnionType):
        plain = [one for one in inner if one is not type(None)]
        if value is not None or len(plain) == len(inner):
            check(value, plain[0], key)
    elif origin in (list, tuple):
        _check_kind(value, list, key)
        for number, item in enumerate(value):
            check(item, inner[0], f"{key}[{number}]")
    elif origin is dict:
        _check_kind(value, dict, key)
        for name, item in value.items():
            check(item, inner[1], f"{key}.{name}")
    elif hint in (int, float):
        _check_kind(value, int if hint is int else (int, float), key)
        if isinstance(value, bool) or not 0 <= value < LARGEST:
            raise wrong(value, key)
    elif hint is Signed:
        _check_kind(value, (int, float), key)
    elif hint is not Any:
        _check_kind(value, hint, key)


def _check_object(value: Any, hint: Any, key: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{key or 'the record'} is not an object")
    for name, (kind, needed) in _fields(hint).items():
        place = f"{key}.{name}" if key else name
        if name in value:
            check(value[name], kind, place)
        elif needed:
            raise ValueError(f"it has no {place!r}")


@cache
def _fields(hint: Any) -> dict[str, tuple[Any, bool]]:
    """Field -> its type, and whether it must be there."""
    kinds = get_type_hints(hint)
    if is_dataclass(hint):
        return {field.name: (kinds[field.name], not _has_default(field)) for field in fields(hint)}
    return {name: (kind, name in hint.__required_keys__) for name, kind in kinds.items()}


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _check_kind(value: Any, kind: type | tuple[type, ...], key: str) -> None:
    if not isinstance(value, kind):
        raise wrong(value, key)


def wrong(value: Any, key: str) -> ValueError:
    """The error for a wrong value."""
    text = repr(value)
    return ValueError(f"{key} is {text if len(text) <= SHOWN else f'{text[:SHOWN]}...'}")
