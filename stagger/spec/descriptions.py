"""The descriptions of keys: the docstrings below the fields of their models, read from the source when they are needed.

pydantic's `use_attribute_docstrings` reads the source of every model on import, which takes each command 30 ms.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import sys

from pydantic import BaseModel


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """Field of a model -> its description."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if issubclass(cls, BaseModel) and cls is not BaseModel:
            found |= _of_classes(cls.__module__).get(cls.__name__, {})
    return found


@functools.cache
def _of_classes(module: str) -> dict[str, dict[str, str]]:
    """Class of a module -> field -> the docstring below it. Empty where the source is not installed."""
    try:
        source = inspect.getsource(sys.modules[module])
    except OSError:
        return {}
    return {node.name: _of_fields(node) for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}


def _of_fields(cls: ast.ClassDef) -> dict[str, str]:
    return {
        field.target.id: inspect.cleandoc(below.value.value)
        for field, below in itertools.pairwise(cls.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }
