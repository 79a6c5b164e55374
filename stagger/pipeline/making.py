"""Makes the steps of a pipeline from their names and parameters: once at launch, and in a task for each rank."""

from __future__ import annotations

import functools
from typing import Any, cast

from stagger.pipeline.chain import Step
from stagger.pipeline.names import resolve
from stagger.storage.storage import expand_variables


def build(use: str, params: dict[str, Any]) -> Step:
    """A step ready to run: an instance of a class, or a function with `params` filled in.

    `${NAME}` in `params` is replaced from the environment, and the objects that they describe are made (objects.py).
    Raises StaggerError, naming the key, when a variable is not set, or an object cannot be made.
    """
    target = resolve(use)
    params = cast("dict[str, Any]", expand_variables(params, (use,)))
    if any(isinstance(value, (dict, list)) for value in params.values()):
        from stagger.pipeline.objects import arguments  # Imported late: few steps have such parameters.

        params = arguments(target, params)
    step: Step = target(**params) if isinstance(target, type) else functools.partial(target, **params)
    return step
