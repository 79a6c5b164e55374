"""Other places for what a run writes: a copy of its stages whose outputs lie below a folder of their own."""

from __future__ import annotations

import copy
import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagger.storage.storage import expand_variables, is_local, join

#: Names of parameters by which steps that say nothing of their outputs are told where to write.
OUTPUT = re.compile(
    r"(?:outputs?|out|save|destination|dest|target)(?:_(?:folder|dir|directory|path|file|to))?|.*_out(?:put)?"
)

#: Names of parameters whose values are paths, also without a slash.
PATH = re.compile(r"(?:.*_)?(?:paths?|folder|dir|directory|file|location|input|data)")

#: How deep objects in parameters and in other objects are looked into.
DEPTH = 6


@dataclass(frozen=True)
class Redirect:
    """Puts what lies in `folders` below `root`, at the path that it has now.

    above: whether a folder that holds some of `folders` is redirected too: a stage reads it to read what lies there.
    kept: paths that stay, with all folders above them: the input.
    """

    root: str
    folders: tuple[str, ...]
    kept: tuple[str, ...] = ()
    above: bool = False

    def place(self, path: str) -> str:
        """The place for a path below `root`."""
        plain = path if is_local(path) else path.replace("://", "/")
        return join(self.root, plain.lstrip("/"))

    def path(self, value: str, name: str = "") -> str | None:
        """The place for what a text names; None if it stays. `name` is the parameter that holds it."""
        if not value or "\0" in value or not ("/" in value or PATH.fullmatch(name) or OUTPUT.fullmatch(name)):
            return None
        whole = located(value)
        for folder in self.folders:
            if whole == folder or whole.startswith(f"{folder}/"):
                return self.place(whole)
            if self.above and folder.startswith(f"{whole}/") and not self._holds_input(whole):
                return self.place(whole)
        return None

    def _holds_input(self, folder: str) -> bool:
        return any(f"{kept}/".startswith(f"{folder}/") for kept in self.kept)

    def params(self, value: Any, name: str = "") -> Any:
        """The parameters of a step, as a pipeline file has them, with other paths."""
        if isinstance(value, str):
            plain = expand_variables(value)
            assert isinstance(plain, str)
            return self.path(plain, name) or value
        if isinstance(value, Mapping):
            return {key: self.params(item, str(key)) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            items = [self.params(item, name) for item in value]
            if is_place(value) and items[0] != value[0]:
                return items[0]  # A folder with the options of its storage, which do not fit the new place.
            return items
        return value

    def step(self, step: Any) -> Any:
        """A step that is a Python object, or a copy with other paths."""
        return self._object(step, "", DEPTH)

    def _object(self, value: Any, name: str, depth: int) -> Any:
        if isinstance(value, str):
            return self.path(value, name) or value
        if hasattr(value, "resolve_paths"):  # A `DataFolder` of datatrove.
            place = self.path(str(value.resolve_paths("")).rstrip("/"), "folder")
            return type(value)(place) if place else value
        if not depth:
            return value
        if isinstance(value, functools.partial):
            named = {key: self._object(item, key, depth - 1) for key, item in value.keywords.items()}
            return functools.partial(value.func, *(self._object(item, "", depth - 1) for item in value.args), **named)
        if type(value) in (list, tuple, dict):
            return self._container(value, name, depth)
        return self._with_attributes(value, depth) if has_paths(value) else value

    def _container(self, value: Any, name: str, depth: int) -> Any:
        """A container, the same one if nothing in it changes."""
        if isinstance(value, dict):
            named = {key: self._object(item, str(key), depth - 1) for key, item in value.items()}
            return named if any(named[key] is not item for key, item in value.items()) else value
        items = type(value)(self._object(item, name, depth - 1) for item in value)
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value

    def _with_attributes(self, value: Any, depth: int) -> Any:
        found = {key: (old, self._object(old, key, depth - 1)) for key, old in vars(value).items()}
        changed = {key: new for key, (old, new) in found.items() if new is not old}
        if not changed:
            return value
        other = copy.copy(value)
        for key, new in changed.items():
            object.__setattr__(other, key, new)
        return other


def has_paths(value: Any) -> bool:
    """Whether the attributes of an object may be paths: of a step or writer, but not of a module, class or function."""
    return hasattr(value, "__dict__") and not isinstance(value, type) and not hasattr(value, "__code__")


def is_place(value: Sequence[Any]) -> bool:
    """Whether a list is a folder and the options of its storage, as datatrove takes them."""
    return len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], Mapping)


def located(path: str) -> str:
    """A path in its whole length, without a slash at its end."""
    path = path.removeprefix("file://")
    return os.path.abspath(os.path.expanduser(path)) if is_local(path) else path.rstrip("/")


def told_outputs(params: Any) -> Iterable[str]:
    """The paths below parameters whose names say that a step writes there."""
    if isinstance(params, Mapping):
        for name, value in params.items():
            if (
                isinstance(value, str)
                and OUTPUT.fullmatch(str(name))
                and "/" in (plain := str(expand_variables(value)))
            ):
                yield located(plain)
            elif OUTPUT.fullmatch(str(name)) and isinstance(value, (list, tuple)) and value and is_place(value):
                yield located(str(expand_variables(value[0])))
            else:
                yield from told_outputs(value)
    elif isinstance(params, (list, tuple)):
        for value in params:
            yield from told_outputs(value)
