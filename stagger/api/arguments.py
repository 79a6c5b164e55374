"""The arguments of executors: their documentation, from the descriptions of the keys of pipeline files, and the error
about one that does not exist.
"""

from __future__ import annotations

import functools
import inspect
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from stagger.errors import StaggerError
from stagger.spec.descriptions import descriptions
from stagger.spec.executors import EXECUTORS
from stagger.spec.messages import argument_meant
from stagger.spec.models import PipelineFile

#: Characters of a line of documentation.
WIDTH = 100


#: The end of the documentation of each executor.
RAISES = "Raises:\n    StaggerError: an argument is wrong."

Executor = TypeVar("Executor")

#: Arguments whose meaning in Python differs from that of their key.
ONLY_PYTHON = {
    "pipeline": "The steps: callables `(data, rank, world_size) -> iterator`. The first reads, the last usually"
    " writes. Leave it out for servers of `blocks`.",
    "name": "Name of the stage, and of its run.",
    "depends": "The executors of the stages of which every rank must be done before this stage starts. All of them"
    " are stages of one run: they have the same run_dir, and each its own name.",
    "uses": "The executors of stages with `blocks`, whose servers this stage uses. They are stages of the same run, as"
    " those of `depends`. The servers start with this stage, run beside it, and end when all stages that use them are"
    " done, or have failed for good.",
    "profile": "The profile from which the run takes what is not passed here; `none` for none, not even the default"
    " one.",
}


def with_arguments(cls: type[Executor]) -> type[Executor]:
    """Document each argument of an executor's class, and let it refuse an unknown one with the nearest that exists."""
    init = cls.__init__

    @functools.wraps(init)
    def checked(self: Executor, *positional: Any, **named: Any) -> None:
        check_names(cls, named)
        init(self, *positional, **named)

    cls.__init__ = checked  # type: ignore[assignment]
    about = inspect.cleandoc(cls.__doc__ or "")
    cls.__doc__ = f"{about}\n\nArgs:\n{textwrap.indent(documentation(cls), '    ')}\n\n{RAISES}"
    return cls


def check_names(cls: type[Any], named: Mapping[str, Any]) -> None:
    """Raise StaggerError for an argument that an executor does not have."""
    names = {field.name for field in fields(cls)}
    for name in named:
        if name not in names:
            raise StaggerError(f"{cls.__name__}: {name}: {argument_meant(name, cls.type)}")


def documentation(cls: type[Any]) -> str:
    """One paragraph for each argument: its name, type, default and meaning, and below it the keys of a mapping."""
    keys = {**PipelineFile.model_fields, **EXECUTORS[cls.type].model_fields}
    meanings = {**descriptions(PipelineFile), **descriptions(EXECUTORS[cls.type]), **ONLY_PYTHON}
    return "\n".join(
        _argument(field, _kind(cls, field), keys.get(field.name), meanings[field.name]) for field in fields(cls)
    )


def _kind(cls: type[Any], argument: Field[Any]) -> str:
    """The type of an argument as its declaration has it, but without None, and with the values of a named choice."""
    text = str(argument.type).removesuffix(" | None")
    choice = getattr(sys.modules[cls.__module__], text, None)
    return " | ".join(map(repr, get_args(choice))) if get_origin(choice) is Literal else text


def _argument(argument: Field[Any], kind: str, key: FieldInfo | None, meaning: str) -> str:
    default = "" if key is None or argument.default is MISSING else _default(key)
    lines = [_paragraph(f"{argument.name} ({kind}{default}): {meaning}", 4)]
    lines += [
        _paragraph(f"`{name}`{_default(inner.model_fields[name]).replace(',', '', 1)}: {text}", 8)
        for inner in _inner(key)
        for name, text in descriptions(inner).items()
    ]
    return "\n".join(lines)


def _paragraph(text: str, indent: int) -> str:
    """One paragraph, whose later lines are indented, and all lines of an inner one."""
    first = " " * (indent - 4)
    return textwrap.fill(" ".join(text.split()), WIDTH, initial_indent=first, subsequent_indent=" " * indent)


def _default(key: FieldInfo) -> str:
    """The default of a key that has a simple one."""
    value = key.default
    return f", by default {value}" if isinstance(value, (str, int, float)) and value != "" else ""


def _inner(key: FieldInfo | None) -> list[type[BaseModel]]:
    """The model of a key that is a mapping with keys of its own."""
    kinds = (key.annotation, *get_args(key.annotation)) if key is not None else ()
    models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return models if len(models) == 1 else []
