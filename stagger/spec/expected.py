"""What a key may hold, in a person's words: made from the type of its field, for every message about a wrong value."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from stagger.spec.base import Says
from stagger.spec.nearest import close_to

#: Characters of a value that a message shows.
SHOWN = 200

#: What a value of each type is called.
KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "truth"),
    ((int, float), "number"),
    (str, "text"),
    ((list, tuple), "list"),
    (Mapping, "mapping"),
)

#: A number with a unit or separators, as people write it, and what the unit multiplies it by.
NUMBER = re.compile(r"([-+]?\d+(?:[_, ']\d{3})*(?:\.\d+)?)\s*([A-Za-z]*)")
UNITS: dict[str, float] = {"": 1, "k": 1000}

SECONDS: dict[str, float] = {
    "s": 1,
    "sec": 1,
    "second": 1,
    "seconds": 1,
    "m": 60,
    "min": 60,
    "minutes": 60,
    "h": 3600,
    "hours": 3600,
}

#: The units that the numbers of some keys have, by the end of the key's name.
UNITS_OF_KEYS: dict[str, dict[str, float]] = {
    "_gb": {"g": 1, "gb": 1, "gib": 1, "t": 1024, "tb": 1024, "tib": 1024, "m": 2**-10, "mb": 2**-10, "mib": 2**-10},
    "_mb": {"m": 1, "mb": 1, "mib": 1, "g": 1024, "gb": 1024, "gib": 1024},
    "_bytes": {"kb": 2**10, "kib": 2**10, "m": 2**20, "mb": 2**20, "mib": 2**20, "g": 2**30, "gb": 2**30, "gib": 2**30},
    "_duration": SECONDS,
    "_seconds": SECONDS,
}

#: How people write true and false.
TRUTHS = {"yes": True, "on": True, "y": True, "no": False, "off": False, "n": False, "true": True, "false": False}


@dataclass(frozen=True)
class Expected:
    """What a key may hold: in words, by kind (KINDS), the words to choose from, and an example."""

    words: str
    kinds: frozenset[str]
    choices: tuple[str, ...] = ()
    whole: bool = False
    example: Any = None

    def mistake(self, key: str, value: Any, python: bool = False) -> str:
        """The end of a message about a wrong `value` of `key`. `python`: it is an argument, not a key of a file."""
        if value is None:
            return f"expected {self.words}, but no value is given"
        shown = f"not {short(value) if python and isinstance(value, bool) else described(value)}"
        if self.kinds == {"truth"} and isinstance(value, str) and value.lower() in TRUTHS:
            return f"expected {self.words}, {shown}; write {assigned(key, TRUTHS[value.lower()], python)}"
        remedy = self._remedy(key, value, python)
        return f"expected {self.words}, {shown}{f'; {remedy}' if remedy else ''}"

    def _remedy(self, key: str, value: Any, python: bool) -> str | None:
        kind = kind_of(value)
        if kind == "text" and self.choices and (close := close_to(value, self.choices)):
            return f"did you mean {close!r}?"
        if kind == "text" and "number" in self.kinds and (number := self._number(key, value)) is not None:
            return f"write {assigned(key, number, python)}"
        if kind in ("number", "truth") and "text" in self.kinds and not self.choices:
            return f"put it in quotes: {assigned(key, str(value).lower() if kind == 'truth' else str(value), python)}"
        if self.kinds == {"list"} and kind in ("text", "number") and self.example is None:
            return f"write {assigned(key, [value], python)}"
        if self.kinds == {"list"} and kind == "mapping" and not python:
            return "begin each item with a dash and a space"
        if "list" not in self.kinds and kind == "list" and len(value) == 1 and kind_of(value[0]) in self.kinds:
            inner = value[0]
            return f"write it without brackets or dash: {assigned(key, inner, python)}"
        if self.kinds == {"mapping"} and kind == "list" and value and all(map(_is_mapping, value)) and not python:
            return "leave out the dashes"
        return f"write for example {assigned(key, self.example, python)}" if self.example is not None else None

    def _number(self, key: str, text: str) -> int | float | None:
        """The number that a text such as `8,000` or `4G` was meant to be; None if that is unknown or not allowed."""
        found = NUMBER.fullmatch(text.strip())
        if not found:
            return None
        units = next((units for end, units in UNITS_OF_KEYS.items() if key.endswith(end)), {})
        factor = (UNITS | units).get(found[2].lower())
        if factor is None:
            return None
        number = float(re.sub(r"[_, ']", "", found[1])) * factor
        if number.is_integer():
            return int(number)
        return None if self.whole else number


def kind_of(value: Any) -> str:
    """What a value is called: `text`, `number`, `truth`, `list`, `mapping`, `none` or the name of its Python type."""
    if value is None:
        return "none"
    return next((name for types_, name in KINDS if isinstance(value, types_)), type(value).__name__)


def described(value: Any) -> str:
    """A value in a message: what it is, and its first SHOWN characters.

    >>> described("a"), described(8), described(True), described(["a"]), described({})
    ("'a'", 'the number 8', 'true', 'a list', 'a mapping')
    """
    kind = kind_of(value)
    if kind == "none":
        return "an empty value"
    if kind in ("list", "mapping"):
        return f"an empty {kind}" if not value and kind == "list" else f"a {kind}"
    if kind == "truth":
        return str(value).lower()
    return f"the number {short(value)}" if kind == "number" else short(value)


def short(value: Any) -> str:
    """A value for a message: its first SHOWN characters."""
    try:
        text = repr(value)
    except ValueError:  # An integer of more digits than Python converts.
        return "such a large number"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def assigned(key: str, value: Any, python: bool = False) -> str:
    """A key with a value, as in a pipeline file or as an argument. An item of a list has no key.

    >>> assigned("name", "12"), assigned("on", ["a"]), assigned("on", ["a"], python=True), assigned("", "1")
    ("name: '12'", 'on: [a]', "on=['a']", "'1'")
    """
    if python:
        return f"{key}={short(value)}" if key else short(value)
    from stagger.spec.yaml_file import in_one_line

    text = in_one_line({key: value} if key else value)
    text = text[1:-1] if key else text
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def expected(hint: Any, metadata: Sequence[Any] = ()) -> Expected:
    """What a field of this type may hold. `metadata` are its constraints: pydantic's, and `Says`."""
    if get_origin(hint) is Annotated:
        return expected(hint.__origin__, [*metadata, *hint.__metadata__])
    said = next((item for item in metadata if isinstance(item, Says)), None)
    if said is not None:
        found = expected(hint, [item for item in metadata if not isinstance(item, Says)])
        return replace(found, words=said.words, example=said.example, choices=said.choices or found.choices)
    if get_origin(hint) in (Union, types.UnionType):
        return _any_of([expected(one, metadata) for one in get_args(hint) if one is not type(None)])
    if get_origin(hint) is Literal:
        choices = tuple(map(str, get_args(hint)))
        return Expected(_joined(choices), frozenset({"text"}), choices)
    return _plain(hint, metadata)


def _plain(hint: Any, metadata: Sequence[Any]) -> Expected:
    """What a field may hold whose type is no union and no choice."""
    kind = get_origin(hint) or hint
    if kind is bool:
        return Expected("true or false", frozenset({"truth"}))
    if kind is int:
        return Expected(f"a whole number{_bounds(metadata, whole=True)}", frozenset({"number"}), whole=True)
    if kind is float:
        return Expected(f"a number{_bounds(metadata, whole=False)}", frozenset({"number"}))
    if kind is str:
        return Expected("text", frozenset({"text"}))
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return Expected("a mapping of settings", frozenset({"mapping"}), example=getattr(kind, "example", None) or None)
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return Expected("a mapping", frozenset({"mapping"}))
    if kind in (list, tuple):
        return Expected("a list", frozenset({"list"}))
    return Expected("another value", frozenset())


def _any_of(options: list[Expected]) -> Expected:
    if len(options) == 1:
        return options[0]
    return Expected(
        _joined(list(dict.fromkeys(option.words for option in options))),
        frozenset().union(*(option.kinds for option in options)),
        tuple(choice for option in options for choice in option.choices),
        any(option.whole for option in options),
        next((option.example for option in options if option.example is not None), None),
    )


def _joined(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _bounds(metadata: Sequence[Any], whole: bool) -> str:
    """The limits of a number: ` from 1 to 100`."""
    limits = {type(item): item for item in _constraints(metadata)}
    low = limits[annotated_types.Ge].ge if annotated_types.Ge in limits else None
    high = limits[annotated_types.Le].le if annotated_types.Le in limits else None
    above = limits[annotated_types.Gt].gt if annotated_types.Gt in limits else None
    if above is not None and whole:
        low, above = above + 1, None
    if above is not None:
        return f" greater than {_digits(above)}"
    if low is not None and high is not None:
        return f" from {_digits(low)} to {_digits(high)}"
    return "" if low is None else f" of at least {_digits(low)}"


def _digits(number: float) -> str:
    return f"{int(number):,}" if float(number).is_integer() else f"{number:,}"


def _constraints(metadata: Sequence[Any]) -> Iterator[Any]:
    for item in metadata:
        yield from item.metadata if isinstance(item, FieldInfo) else (item,)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)
