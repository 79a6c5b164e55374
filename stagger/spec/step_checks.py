"""Checks at launch that each step can be imported and accepts its parameters."""

from __future__ import annotations

import difflib
import inspect
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model

from stagger.errors import StaggerError
from stagger.pipeline.chain import BUILTIN, resolve
from stagger.spec.base import survives_json

#: Arguments of the step contract, which a function step takes before its own parameters.
CONTRACT = ("data", "rank", "world_size")


def check_step(use: str, params: dict[str, Any], where: str) -> None:
    """Raise StaggerError when a step cannot be imported or does not accept its parameters. `where` names the step."""
    try:
        target = resolve(use)
    except StaggerError as error:
        raise StaggerError(f"{where}: {error}") from error
    if not callable(target):
        raise StaggerError(f"{where}: {use!r} is not callable: its type is {type(target).__name__}.")
    _check_names(target, params, f"{where} ({use})")
    _check_json(params, f"{where} ({use})")
    if use in BUILTIN:
        _check_types(target, params, f"{where} ({use})")


def _check_names(target: Any, params: dict[str, Any], where: str) -> None:
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # Some classes written in C have no signature.
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
    """Raise StaggerError for parameters that JSON cannot hold, or would change: tasks get them as JSON."""
    if not survives_json(params):
        raise StaggerError(
            f"{where}: JSON cannot hold the parameters {params!r}; use string keys and finite 64-bit numbers."
        )


def check_built_in(step: Any, where: str) -> None:
    """Raise StaggerError when a built-in step made by Python code has a parameter of a wrong type or value."""
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
    """A pydantic model of a built-in step's parameters, made from its signature, their only definition."""
    hints = get_type_hints(step if is_dataclass(step) else step.__init__)  # type: ignore[misc]
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(step).parameters.items():
        fields[name] = (hints[name], ... if parameter.default is parameter.empty else parameter.default)
    return TypeAdapter(create_model(step.__name__, __config__=ConfigDict(extra="forbid"), **fields))


def step_schema() -> dict[str, Any]:
    """JSON schema of a step in a pipeline file: a name, or a name with its parameters."""
    parameters = {use: _model(resolve(use)).json_schema() for use in BUILTIN}
    for use, schema in parameters.items():
        documented = [cls for cls in resolve(use).__mro__ if cls.__module__.startswith("stagger.")]
        described = {name: text for cls in reversed(documented) for name, text in argument_descriptions(cls).items()}
        schema["description"] = (inspect.getdoc(resolve(use)) or "").partition("\n\nArgs:")[0]
        for name, parameter in schema["properties"].items():
            parameter["description"] = described[name]
    return {
        "anyOf": [
            {"type": "string", "description": "A step without parameters: a built-in name, or module:callable."},
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


def argument_descriptions(cls: type) -> dict[str, str]:
    """Argument -> its description, from the section `Args:` of a class's docstring."""
    section = (cls.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
    found: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(f"\n{section}").splitlines():
        if not line.startswith(" "):
            name, _, text = line.partition(": ")
            found[name] = text
        elif name:
            found[name] += f" {line.strip()}"
    return found


def nearest(name: str, valid: list[str]) -> str:
    """The end of a message about an unknown name: the nearest valid name, or all valid names."""
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"choose from {', '.join(valid)}." if valid else "there are no valid names."
