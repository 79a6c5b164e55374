"""What a launch looks for in the steps of datatrove: which documents they see, and whether they number them alike."""

from __future__ import annotations

import functools
import inspect
import os
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from stagger.errors import StaggerError
from stagger.pipeline.names import resolve
from stagger.spec.models import RunSpec, StageSpec
from stagger.steps.reader import ShardReader
from stagger.storage.storage import absolute, is_local
from stagger.terminal import logger

DATATROVE = "datatrove"

#: The package of datatrove's blocks that number the documents of a rank, and remove documents by these numbers. Each
#: kind of deduplication is a module of it.
DEDUP = "datatrove.pipeline.dedup"

#: Parameters of stagger's readers that change neither which documents there are, nor their order, nor their text.
HARMLESS = frozenset(
    (
        "path",
        "add_source",
        "default_metadata",
        "id_key",
        "metadata_key",
        "metadata_keys",
        "max_bad_records",
        "max_record_bytes",
        "allow_empty",
        "batch_size",
        "skip_empty_text",
    )
)

#: Attributes of datatrove's readers that do.
SETTINGS = ("paths_file", "limit", "skip", "text_key", "recursive", "glob_pattern", "shuffle_files", "compression")


def uses(step: Any, package: str) -> bool:
    """Whether a step comes from a package, or its code names anything of it: a function may wrap a block."""
    return any(name == package or name.startswith(f"{package}.") for name in _modules(step, set()))


def _modules(step: Any, seen: set[int]) -> Iterator[str]:
    """The modules of what a step is, and of what its code names. Follows functions and classes of the same module."""
    if id(step) in seen:
        return
    seen.add(id(step))
    if isinstance(step, functools.partial):
        yield from _modules(step.func, seen)
    elif isinstance(step, types.FunctionType):
        yield step.__module__
        for value in _named(step.__code__, step.__globals__):
            yield from [value] if isinstance(value, str) else _modules_of_value(value, step.__module__, seen)
    else:
        for one in (step if isinstance(step, type) else type(step)).__mro__[:-1]:
            yield one.__module__
            if not one.__module__.startswith(("stagger.", f"{DATATROVE}.")):
                for method in vars(one).values():
                    yield from _modules(method, seen) if isinstance(method, types.FunctionType) else ()


def _modules_of_value(value: Any, own: str | None, seen: set[int]) -> Iterator[str]:
    if isinstance(value, types.ModuleType):
        yield value.__name__
    elif getattr(value, "__module__", None) == own and isinstance(value, (type, types.FunctionType)):
        yield from _modules(value, seen)
    else:
        kind = value if isinstance(value, (type, types.FunctionType)) else type(value)
        yield str(getattr(kind, "__module__", ""))


def _named(code: types.CodeType, scope: Mapping[str, Any]) -> Iterator[Any]:
    """The global values that a function's code names; of the modules that it imports itself, the names."""
    for name in code.co_names:
        yield scope.get(name, name)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _named(constant, scope)


def without_empty_texts(spec: RunSpec, steps: Mapping[str, Sequence[Any]]) -> RunSpec:
    """The run, whose readers leave out documents without text by default if it has steps of datatrove.

    datatrove's readers do so, and its blocks may number documents: one more shifts all numbers.
    """
    if not any(uses(step, DATATROVE) for mine in steps.values() for step in mine):
        return spec
    stages = []
    for stage in spec.stages:
        reader = steps[stage.name][0] if steps[stage.name] else None
        if isinstance(reader, ShardReader) and reader.skip_empty_text is None:
            reader.leave_out_empty()
            logger.info(
                f"{stage.name}: documents without text are left out, and counted, as datatrove's readers do;"
                " skip_empty_text: false keeps them"
            )
            stage = stage if spec.pickled else _leaving_out(stage)
        stages.append(stage)
    return spec.with_stages(stages)


def _leaving_out(stage: StageSpec) -> StageSpec:
    """The stage with `skip_empty_text: true` at its reader: its tasks create the reader from its parameters."""
    first, *rest = stage.pipeline
    if "skip_empty_text" not in inspect.signature(resolve(first.use)).parameters:
        return stage
    first = first.model_copy(update={"params": {**first.params, "skip_empty_text": True}})
    return stage.model_copy(update={"pipeline": type(stage.pipeline)([first, *rest])})


def refuse_unlike_readers(spec: RunSpec, steps: Mapping[str, Sequence[Any]]) -> None:
    """Raise StaggerError when stages number the documents of one folder, but do not read them alike.

    datatrove's deduplication writes down numbers of documents in one stage, and removes the documents with these
    numbers in another.
    """
    seen: list[tuple[str, set[str], str, dict[str, Any]]] = []
    for stage in spec.stages:
        reader, *rest = steps[stage.name]
        kinds = {name for step in rest for name in _modules(step, set()) if f"{name}.".startswith(f"{DEDUP}.")}
        if (found := reading(reader)) is None or not kinds:
            continue
        path, how = found
        how |= {"shard_by": stage.shard_by} | ({"tasks": stage.tasks} if stage.sizing == "given" else {})
        for other_path, other_kinds, other, before in seen:
            if path == other_path and (kinds & other_kinds or DEDUP in kinds | other_kinds):
                _refuse_unlike(path, stage.name, how, other, before)
        seen.append((path, kinds, stage.name, how))


def _refuse_unlike(path: str, name: str, how: Mapping[str, Any], other: str, before: Mapping[str, Any]) -> None:
    if key := next((key for key in before if key in how and before[key] != how[key]), None):
        raise StaggerError(
            f"{other} and {name} deduplicate {path} by the numbers of its documents, but do not read it alike: {key} is"
            f" {before[key]} in {other}, and {how[key]} in {name}. Other documents than the duplicates would be"
            " removed: give both stages the same reader, with the same settings, and tasks."
        )


def reading(reader: Any) -> tuple[str, dict[str, Any]] | None:
    """The folder that a step reads, and everything on which its documents depend; None for a step that is no reader."""
    kind = type(reader).__name__
    if isinstance(reader, ShardReader):
        named = {one.name: getattr(reader, one.name) for one in fields(reader) if one.init}
        how = {name: value for name, value in named.items() if name not in HARMLESS}
        return place(reader.path), {"reader": kind, "skip_empty_text": reader.leaves_out_empty, **how}
    folder = getattr(reader, "data_folder", None)
    if folder is None or not hasattr(reader, "read_file"):
        return None
    path = place(absolute(str(folder.fs.unstrip_protocol(folder.path)).removeprefix("file://")))
    how = {name: getattr(reader, name) for name in SETTINGS if hasattr(reader, name)}
    return path, {"reader": f"{DATATROVE}'s {kind}", **how}


def place(path: str) -> str:
    """Where a folder lies, whatever links lead to it."""
    return os.path.realpath(path) if is_local(path) else path.rstrip("/")
