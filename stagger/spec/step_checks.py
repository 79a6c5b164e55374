"""Checks at launch that each step can be imported and accepts its parameters."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model

from stagger.errors import StaggerError
from stagger.pipeline.names import BUILTIN, resolve
from stagger.pipeline.objects import written_object
from stagger.spec.base import survives_json, without_plugins
from stagger.spec.expected import expected
from stagger.spec.nearest import close_to, nearest
from stagger.spec.object_checks import check_objects
from stagger.spec.place import Place
from stagger.spec.removed import RemovedSpec
from stagger.spec.yaml_file import Path

#: Arguments of the step contract, which a function step takes before its own parameters.
CONTRACT = ("data", "rank", "world_size")


def check_step(use: str, params: dict[str, Any], place: Place, path: Path) -> None:
    """Raise StaggerError when a step cannot be imported or does not accept its parameters. `path` is that of the step
    in the file.
    """
    where = place.of((*path, use) if (*path, use) in place.lines else path)
    try:
        target = resolve(use)
    except StaggerError as error:
        raise StaggerError(f"{where}: {error}{_module_beside(error.__cause__, use)}") from error
    if not callable(target):
        raise StaggerError(f"{where}: {use!r} is not callable: its type is {type(target).__name__}.")

    def of(name: str) -> str:
        return place.of((*path, use, name))

    def below(more: Path) -> str:
        return place.of((*path, *more))

    def check_names(target: Any, params: Mapping[str, Any], more: Path) -> None:
        _check_names(target, params, below(more), lambda name: below((*more, name)), ())

    _check_names(target, params, where, of, () if isinstance(target, type) else CONTRACT)
    check_objects(target, params, (use,), below, check_names)
    for name, value in params.items():
        if not survives_json(value):  # Tasks get the parameters as JSON.
            raise StaggerError(f"{of(name)}: JSON cannot hold this value; use string keys and finite 64-bit numbers.")
    if use in BUILTIN:
        _check_types(target, {name: _existing(value) for name, value in params.items()}, of)


def _existing(value: Any) -> Any:
    """A parameter's value, or what it names."""
    found = written_object(value)
    return resolve(found[0]) if found is not None and found[1] is None else value


def _module_beside(error: BaseException | None, use: str) -> str:
    """A hint at the module of which a step's name has a typing error; empty when there is none."""
    name = use.partition(":")[0]
    if not isinstance(error, ModuleNotFoundError) or error.name not in (name, name.removesuffix(".py")):
        return ""
    folders = [folder for folder in sys.path if folder and os.path.isdir(folder) and "site-packages" not in folder]
    beside = [
        file[:-3] for folder in (*folders[:1], *folders[-3:]) for file in os.listdir(folder) if file.endswith(".py")
    ]
    close = close_to(name, sorted(set(beside)))
    return f" Did you mean {close!r}?" if close else " Modules beside the pipeline file are found."


def _check_names(
    target: Any, params: Mapping[str, Any], where: str, of: Callable[[str], str], contract: Sequence[str]
) -> None:
    """Check the names of the parameters of a call, whose first arguments are those of the contract."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # Some classes written in C have no signature.
        return
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    own = list(parameters.items())[len(contract) :]
    names = [name for name, p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for name in params:
        if name not in names and not takes_any:
            raise StaggerError(f"{of(str(name))}: unknown parameter; {nearest(str(name), names)}")
    for name in names:
        if name not in params and parameters[name].default is inspect.Parameter.empty:
            raise StaggerError(f"{where}: the parameter {name!r} is missing; give it a value.")


def check_built_in(step: Any, where: str) -> None:
    """Raise StaggerError when a built-in step made by Python code has a parameter of a wrong type or value."""
    kind = type(step)
    if f"{kind.__module__}:{kind.__qualname__}" in BUILTIN.values():
        params = {field.name: getattr(step, field.name) for field in fields(step) if field.init}
        _check_types(kind, params, lambda name: f"{where} ({kind.__name__}): {name}", python=True)


def _check_types(target: Any, params: dict[str, Any], of: Callable[[str], str], python: bool = False) -> None:
    try:
        _model(target).validate_python(params, strict=True)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        end = expected(_hints(target)[name]).mistake(name, params[name], python)
        raise StaggerError(f"{of(name)}: {end}{'' if end.endswith('?') else '.'}") from error


def _hints(step: type) -> dict[str, Any]:
    """Parameter of a built-in step -> its type."""
    return get_type_hints(step if is_dataclass(step) else step.__init__)  # type: ignore[misc]


def _model(step: type) -> TypeAdapter[Any]:
    """A pydantic model of a built-in step's parameters, made from its signature, their only definition."""
    hints = _hints(step)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(step).parameters.items():
        fields[name] = (hints[name], ... if parameter.default is parameter.empty else parameter.default)
    with without_plugins():
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
    beside = {
        "stateless": {"type": "boolean", "description": "Whether the step keeps nothing from one call to the next."},
        "removed": {
            "description": "Where the documents are written that the step removes.",
            "anyOf": [{"type": "string"}, RemovedSpec.model_json_schema()],
        },
    }
    return {
        "anyOf": [
            {"type": "string", "description": "A step without parameters: a built-in name, or module:callable."},
            {
                "type": "object",
                "properties": {**parameters, **beside},
                "patternProperties": {"^[A-Za-z_][\\w.]*:[\\w.]+$": {"type": ["object", "null"]}},
                "additionalProperties": False,
                "minProperties": 1,
                "maxProperties": 1 + len(beside),
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
