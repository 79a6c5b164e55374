"""Objects in the parameters of steps: `{"module:Class": {parameters}}` makes one, `{"module:name"}` takes what exists.

The notation is decided by its form alone: a mapping with one key, which is `module:name`, and whose value is a mapping
(of parameters) or nothing. All other mappings are data. A key with `$$` before it is data as well, without the `$$`.
"""

from __future__ import annotations

import inspect
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from stagger.errors import StaggerError
from stagger.pipeline.names import install_hint, resolve
from stagger.storage.storage import key_text, without_secrets

#: `module:name`, and the same with the sign before it that makes it data.
NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", re.ASCII)
DATA = "$$"

Path = tuple[str | int, ...]

#: A name, and the parameters of the call that makes the object; None to take what has the name.
Written = tuple[str, Mapping[str, Any] | None]


def written_object(value: Any) -> Written | None:
    """What a value of a pipeline file describes; None if it is data.

    >>> written_object({"datetime:date": {"year": 2024}}), written_object({"math:sqrt": None})
    (('datetime:date', {'year': 2024}), ('math:sqrt', None))
    >>> [written_object(value) for value in ({"en:us": 1}, {"a:b": None, "c:d": None}, {"s3://b": {}}, {"$$en:us": {}})]
    [None, None, None, None]
    """
    if not isinstance(value, Mapping) or len(value) != 1:
        return None
    ((name, params),) = value.items()
    if not NAME.fullmatch(name) or not (params is None or isinstance(params, Mapping)):
        return None
    return name, params


def data_key(key: str) -> str:
    """A key of a mapping of data, as the step gets it.

    >>> data_key("$$en:us"), data_key("$$en"), data_key("$$$$en:us")
    ('en:us', '$$en', '$$en:us')
    """
    return key[len(DATA) :] if key.startswith(DATA) and NAME.fullmatch(key.lstrip("$")) else key


def as_data(value: Any) -> Any:
    """`value` written so that nothing in it is an object."""
    if isinstance(value, Mapping):
        return {
            f"{DATA}{key}" if NAME.fullmatch(key.lstrip("$")) else key: as_data(item) for key, item in value.items()
        }
    return [as_data(item) for item in value] if isinstance(value, (list, tuple)) else value


def written_objects(value: Any, path: Path = ()) -> Iterator[tuple[Path, Written]]:
    """The objects within a value, outer ones first, each with the path of its name."""
    if (found := written_object(value)) is not None:
        yield (*path, found[0]), found
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from written_objects(item, (*path, key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from written_objects(item, (*path, index))


def arguments(target: Any, params: Mapping[str, Any], path: Path = ()) -> dict[str, Any]:
    """The arguments for a call of `target`: its parameters, with the objects in them made.

    A list becomes a tuple where the annotation of the parameter takes tuples, and no lists. `path` is the place of the
    parameters. Raises StaggerError, naming the key, when an object cannot be made, or when the annotation takes no such
    object.
    """
    hints = hints_of(target)
    return {name: made(value, hints.get(name, Any), (*path, name)) for name, value in params.items()}


def made(value: Any, hint: Any, path: Path) -> Any:
    """A value for a parameter of the type `hint`, with the objects in it made. Raises StaggerError as `arguments`."""
    if (found := written_object(value)) is not None:
        value = _object(*found, path)
        _check_type(value, hint, path, *found)
        return value
    if isinstance(value, Mapping):
        inner = next((args[1] for one in options_of(hint) if len(args := typing.get_args(one)) == 2), Any)
        value = {data_key(key): made(item, inner, (*path, key)) for key, item in value.items()}
        if (classes := classes_of(hint)) and not isinstance(value, classes):
            raise StaggerError(
                f"{key_text(path)}expected {names_of(classes)}, not a mapping; write {example_of(classes)}."
            )
        return value
    if isinstance(value, list):
        as_tuple, inners = _items(hint, len(value))
        items = [made(item, inner, (*path, n)) for n, (item, inner) in enumerate(zip(value, inners, strict=True))]
        return tuple(items) if as_tuple else items
    return value


def _object(name: str, params: Mapping[str, Any] | None, path: Path) -> Any:
    try:
        target = resolve(name)
    except StaggerError as error:
        raise StaggerError(f"{key_text(path)}{error}") from error
    if params is None:
        return target
    given = arguments(target, params, (*path, name))
    try:
        return target(**given)
    except Exception as error:  # The constructor is the user's.
        raise StaggerError(f"{key_text(path)}{name} cannot be created: {reason_of(error)}.") from error


def _check_type(value: Any, hint: Any, path: Path, name: str, params: Mapping[str, Any] | None) -> None:
    """Raise StaggerError for an object that the parameter does not take, and for a class in place of an object."""
    classes = classes_of(hint)
    if isinstance(value, type) and params is None:
        if any((typing.get_origin(one) or one) in (type, Callable) for one in options_of(hint)):
            return
        raise StaggerError(f'{key_text(path)}{name} is a class; for an object of it write {{"{name}": {{}}}}.')
    if classes and not isinstance(value, classes):
        raise StaggerError(f"{key_text(path)}expected {names_of(classes)}, but {name} is a {type(value).__qualname__}.")


def reason_of(error: Exception, depth: int = 1) -> str:
    """Why a call of the user's code failed: the error, where it was raised, and what to install.

    `depth` is how many of the outermost frames of its traceback are stagger's.
    """
    reason = without_secrets(f"{type(error).__name__}: {error}").rstrip(".")
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{reason}{f' ({frames[-1]})' if len(frames) > depth else ''}{install_hint(error)}"


# ---- Types: what the callee's annotations say ----


def hints_of(target: Any) -> dict[str, Any]:
    """Parameter -> its type, as far as annotations give it. The parameters of a class are those of its constructors."""
    if isinstance(target, type):
        calls = [cls.__dict__["__init__"] for cls in target.__mro__ if "__init__" in cls.__dict__]
    else:
        calls = [target]
    found: dict[str, Any] = {}
    for call in calls:
        try:
            hints = typing.get_type_hints(call)
        except Exception:  # An annotation can name what is not imported, or be anything at all.
            hints = {name: hint for name, hint in _annotations(call) if not isinstance(hint, str)}
        found = {**hints, **found}
    return found


def _annotations(call: Any) -> list[tuple[str, Any]]:
    given = getattr(call, "__annotations__", {})
    return list(given.items()) if isinstance(given, Mapping) else []


def options_of(hint: Any) -> list[Any]:
    """The members of a union, without None; `[Any]` where the type is unknown."""
    if typing.get_origin(hint) is typing.Annotated:
        return options_of(hint.__origin__)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [option for one in typing.get_args(hint) for option in options_of(one) if one is not type(None)]
    return [hint]


def takes_functions_only(hint: Any) -> bool:
    """Whether a parameter takes callables, and no text.

    >>> [takes_functions_only(hint) for hint in (Callable[[str], bool], Callable[..., Any] | str, Any, None)]
    [True, False, False, False]
    """
    options = options_of(hint)
    return bool(options) and all((typing.get_origin(one) or one) is Callable for one in options)


def classes_of(hint: Any) -> tuple[type, ...]:
    """The classes of which a parameter's value must be an instance; empty if its type says less than that."""
    options = options_of(hint)
    plain = tuple(one for one in options if inspect.isclass(one) and typing.get_origin(one) is None)
    loose = any(one is Any or typing.is_typeddict(one) or getattr(one, "_is_protocol", False) for one in plain)
    return plain if len(plain) == len(options) and not loose else ()


def names_of(classes: Sequence[type]) -> str:
    """What a parameter takes, in a message."""
    return f"an object of {' or '.join(one.__qualname__ for one in classes)}"


def example_of(classes: Sequence[type]) -> str:
    """How an object of the first of these classes is written."""
    if inspect.isabstract(classes[0]):
        return f'{{"module:Class": {{...}}}} with a class that inherits from {classes[0].__qualname__}'
    return f'{{"{classes[0].__module__}:{classes[0].__qualname__}": {{...}}}}'


def _items(hint: Any, count: int) -> tuple[bool, list[Any]]:
    """Whether a list of `count` items must be a tuple for this type, and the types of its items.

    >>> _items(str | tuple[str, dict], 2), _items(list[int] | tuple[int, int], 1), _items(tuple[int, ...], 1)
    ((True, [<class 'str'>, <class 'dict'>]), (False, [<class 'int'>]), (True, [<class 'int'>]))
    """
    options = options_of(hint)
    for one in options:
        if not _is_no_list(one):
            inner = typing.get_args(one)
            return False, [inner[0] if len(inner) == 1 else Any] * count
    tuples = [typing.get_args(one) for one in options if (typing.get_origin(one) or one) is tuple]
    for types_ in tuples:
        if types_[1:] == (...,):
            return True, [types_[0]] * count
        if len(types_) == count:
            return True, list(types_)
    return bool(tuples), [Any] * count


def _is_no_list(hint: Any) -> bool:
    """Whether a list is certainly no value of this type."""
    kind = typing.get_origin(hint) or hint
    return kind is not Any and inspect.isclass(kind) and not issubclass(list, kind)
