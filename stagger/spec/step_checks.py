"""Checking steps at launch: that each can be imported, and takes the parameters it is given."""

from __future__ import annotations

import difflib
import inspect
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import orjson
from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model

from stagger.errors import StaggerError
from stagger.pipeline.chain import BUILTIN, resolve

#: The contract's own arguments, which a function step takes beside its parameters.
CONTRACT = ("data", "rank", "world_size")


def check_step(use: str, params: dict[str, Any], where: str) -> None:
    """Raise StaggerError when a step cannot be imported, or does not take its parameters. `where` says which step."""
    try:
        target = resolve(use)
    except StaggerError as error:
        raise StaggerError(f"{where}: {error}") from error
    if not callable(target):
        raise StaggerError(f"{where}: {use!r} is not callable, but {type(target).__name__}.")
    _check_names(target, params, f"{where} ({use})")
    _check_json(params, f"{where} ({use})")
    if use in BUILTIN:
        _check_types(target, params, f"{where} ({use})")


def _check_names(target: Any, params: dict[str, Any], where: str) -> None:
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # Some classes written in C do not say.
        return
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    contract = () if isinstance(target, type) else tuple(parameters)[: len(CONTRACT)]
    names = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [name for name in names if name not in contract]
    for name in params:
        if name not in names and not takes_any:
            raise StaggerError(f"{where}: unknown parameter {name!r}; {nearest(name, names)}")
    for name in names:
        if name not in params and parameters[name].default is inspect.Parameter.empty:
            raise StaggerError(f"{where}: the parameter {name!r} is missing; give it a value.")


def _check_json(params: dict[str, Any], where: str) -> None:
    """Parameters travel to tasks as JSON; what it would change or refuse is refused here."""
    try:
        same = orjson.loads(orjson.dumps(params)) == params
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise StaggerError(
            f"{where}: the parameters {params!r} do not fit into JSON: string keys, finite numbers of 64 bits."
        )


def check_built_in(step: Any, where: str) -> None:
    """Raise StaggerError for a built-in step, made by Python code, with a parameter of a wrong type or value."""
    kind = type(step)
    if f"{kind.__module__}:{kind.__qualname__}" in BUILTIN.values():
        params = {field.name: getattr(step, field.name) for field in fields(step) if field.init}
        _check_types(kind, params, f"{where} ({kind.__name__})")


def _check_types(target: Any, params: dict[str, Any], where: str) -> None:
    try:
        _model(target).validate_python(params, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][:1])
        raise StaggerError(f"{where}: {name}: {first['msg'].lower()}, not {first['input']!r}.") from error


def _model(step: type) -> TypeAdapter[Any]:
    """A model with a built-in step's parameters, made from its signature, so that there is one place for them."""
    hints = get_type_hints(step if is_dataclass(step) else step.__init__)  # type: ignore[misc]
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(step).parameters.items():
        fields[name] = (hints[name], ... if parameter.default is parameter.empty else parameter.default)
    return TypeAdapter(create_model(step.__name__, __config__=ConfigDict(extra="forbid"), **fields))


def step_schema() -> dict[str, Any]:
    """JSON schema of a step as files write it: a name, or one name with its parameters."""
    parameters = {use: _model(resolve(use)).json_schema() for use in BUILTIN}
    for use, schema in parameters.items():
        documented = [cls for cls in resolve(use).__mro__ if cls.__module__.startswith("stagger.")]
        schema["description"] = "\n\n".join(inspect.getdoc(cls) or "" for cls in documented)
    return {
        "anyOf": [
            {"type": "string", "description": "A step without parameters: a built-in one's name, or module:callable."},
            {
                "type": "object",
                "properties": parameters,
                "patternProperties": {"^[A-Za-z_][\\w.]*:[\\w.]+$": {"type": ["object", "null"]}},
                "additionalProperties": False,
                "minProperties": 1,
                "maxProperties": 1,
            },
        ]
    }


def nearest(name: str, valid: list[str]) -> str:
    """The end of a sentence about an unknown name: the nearest valid one, or all of them."""
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"valid are {', '.join(valid)}." if valid else "there is none to give."
