"""Error messages about pipeline files: one sentence per mistake, with its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from stagger.errors import StaggerError
from stagger.spec.executors import EXECUTORS
from stagger.spec.step_checks import nearest
from stagger.spec.yaml_file import Path

#: Characters of a value that a message shows.
SHOWN = 200


@dataclass(frozen=True)
class Place:
    """A file and the lines of its keys, for messages."""

    file: str
    lines: Mapping[Path, int]
    elsewhere: Mapping[Path, str] = field(default_factory=dict)
    """The places, as `file:line`, of keys whose values come from another file: a profile's."""

    def of(self, path: Path) -> str:
        """Format a place as `file:line: a.b.c`. A key that is not in the file gets the line of the key around it."""
        name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        return f"{self.line(path)}: {name}" if name else self.file

    def line(self, path: Path) -> str:
        """The place of a key as `file:line`, or the file alone when it has no key around `path`."""
        known = path
        while known and known not in self.lines and known not in self.elsewhere:
            known = known[:-1]
        if known in self.elsewhere:
            return self.elsewhere[known]
        return f"{self.file}:{self.lines[known]}" if known in self.lines and known else self.file


def validated(model: type[Any], raw: dict[str, Any], place: Place, path: Path) -> Any:
    """Validate `raw`, found at `path`, as a `model`. Raises StaggerError with one sentence per mistake."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        errors = error.errors()
        # pydantic also reports the keys around a wrong key; keep only the innermost.
        inner = [e for e in errors if not any(o["loc"][: len(e["loc"])] == e["loc"] != o["loc"] for o in errors)]
        sentences = {key_of(item["loc"]): sentence(model, item, place, path) for item in inner}
        raise StaggerError(*sentences.values()) from None


def key_of(location: tuple[str | int, ...]) -> Path:
    """The key that an error is about. pydantic inserts the union member into its location: executor.slurm.partition."""
    if location[:1] == ("executor",):
        location = (location[0], *location[2:])
    return tuple(part for part in location if not str(part).startswith(("literal[", "constrained-")))


def sentence(model: type[BaseModel], error: Any, place: Place, path: Path) -> str:
    """Format one validation error as a sentence: the place, the mistake, and the remedy."""
    location = key_of(error["loc"])
    where = place.of((*path, *location))
    if error["type"] == "extra_forbidden":
        for kind, other in EXECUTORS.items():
            if error["loc"][0] == "executor" and location[-1] in other.model_fields:
                return f"{where}: this key is for `type: {kind}`; set the type, or leave the key out."
            if len(error["loc"]) == 1 and location[-1] in other.model_fields:
                return f"{where}: this key belongs below `executor:`; move it there."
        return f"{where}: unknown key; {nearest(str(location[-1]), valid_keys(model, error['loc'][:-1]))}"
    if error["type"] == "missing":
        return f"{where}: this key is missing; give it a value."
    if error["type"].startswith("union_tag"):
        return f"{where}: type must be one of {', '.join(EXECUTORS)}."
    message = error["msg"].removeprefix("Value error, ")
    given = "" if isinstance(error["input"], (dict, list)) else f", not {short(error['input'])}"
    return f"{where}: {message[0].lower()}{message[1:]}{given}."


def short(value: Any) -> str:
    """A value for a message: its first SHOWN characters."""
    try:
        text = repr(value)
    except ValueError:  # An integer of more digits than Python converts.
        return "such a large number"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def valid_keys(model: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    """The keys that a model allows at `location`."""
    if location[:1] == ("executor",) and len(location) > 1:
        model = EXECUTORS[str(location[1])]
        location = location[2:]
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            break
        model = field.annotation
    return list(model.model_fields)
