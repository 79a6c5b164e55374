"""Checks at launch of the objects in a step's parameters: that they are meant, can be imported, and take theirs."""

from __future__ import annotations

import enum
import importlib.util
import sys
from collections.abc import Callable, Mapping
from typing import Any

from stagger.errors import StaggerError
from stagger.pipeline.names import resolve
from stagger.pipeline.objects import (
    DATA,
    NAME,
    classes_of,
    example_of,
    hints_of,
    names_of,
    takes_functions_only,
    written_object,
)
from stagger.spec.expected import described
from stagger.spec.yaml_file import Path
from stagger.terminal import logger

#: Formats the place of the value at a path below the step, for messages.
PlaceOf = Callable[[Path], str]

#: Checks the parameters of a call: what is called, its parameters, the path of these.
CheckNames = Callable[[Any, Mapping[str, Any], Path], None]


def check_objects(target: Any, params: Mapping[str, Any], path: Path, place: PlaceOf, check_names: CheckNames) -> None:
    """Raise StaggerError for an object in the parameters of `target` that cannot be made, and for text or a mapping
    that was meant to be one.
    """
    hints = hints_of(target)
    ours = str(getattr(target, "__module__", "")).startswith("stagger.")  # These take names of functions as text.
    for name, value in params.items():
        if isinstance(value, str) and not ours:
            _check_text(value, hints.get(name, Any), (*path, name), place)
        _check(value, (*path, name), place, check_names)


def _check(value: Any, path: Path, place: PlaceOf, check_names: CheckNames) -> None:
    if (found := written_object(value)) is not None:
        _check_object(*found, path, place, check_names)
    elif isinstance(value, Mapping):
        _check_data(value, path, place)
        for key, item in value.items():
            _check(item, (*path, key), place, check_names)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check(item, (*path, index), place, check_names)


def _check_object(
    name: str, params: Mapping[str, Any] | None, path: Path, place: PlaceOf, check_names: CheckNames
) -> None:
    try:
        target = resolve(name)
    except StaggerError as error:
        data = f" {_as_data(name)}" if isinstance(error.__cause__, ModuleNotFoundError) else ""
        raise StaggerError(f"{place((*path, name))}: {error}{data}") from error
    if params is None:
        return
    if not callable(target):
        raise StaggerError(
            f"{place((*path, name))}: {name} is a {type(target).__name__} and takes no parameters; for it itself write"
            f' {{"{name}"}}.'
        )
    try:
        check_names(target, params, (*path, name))
    except StaggerError as error:
        if isinstance(target, type):
            raise
        raise StaggerError(f'{error} For the function itself write {{"{name}"}}.') from None
    check_objects(target, params, (*path, name), place, check_names)


def _as_data(name: str) -> str:
    return f'If this is data, and no object, write the key as "{DATA}{name}".'


def _check_data(value: Mapping[str, Any], path: Path, place: PlaceOf) -> None:
    """Raise StaggerError for a mapping that is data by its form, but has the name of an object among its keys."""
    names = [key for key in value if NAME.fullmatch(key)]
    found = next((name for name in names if _is_found(name)), None)
    if found is None or (len(value) > 1 and len(names) == len(value)):
        return
    where = place((*path, found))
    if len(value) == 1:
        raise StaggerError(
            f"{where}: expected a mapping of parameters, not {described(value[found])}; write"
            f' {{"{found}": {{name: value}}}}. {_as_data(found)}'
        )
    others = ", ".join(key for key in value if key != found)
    raise StaggerError(
        f"{where}: an object is a mapping with this one key, and here it has {others} beside it: indent the parameters"
        f" of {found} further than its name. {_as_data(found)}"
    )


def _check_text(value: str, hint: Any, path: Path, place: PlaceOf) -> None:
    """Raise StaggerError for text where a function or an object belongs; warn of text that names one, where that is not
    known.
    """
    if takes_functions_only(hint):
        named = value if NAME.fullmatch(value) else "module:function"
        raise StaggerError(f'{place(path)}: expected a function, not the text {described(value)}; write {{"{named}"}}.')
    if (classes := classes_of(hint)) and all(map(_is_no_text, classes)):
        expected = f"expected {names_of(classes)}, not the text {described(value)}"
        raise StaggerError(f"{place(path)}: {expected}; write {example_of(classes)}.")
    if hint is Any and NAME.fullmatch(value) and _is_found(value):
        logger.warning(f'{place(path)}: {value!r} is passed as text; if a function is meant, write {{"{value}"}}')


def _is_no_text(kind: type) -> bool:
    """Whether text is certainly no value for a parameter of this class. (A function may well make a Path of one.)"""
    library = kind.__module__.partition(".")[0]
    return not issubclass(kind, (str, enum.Enum)) and library not in sys.stdlib_module_names and library != "numpy"


def _is_found(name: str) -> bool:
    """Whether there is a module for a `module:name`. Imports nothing."""
    module = name.partition(":")[0]
    if module in sys.modules:
        return hasattr(sys.modules[module], name.partition(":")[2].partition(".")[0])
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False
