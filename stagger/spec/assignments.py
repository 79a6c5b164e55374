"""`a.b.c=value` of the command line: which value of a file it means, and sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any

from stagger.errors import StaggerError
from stagger.pipeline.objects import written_object
from stagger.spec.nearest import nearest
from stagger.spec.step_form import BESIDE
from stagger.spec.yaml_file import Path, parse_value


def assign(raw: dict[str, Any], assignment: str) -> Path:
    """Set one `a.b=c` of the command line in `raw`. Returns the path of what is set.

    A number selects a list item; stages and steps can be selected by their names, too. Keys and names may have dots.
    Raises StaggerError when the text is malformed, when `a` has no place for `b`, and when several steps have a name.
    """
    target, equals, text = assignment.partition("=")
    parts = target.split(".")
    if not equals or not all(parts):
        raise StaggerError(f"--set {target}: write it as key=value, e.g. --set executor.workers=100.")
    value = parse_value(text, f"--set {target}")
    place: Any = raw
    path: Path = ()
    rest: Sequence[str] = parts
    while True:
        keys, used = _next(place, path, rest, target)
        rest = rest[used:]
        for key in keys[:-1]:
            place, path = _child(place, key), (*path, key)
        path = (*path, keys[-1])
        if not rest:
            place[keys[-1]] = value
            return path
        place = _child(place, keys[-1])


def _child(place: Any, key: str | int) -> Any:
    """What stands below a key, as a copy in its place: an alias of YAML may stand for the same elsewhere. An empty
    mapping, if nothing stands there yet.
    """
    found = place.get(key) if isinstance(place, dict) else place[key]
    place[key] = {} if found is None else copy(found)
    return place[key]


def _next(place: Any, path: Path, rest: Sequence[str], target: str) -> tuple[Path, int]:
    """The keys below `place` for the first of the parts `rest`, and the number of these parts."""
    if isinstance(place, list):
        index, used = _item(place, path, rest, target)
        if path[-1:] == ("pipeline",) and used < len(rest):
            place[index] = _as_mapping(place[index])
        return (index,), used
    if not isinstance(place, dict):
        raise StaggerError(f"--set {target}: the file has no place for {rest[0]!r}; check the keys before it.")
    if not path and rest[0] == "pipeline" and "pipeline" not in place and "stages" in place:
        raise StaggerError(f"--set {target}: the file has stages; name one: --set stages.NAME.{target}.")
    found = next((name for name in _joined(rest) if name[0] in place), None)
    if len(path) > 1 and path[-2] == "pipeline":
        return _in_step(place, rest, target)
    if path == ("vars",) and found is None:
        raise StaggerError(f"--set {target}: there is no variable {rest[0]!r} in vars; {nearest(rest[0], list(place))}")
    if found is None and path and (written := written_object(place)):
        return _in_object(place, written[0], rest)
    return ((found[0],), found[1]) if found else ((rest[0],), 1)


def _in_object(place: dict[str, Any], name: str, rest: Sequence[str]) -> tuple[Path, int]:
    """The keys within an object of a step's parameters, whose name may be given by its end, or be left out."""
    if rest[0] == name.rpartition(":")[2]:
        return (name,), 1
    params = _child(place, name)
    inner = next((part for part in _joined(rest) if part[0] in params), (rest[0], 1))
    return (name, inner[0]), inner[1]


def _in_step(step: dict[str, Any], rest: Sequence[str], target: str) -> tuple[Path, int]:
    """The keys within a step: its name may be left out. Raises StaggerError for a key that the step and its parameters
    both have.
    """
    if "use" in step and rest[0] in ("use", "params"):
        return (rest[0],), 1
    use = _use(step)
    key = "params" if "use" in step else use
    if named := next((name for name in _joined(rest) if name[0] in _names_of_step(step)), None):
        return (key,), named[1]
    params = _child(step, key)
    if rest[0] in BESIDE:
        if rest[0] in params:
            raise StaggerError(
                f"--set {target}: {rest[0]} is a parameter of {use}, and a key beside it; for the parameter write"
                f" {use}.{rest[0]} in its place."
            )
        return (rest[0],), 1
    inner = next((name for name in _joined(rest) if name[0] in params), (rest[0], 1))
    return (key, inner[0]), inner[1]


def _as_mapping(step: Any) -> Any:
    """A step with room for parameters."""
    return {step: {}} if isinstance(step, str) else step


def _use(step: Any) -> str:
    if isinstance(step, dict):
        return str(step["use"]) if "use" in step else str(next((key for key in step if key not in BESIDE), ""))
    return str(step)


def _names_of_step(step: Any) -> list[str]:
    """The names by which a step can be selected: `module:name`, or `name` alone."""
    use = _use(step)
    return [use, use.rpartition(":")[2]]


def _names_of_stage(stage: Any) -> list[str]:
    return [str(stage["name"])] if isinstance(stage, dict) and "name" in stage else []


def _joined(parts: Sequence[str]) -> Iterator[tuple[str, int]]:
    """The names that the first parts can be, the longest first, and the number of parts of each."""
    return ((".".join(parts[:count]), count) for count in range(len(parts), 0, -1))


def _item(items: list[Any], path: Path, rest: Sequence[str], target: str) -> tuple[int, int]:
    """The index of the list item that the first parts select, and the number of these parts."""
    names_of = {"pipeline": _names_of_step, "stages": _names_of_stage}.get(str(path[-1]), lambda item: [])
    named = [names_of(item) for item in items]
    position = int(rest[0]) if rest[0].isdecimal() and int(rest[0]) < len(items) else None
    for name, used in _joined(rest):
        found = [index for index, names in enumerate(named) if name in names]
        if position is not None and used == 1 and position not in found:
            found.append(position)
        if len(found) > 1:
            where = " and ".join(f"{'.'.join(map(str, path))}.{index}" for index in sorted(found))
            raise StaggerError(f"--set {target}: {name!r} can be {where}; give the position in place of the name.")
        if found:
            return found[0], used
    known = list(dict.fromkeys(name for names in named for name in names[:1]))
    if known and not rest[0].isdecimal():
        what = "step" if path[-1] == "pipeline" else "stage"
        raise StaggerError(f"--set {target}: there is no {what} {rest[0]!r}; {nearest(rest[0], known)}")
    raise StaggerError(f"--set {target}: the file has no place for {rest[0]!r}; check the keys before it.")
