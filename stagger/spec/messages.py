"""Error messages about pipeline files: one sentence per mistake, with its place."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from stagger.errors import StaggerError
from stagger.spec.base import WrongKey
from stagger.spec.blocks import BlocksSpec
from stagger.spec.executors import EXECUTORS, RESERVED_OPTIONS, SBATCH_OPTIONS
from stagger.spec.expected import assigned, described, expected
from stagger.spec.models import PipelineFile, StageSpec
from stagger.spec.nearest import nearest
from stagger.spec.place import Place
from stagger.spec.yaml_file import Path

#: What people call keys of executors in other tools -> the key.
OTHER_NAMES = {
    "mem": "mem_per_cpu_gb",
    "memory": "mem_per_cpu_gb",
    "memory_gb": "mem_per_cpu_gb",
    "mem_gb": "mem_per_cpu_gb",
    "cpus": "cpus_per_task",
    "cores": "cpus_per_task",
    "gpus": "gpus_per_task",
    "nodes": "nodes_per_task",
    "queue": "partition",
    "walltime": "time",
    "time_limit": "time",
    "timeout": "time",
    "throttle": "workers",
    "max_jobs": "workers",
    "processes": "workers",
    "kind": "type",
    "steps": "pipeline",
    "needs": "depends",
    "dependencies": "depends",
    "depends_on": "depends",
    "use": "uses",
    "swarm": "uses",
    "swarms": "uses",
    "output_dir": "run_dir",
    "logging_dir": "run_dir",
    "ranks": "tasks",
    "world_size": "tasks",
}

#: A key that is missing -> how to write it.
EXAMPLES: dict[str, Any] = {"name": "my_run", "run_dir": "runs/my_run", "servers": 8}


def validated(model: type[Any], raw: dict[str, Any], place: Place, path: Path) -> Any:
    """Validate `raw`, found at `path`, as a `model`. Raises StaggerError with one sentence per mistake."""
    if wrong := list(truths(Located((), model, model), raw)):
        raise StaggerError(*(mistake(found, value, place, path) for found, value in wrong))
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        errors = error.errors()
        # pydantic also reports the keys around a wrong key; keep only the innermost.
        inner = [e for e in errors if not any(o["loc"][: len(e["loc"])] == e["loc"] != o["loc"] for o in errors)]
        sentences = {located(model, item["loc"]).path: sentence(model, item, place, path) for item in inner}
        raise StaggerError(*sentences.values()) from None


@dataclass(frozen=True)
class Located:
    """What pydantic's location of an error stands for: the path of the key, the model around it, and its type."""

    path: Path
    model: Any
    hint: Any
    metadata: Sequence[Any] = ()
    is_key: bool = False


def located(model: type[BaseModel], location: Sequence[str | int]) -> Located:
    """The key that an error is about. pydantic notes members of unions in its location: executor.slurm.partition."""
    found = Located((), model, model)
    for part in location:
        found = below(found, part) or found
    return found


def below(place: Located, part: str | int) -> Located | None:
    """The key `part` below a place. The place itself, of the type `part`, if that is a type of executors; None if
    `part` is no key, but another note of pydantic's.
    """
    hint = place.hint
    if get_origin(hint) is Annotated:
        return below(Located(place.path, place.model, hint.__origin__), part)
    if get_origin(hint) in (Union, types.UnionType):
        options = get_args(hint)
        if EXECUTORS.get(str(part)) in options:
            return Located(place.path, EXECUTORS[str(part)], EXECUTORS[str(part)])
        tried = (below(Located(place.path, place.model, one), part) for one in options if one is not type(None))
        return next((one for one in tried if one is not None), None)
    path = (*place.path, part)
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        known = hint.model_fields.get(str(part))
        return Located(path, hint, known.annotation, known.metadata) if known else Located(path, hint, None)
    kind = get_origin(hint) or hint
    if kind in (list, tuple) and isinstance(part, int):
        return Located(path, None, (get_args(hint) or (Any,))[0])
    if kind is dict:
        key, value = get_args(hint) or (Any, Any)
        return Located(place.path, None, key, is_key=True) if part == "[key]" else Located(path, None, value)
    return None


def sentence(model: type[BaseModel], error: Any, place: Place, path: Path) -> str:
    """Format one validation error as a sentence: the place, the mistake, and the remedy."""
    found = located(model, error["loc"])
    rule = error.get("ctx", {}).get("error")
    if isinstance(rule, WrongKey):
        return f"{place.of((*path, *found.path, *rule.key))}: {rule}."
    where = place.of((*path, *found.path))
    key = str(found.path[-1]) if found.path else ""
    if error["type"] == "extra_forbidden":
        return f"{where}: {unknown_argument(found, path, place.file) if place.python else unknown(found)}"
    if error["type"] == "missing":
        example = assigned(key, EXAMPLES[key], place.python) if key in EXAMPLES else None
        return f"{where}: this key is missing; {f'write for example {example}' if example else 'give it a value'}."
    if error["type"].startswith("union_tag"):
        return f"{where}: {wrong_type(error['input'], place)}"
    if rule is not None:
        return f"{where}: {str(rule)[0].lower()}{str(rule)[1:]}{'' if str(rule).endswith('?') else '.'}"
    return mistake(found, error["input"], place, path)


def mistake(found: Located, value: Any, place: Place, path: Path) -> str:
    """The message about a key whose value is of a wrong type, or beyond its limits."""
    whole = (*path, *found.path)
    key = whole[-1] if whole and isinstance(whole[-1], str) else ""
    end = expected(found.hint, found.metadata).mistake(key, value, place.python)
    where = f"{place.of(whole)}{' (the key)' if found.is_key else ''}"
    return f"{where}: {end}{'' if end.endswith('?') else '.'}"


def truths(place: Located, value: Any) -> Iterator[tuple[Located, Any]]:
    """The keys of a number whose value is true or false, which Python counts as 1 and 0."""
    if isinstance(value, bool) and expected(place.hint, place.metadata).kinds == {"number"}:
        yield place, value
    elif isinstance(value, Mapping):
        around = below(place, value["type"]) if place.path[-1:] == ("executor",) and "type" in value else place
        for key, item in value.items():
            if around is not None and (inner := below(around, key)) is not None:
                yield from truths(inner, item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            if (inner := below(place, index)) is not None:
                yield from truths(inner, item)


#: Keys of files that are no arguments of executors.
NO_ARGUMENTS = ("stages", "vars", "executor", "type")

#: Arguments of executors that are no keys of files without stages.
OF_STAGES = ("depends", "uses")


def unknown_argument(found: Located, path: Path, executor: str) -> str:
    """The end of a message about an unknown argument of an executor, or a key of a mapping in one, at `path`."""
    key, kind = str(found.path[-1]), executor.removesuffix("Executor").lower()
    if len((*path, *found.path)) > (2 if found.path[0] == "executor" else 1):
        return f"unknown key; {nearest(key, list(found.model.model_fields))}"
    return argument_meant(key, kind)


def argument_meant(key: str, kind: str) -> str:
    """The end of a message about an unknown argument of an executor of this kind."""
    others = {other: model for other, model in EXECUTORS.items() if other != kind and key in model.model_fields}
    for other in others:
        return f"this is an argument of {other.title()}Executor; leave it out."
    known = (*EXECUTORS[kind].model_fields, *PipelineFile.model_fields, *OF_STAGES)
    names = [name for name in known if name not in NO_ARGUMENTS]
    if (meant := OTHER_NAMES.get(key)) in names:
        return f"unknown argument; did you mean {meant!r}?"
    if kind == "slurm" and key.replace("_", "-") in SBATCH_OPTIONS:
        return f"unknown argument; it is an option of sbatch: pass sbatch={{{key.replace('_', '-')!r}: ...}}."
    if key in BlocksSpec.model_fields:
        return f"unknown argument; it is a key of blocks: pass blocks={{{key!r}: ...}}."
    return f"unknown argument; {nearest(key, names)}"


def unknown(found: Located) -> str:
    """The end of a message about an unknown key of a file."""
    key, what = str(found.path[-1]), "unknown key"
    for kind, other in EXECUTORS.items():
        if found.model in EXECUTORS.values() and key in other.model_fields:
            return f"this key is for `type: {kind}`; set the type, or leave the key out."
        if found.model not in EXECUTORS.values() and len(found.path) == 1 and key in other.model_fields:
            return "this key belongs below `executor:`; move it there."
    if found.model in EXECUTORS.values() and key in PipelineFile.model_fields:
        return "this key belongs above `executor:`, not below it; move it there."
    if found.model is StageSpec and key in PipelineFile.model_fields:
        return "this key is for the whole run; move it to the top of the file."
    keys = list(found.model.model_fields)
    if (meant := OTHER_NAMES.get(key.lower())) in keys:
        return f"{what}; did you mean {meant!r}?"
    if "sbatch" in keys and (option := key.replace("_", "-")) in RESERVED_OPTIONS:
        return f"{what}; {option!r} is set by stagger itself{RESERVED_OPTIONS[option]}."
    if "sbatch" in keys and key.replace("_", "-") in SBATCH_OPTIONS:
        return f"{what}; it is an option of sbatch: write it below `sbatch:`, as {key.replace('_', '-')}."
    return f"{what}; {nearest(key, keys)}"


def wrong_type(executor: Any, place: Place) -> str:
    """The end of a message about an executor of no known type."""
    if not isinstance(executor, Mapping):
        return f"expected a mapping of settings, not {described(executor)}."
    kind = executor.get("type")
    close = f"; {nearest(kind, list(EXECUTORS))}" if isinstance(kind, str) else "."
    return f"type must be one of {', '.join(EXECUTORS)}, not {described(kind)}{close}"
