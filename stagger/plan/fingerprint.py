"""Describes steps that are Python objects, for the run's records."""

from __future__ import annotations

import functools
from typing import Any

import orjson


def describe_object(step: Any) -> dict[str, Any]:
    """Describe a Python step: where it is defined, and those of its settings that JSON can hold."""
    settings: dict[str, Any] = {}
    if isinstance(step, functools.partial):
        settings = {**dict(step.keywords), **({"args": step.args} if step.args else {})}
        step = step.func
    elif not hasattr(step, "__qualname__"):
        settings = dict(vars(step)) if hasattr(step, "__dict__") else {}
        step = type(step)
    params = {key: as_json(value) for key, value in settings.items() if key[0] != "_"}
    plain = {key: value for key, value in params.items() if value is not NotImplemented}
    return {"use": f"{step.__module__}:{step.__qualname__}", "params": plain}


def as_json(value: Any) -> Any:
    """Pass a value through JSON (sets become sorted lists); NotImplemented if JSON cannot hold it."""
    try:
        return orjson.loads(orjson.dumps(value, default=lambda v: sorted(v) if isinstance(v, (set, frozenset)) else v))
    except (TypeError, ValueError):
        return NotImplemented
