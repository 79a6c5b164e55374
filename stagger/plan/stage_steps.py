"""Creates the steps of a stage at launch, once each, and checks that the tasks will be able to call them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stagger.datatrove.state import repeatable
from stagger.errors import StaggerError
from stagger.pipeline.chain import Step, build
from stagger.pipeline.hooks import BoundStep, Reader, Writer, is_costly
from stagger.pipeline.names import BUILTIN, resolve
from stagger.pipeline.objects import reason_of, written_objects
from stagger.steps.removed import WriteRemoved, removal_writers

if TYPE_CHECKING:
    from stagger.spec.models import StageSpec

#: The arguments of every call of a step, as errors show them.
CONTRACT = "(data, rank, world_size)"

#: Method of hooks.py -> its arguments, and the class that a step with such a method has to inherit from.
HOOKS = {"bind": (["self", "task"], "BoundStep"), "find_shards": (["self", "storage"], "Reader")}


def create_steps(stage: StageSpec, objects: Sequence[Step] | None = None) -> list[Any]:
    """The steps of a stage, and behind them what writes the documents that they remove, with the hooks of a writer.
    `objects` are its steps if they are Python objects. A costly step (hooks.py) is its class.

    Raises StaggerError when a step cannot be created or called, or when the first step needs input.
    """
    steps = list(objects) if objects else [_created(stage, index) for index in range(len(stage.pipeline))]
    names = [step.named(number) for number, step in enumerate(stage.pipeline, 1)]
    for number, (name, step) in enumerate(zip(names, steps, strict=True)):
        _check_call(step, name)
        _check_hooks(step, name)
        if number and isinstance(step, Reader):
            raise StaggerError(f"{name} is a reader; only the first step can be a reader.")
    if stage.blocks is None and not brings_input(steps[0]):
        readers = ", ".join(use for use in BUILTIN if use.startswith("read_"))
        raise StaggerError(
            f"{names[0]} is the first step, and the first step gets no data: begin with a reader ({readers}). If the"
            " step makes its own records, give `data` a default: data=None."
        )
    if stage.sizing != "given" and not isinstance(steps[0], Reader):
        key = "tasks: auto" if stage.bytes_per_task is None else "bytes_per_task"
        raise StaggerError(
            f"{stage.name}: {key} needs a reader, whose shards become ranks, and {names[0]} makes its own records: give"
            " tasks as a number."
        )
    return [*steps, *_removal_writers(stage, steps)]


def _removal_writers(stage: StageSpec, steps: Sequence[Any]) -> list[WriteRemoved]:
    """What writes the documents that the steps of a stage remove. Raises StaggerError for a step that removes none."""
    for number, (spec, step) in enumerate(zip(stage.pipeline, steps, strict=True), 1):
        if spec.removed is None:
            continue
        if number == 1 or isinstance(step, Writer):
            what = "is the first step, into which no documents go" if number == 1 else "is a writer, and passes all on"
            raise StaggerError(
                f"{spec.named(number)} {what}: write `removed` beside the step whose removed documents you want."
            )
    found = removal_writers([step.model_dump() for step in stage.pipeline], stage.commit == "shard")
    for spec, step, writer in zip(stage.pipeline, steps, found, strict=True):
        if writer and writer.shard_by_shard and not repeatable(step, declared=spec.stateless):
            raise StaggerError(
                f"{writer.name}: its removed documents cannot have a file for each shard, as the step gets those of all"
                " shards in one call: put {rank} into removed.filename, or declare the step `stateless: true`."
            )
    return [writer for writer in found if writer is not None]


def _created(stage: StageSpec, index: int) -> Any:
    """Create a step of a pipeline file. Raises StaggerError with the error of its constructor."""
    step = stage.pipeline[index]
    target = resolve(step.use)
    if makes_costly(target, step.params):
        if not isinstance(target, type):
            return functools.partial(target, **step.params)
        if not issubclass(target, (Reader, Writer)):  # A launch calls the hooks of these two.
            return target
    try:
        return build(step.use, step.params)
    except StaggerError as error:
        raise StaggerError(f"{step.named(index + 1)}: {error}") from error
    except Exception as error:  # The constructor is the user's.
        raise StaggerError(f"{step.named(index + 1)} cannot be created: {reason_of(error, 2)}.") from error


def makes_costly(target: Any, params: Mapping[str, Any]) -> bool:
    """Whether a step, or an object in its parameters, is costly to make (hooks.py)."""
    inner = (resolve(name) for _, (name, values) in written_objects(params) if values is not None)
    return any(is_costly(one) for one in (target, *inner))


def _check_call(step: Any, name: str) -> None:
    """Raise StaggerError when a call with the arguments of the contract must fail, or returns no iterator."""
    call = _call_of(step)
    if call is None:
        raise StaggerError(
            f"{name}: its objects cannot be called; give the class a method __call__(self, {CONTRACT[1:]}."
        )
    if inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call):
        raise StaggerError(f"{name} is asynchronous; write it with def, not async def.")
    signature = _signature(call)
    if signature is None:
        return
    given = (None, 0, 1) if call is step or not isinstance(step, type) else (None, None, 0, 1)
    try:
        signature.bind(*given)
    except TypeError as error:
        raise StaggerError(
            f"{name} takes {signature}, but every step is called with {CONTRACT}, and yields records ({error}). For a"
            " function of one document that says whether to keep it, write filter: {function: NAME}, in Python"
            " Filter(function)."
        ) from None


def _check_hooks(step: Any, name: str) -> None:
    """Raise StaggerError when a step has a method with the name and arguments of a hook, which nobody would call."""
    kind = step if isinstance(step, type) else type(step)
    if issubclass(kind, BoundStep):
        return
    for hook, (arguments, base) in HOOKS.items():
        method = getattr(kind, hook, None)
        if inspect.isfunction(method) and list(inspect.signature(method).parameters) == arguments:
            raise StaggerError(
                f"{name} has a method {hook}({arguments[1]}), which is called only for classes that inherit from"
                f" stagger.{base}: write class {kind.__name__}(stagger.{base})."
            )


def _call_of(step: Any) -> Callable[..., Any] | None:
    """What a call of the step runs: for a class, the method of its objects; None if they cannot be called."""
    if not isinstance(step, type):
        return step if callable(step) else None
    found: Callable[..., Any] | None = getattr(step, "__call__", None)  # noqa: B004
    return found if any("__call__" in parent.__dict__ for parent in step.__mro__) else None


def _signature(call: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(call)
    except (TypeError, ValueError):  # Some callables written in C have no signature.
        return None


def brings_input(step: Any) -> bool:
    """Whether a step can be the first one: it is a reader, or its first argument, `data`, has a default."""
    if isinstance(step, Reader):
        return True
    call = _call_of(step)
    signature = _signature(call) if call is not None else None
    if signature is None:
        return True
    parameters = list(signature.parameters.values())[isinstance(step, type) :]
    return (
        not parameters
        or parameters[0].default is not inspect.Parameter.empty
        or parameters[0].kind is (inspect.Parameter.VAR_POSITIONAL)
    )
