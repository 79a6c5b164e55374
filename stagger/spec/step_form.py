"""The forms of a step in a pipeline file: `name`, or `name: {parameters}`."""

from __future__ import annotations

import inspect
from typing import Any

from stagger.pipeline.names import BUILTIN, resolve
from stagger.spec.expected import assigned, described
from stagger.spec.nearest import close_to

#: Keys that a step may have beside its name.
BESIDE = ("removed", "stateless")


def step_of(written: Any) -> Any:
    """A step of a pipeline file as the fields of a `StepSpec`. Raises ValueError when it has another form."""
    if isinstance(written, str):
        return {"use": written}
    if isinstance(written, dict) and "use" in written:
        return written
    if not isinstance(written, dict) or not written:
        raise ValueError(f"write a step as `name`, or as `name: {{parameters}}`, not as {described(written)}")
    beside = {key: written[key] for key in BESIDE if key in written}
    (use, params), *more = [(key, value) for key, value in written.items() if key not in beside] or [("", None)]
    if not use:
        raise ValueError(f"a step has a name, this one has only {', '.join(beside)}: write it beside the step's name")
    if more:
        raise ValueError(_several_keys(str(use), [str(key) for key, _ in more]))
    if params is not None and not isinstance(params, dict):
        raise ValueError(_no_parameters(str(use), params))
    return {"use": use, "params": params or {}, **beside}


def _several_keys(use: str, more: list[str]) -> str:
    """Why a mapping of several keys is no step: its parameters are not indented, or its steps lack dashes."""
    if any(key in BUILTIN or ":" in key for key in more):
        return f"a step has one key, this one has {', '.join((use, *more))}: begin each step with a dash"
    if close := close_to(more[0], BESIDE):
        return f"{more[0]} is unknown beside {use}; did you mean {close!r}?"
    return (
        f"a step has one key, this one has {', '.join((use, *more))}: indent the parameters of {use} further than its"
        f" name, or write {use}: {{{more[0]}: ...}}"
    )


def _no_parameters(use: str, params: Any) -> str:
    name, brace, _ = use.partition("{")
    if brace:
        return f"a colon is missing after the name; write {name.strip()}: {{...}}"
    if isinstance(params, str) and use not in BUILTIN and ":" not in use:
        return f"expected a mapping of parameters, not {described(params)}; did you mean {use}:{params}, without space?"
    names = list(inspect.signature(resolve(use)).parameters) if use in BUILTIN else []
    value = params if isinstance(params, str) else "..."
    example = assigned(use, {names[0]: value}) if names else f"{use}: {{name: value}}"
    return f"expected a mapping of parameters, not {described(params)}; write for example {example}"
