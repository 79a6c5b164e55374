"""What a launch checks of the options of the host `transformer`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from stagger.errors import StaggerError
from stagger.models.settings import Dtype
from stagger.models.swarm_choice import SERVED_TOKENS


def check_options(model: str | None, options: Mapping[str, Any]) -> None:
    """Raise StaggerError, naming the option, for a value that servers would refuse. `model` is `blocks.model`."""
    if model is None:
        raise StaggerError("model is missing: the host transformer needs the folder of a model.")
    _check(options, "dtype", lambda value: value in get_args(Dtype), f"one of {', '.join(get_args(Dtype))}")
    for name in ("tokens", "max_length"):
        _check(options, name, lambda value: type(value) is int and value > 0, "a whole number of at least 1")
    for name in ("interface", "keys"):
        _check(options, name, lambda value: isinstance(value, str) and bool(value), "a text")
    _check(options, "encrypt", lambda value: isinstance(value, bool), "true or false")
    tokens, longest = options.get("tokens", SERVED_TOKENS), options.get("max_length") or 0
    if longest > tokens:
        raise StaggerError(
            f"host_options: max_length is {longest:,}, and tokens, the places of the largest microbatch, is"
            f" {tokens:,}: give tokens at least that."
        )


def _check(options: Mapping[str, Any], name: str, suits: Any, wanted: str) -> None:
    """Check an option if it is given. None stands for the default of those that have none."""
    value = options.get(name)
    if name in options and not suits(value) and not (value is None and name in ("max_length", "interface", "keys")):
        raise StaggerError(f"host_options.{name}: expected {wanted}, not {value!r}.")
