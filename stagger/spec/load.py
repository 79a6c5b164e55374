"""Turns a pipeline file and the command line's changes into one checked `RunSpec`."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path as FilePath
from typing import Any, cast

from pydantic import BaseModel

from stagger.errors import StaggerError, plural
from stagger.pipeline.names import add_import_path
from stagger.pipeline.objects import written_objects
from stagger.shipped import shipped
from stagger.spec.block_stage import of_blocks, without_packing
from stagger.spec.changes import Changes
from stagger.spec.executors import EXECUTORS
from stagger.spec.expected import described, expected
from stagger.spec.messages import validated
from stagger.spec.models import RUN_KEYS, TAKEN, PipelineFile, RunSpec, StageSpec, StorageSpec
from stagger.spec.nearest import close_to, nearest
from stagger.spec.origins import origins_of
from stagger.spec.place import Place, absolute_at
from stagger.spec.profiles import chosen
from stagger.spec.references import expanded
from stagger.spec.secret_check import check_storage_options
from stagger.spec.step_checks import check_step
from stagger.spec.variables import with_variables
from stagger.spec.yaml_file import Path, read_file
from stagger.storage.storage import UNREACHABLE_S, Storage, expand_variables

NO_CHANGES = Changes()

#: The key of a run that says how its storage is reached.
KEYS = ("storage_options",)


def load_file(
    file: str, changes: Changes = NO_CHANGES, announce: Callable[[str], None] = lambda sentence: None
) -> RunSpec:
    """Load a pipeline file. Raises StaggerError with one sentence per mistake.

    `announce` gets a sentence about the modules that the file names, before their import runs their code.
    """
    path = find_file(file)
    raw, lines = read_file(str(path))
    if "fingerprints" in raw and "spec" in raw:
        raise StaggerError(
            f"{path} is the record of a run, not a pipeline file; continue the run with: stagger retry {path.parent}"
        )
    options = changes.assigned(raw)
    for key, value in (("tasks", changes.tasks), ("run_dir", changes.run_dir), ("profile", changes.profile)):
        if value is not None:
            raw[key] = value
    if changes.tasks is not None:
        stages = raw.get("stages")
        raw.pop("bytes_per_task", None)
        for stage in stages if isinstance(stages, list) else []:
            if isinstance(stage, dict):
                stage.pop("tasks", None)
                stage.pop("bytes_per_task", None)
    place = Place(str(path), lines, options=options, shared=lines.shared)
    return resolve_run(with_variables(raw, place), place, changes, str(path.resolve().parent), announce)


def reached(file: str) -> tuple[str, dict[str, Any]]:
    """The run directory of a pipeline file, and its storage options as they are written. Imports no step.

    Raises StaggerError when the file cannot be read, or does not say it.
    """
    file = str(find_file(file))
    raw, lines = read_file(file)
    place = Place(file, lines, shared=lines.shared)
    raw = with_variables(raw, place, warn=False)
    written = {key: expanded(raw[key], (key,), place) for key in ("run_dir", "storage_options") if key in raw}
    if not isinstance(written.get("run_dir"), str):
        raise StaggerError(f"{place.of(('run_dir',))}: there is no run directory; give that of the run itself.")
    check_storage_options(written.get("storage_options"), place)
    profile = chosen(raw.get("profile"), place.of(("profile",)))
    whole = validated(StorageSpec, profile.below({k: v for k, v in written.items() if k != "run_dir"}, KEYS), place, ())
    return absolute_at(written["run_dir"], place), whole.storage_options


def imported_modules(spec: RunSpec) -> list[str]:
    """The modules, other than stagger's own, that hold a run's steps, the objects in their parameters, and hosts."""
    steps = [step for stage in spec.stages for step in stage.pipeline]
    uses = [name for step in steps for name in (step.use, *(name for _, (name, _) in written_objects(step.params)))]
    hosts = [stage.blocks.host for stage in spec.stages if stage.blocks is not None]
    named = (use.partition(":")[0] for use in (*uses, *hosts) if ":" in use)
    return list(dict.fromkeys(module for module in named if module.partition(".")[0] != "stagger"))


def find_file(file: str) -> FilePath:
    """Find a pipeline file by its path, or else a shipped one by its name or `pipelines/NAME.yaml`. Raises StaggerError
    when there is neither.
    """
    path = FilePath(file)
    ready = shipped("pipelines") / (path.name if path.suffix else f"{path.name}.yaml")
    if path.is_file():
        return path
    if path.parent in (FilePath("."), FilePath("pipelines")) and ready.is_file():
        return ready
    raise StaggerError(f"{file} is no pipeline file: {_why_none(path)}.") if path.is_dir() else _no_file(path)


def _why_none(folder: FilePath) -> str:
    """Why a folder is no pipeline file, and what to type instead."""
    if (folder / "run.json").is_file():
        return f"it is a run directory; continue its run with: stagger retry {folder}"
    inside = sorted(str(found) for found in folder.glob("*.y*ml"))
    return f"it is a folder; name a file{f', such as {inside[0]}' if inside else ''}"


def _no_file(path: FilePath) -> StaggerError:
    ready = sorted(found.stem for found in shipped("pipelines").glob("*.yaml"))
    files = sorted(path.parent.glob("*")) if path.parent.is_dir() else []
    beside = {found.stem: str(found) for found in files if found.suffix in (".yaml", ".yml", ".json")}
    if (close := close_to(path.stem, [*beside, *ready])) is not None:
        return StaggerError(f"There is no file {path}; did you mean {beside.get(close, close)!r}?")
    return StaggerError(
        f"There is no file {path}; give the path of a pipeline file, or the name of a ready pipeline:"
        f" {', '.join(ready)}."
    )


def resolve_run(
    raw: dict[str, Any], place: Place, changes: Changes, folder: str, announce: Callable[[str], None]
) -> RunSpec:
    """Check a file's content, in which `changes` are made, and make it a `RunSpec`. Steps can be imported from
    `folder`; `announce` gets a sentence about their modules before the import.
    """
    check_storage_options(raw.get("storage_options"), place)
    raw = {key: expanded(value, (key,), place) for key, value in raw.items()}
    unknown_or_wrong(PipelineFile, raw, place)
    if not {"pipeline", "stages", "blocks"} & raw.keys():
        raise StaggerError(f"{place.file}: there is no pipeline; list its steps under `pipeline:`.")
    if "publish" in raw and "stages" in raw:
        raise StaggerError(f"{place.of(('publish',))}: write publish in the stage whose outputs are to be published.")
    profile = chosen(raw.get("profile"), "--profile" if changes.profile else place.of(("profile",)))
    written = {key: value for key, value in raw.items() if key in RUN_KEYS and key not in ("stages", "profile")}
    whole = profile.below(written, StorageSpec.model_fields)
    origins = origins_of(whole, place, profile.elsewhere(written), profile.name, place.options)
    stages = []
    places: dict[str, tuple[Place, Path]] = {}
    for index, (written, path) in enumerate(_stages(raw, place)):
        stage = {**written, "executor": _executor(written.get("executor"), changes.executor, profile.kind)}
        elsewhere = profile.elsewhere(stage if changes.executor else written)
        stage = profile.below_stage(stage)
        merged = Place(
            place.file,
            {**{("stages", index, *p): n for p, n in place.lines.items() if p[:1] != ("name",)}, **place.lines},
            {(*path, *p): line for p, line in elsewhere.items()},
            options={**{(*path, *p): option for p, option in place.options.items()}, **place.options},
        )
        prefix = f"stages.{written.get('name')}." if path else ""
        origins |= origins_of(stage, merged, merged.elsewhere, profile.name, place.options, path, prefix)
        if "blocks" in stage:
            stage["executor"] = without_packing(stage["executor"], written.get("executor"))
            own = raw["stages"][index] if "stages" in raw else raw
            options = whole.get("storage_options", {})
            stage = of_blocks(stage, own, merged, path, Storage(options, unreachable_s=UNREACHABLE_S))
        checked: StageSpec = validated(StageSpec, stage, merged, path)
        check_name(checked.name, places, merged.of((*path, "name")), alone=not path)
        places[checked.name] = (merged, path)
        stages.append(checked)
    spec: RunSpec = validated(
        RunSpec,
        {
            **whole,
            "profile": profile.name,
            "origins": origins,
            "run_dir": absolute_at(str(whole["run_dir"]), place),
            "stages": _ordered(stages, place),
            "cwd": os.getcwd(),
            "import_path": (folder,),
        },
        place,
        (),
    )
    add_import_path(spec.import_path)
    if modules := imported_modules(spec):
        one = len(modules) == 1
        named = f"{place.file} names the {plural(len(modules), 'module')} {', '.join(modules)}"
        announce(f"{named}: importing {'it runs its' if one else 'them runs their'} code here")
    for stage_spec in spec.stages:
        of_stage, path = places[stage_spec.name]
        for index, step in enumerate(stage_spec.pipeline):
            at = (*path, "pipeline", index)
            check_step(step.use, cast("dict[str, Any]", expand_variables(step.params, (step.use,))), of_stage, at)
            step.at(of_stage.of(at if stage_spec.blocks is None else (*path, "blocks")))
    return spec


def check_name(name: str, others: Collection[str], where: str, alone: bool) -> None:
    """Raise StaggerError when a stage cannot have this name, beside the `others`."""
    if name in others:
        raise StaggerError(f"{where}: two stages are called {name!r}; give each a name of its own.")
    if not alone and (name in TAKEN or name.startswith(TAKEN[-1])):
        raise StaggerError(
            f"{where}: a stage cannot be called {name!r}, as the run directory has a file of this name; rename it."
        )


def unknown_or_wrong(model: type[BaseModel], raw: dict[str, Any], place: Place) -> None:
    """Check the top level of a file, except for the keys that are checked stage by stage."""
    without_stage_keys = {
        key: value for key, value in raw.items() if key not in ("stages", "executor", "pipeline", "blocks")
    }
    validated(model, without_stage_keys, place, ())


def without_replaced_size(defaults: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The file's defaults for a stage, without a number of ranks, or bytes of each, if its own keys give either."""
    sizes = ("tasks", "bytes_per_task")
    return {key: value for key, value in defaults.items() if key not in sizes or own.keys().isdisjoint(sizes)}


def _stages(raw: dict[str, Any], place: Place) -> list[tuple[dict[str, Any], Path]]:
    """Each stage's keys, with the file's keys as defaults, and its path in the file."""
    defaults = {key: value for key, value in raw.items() if key not in RUN_KEYS}
    if "stages" not in raw:
        return [({"name": raw.get("name"), **defaults}, ())]
    check_stages(raw["stages"], place)
    stages: list[tuple[dict[str, Any], Path]] = []
    for index, own in enumerate(raw["stages"]):
        for key in ("sizing", "first_shards"):
            if key in own:
                raise StaggerError(f"{place.of(('stages', index, key))}: unknown key; leave it out.")
        inherited = without_replaced_size(defaults, own)
        stage = {**inherited, **own}
        above, below = defaults.get("executor"), own.get("executor")
        if (
            isinstance(above, dict)
            and isinstance(below, dict)
            and below.get("type", above.get("type")) == above.get("type")
        ):
            stage["executor"] = {**above, **below}
        stages.append((stage, ("stages", index)))
    return stages


def check_stages(stages: Any, place: Place) -> None:
    """Raise StaggerError when `stages` is not a list of mappings."""
    field = PipelineFile.model_fields["stages"]
    if not isinstance(stages, list) or not stages:
        end = expected(field.annotation, field.metadata).mistake("stages", stages or None)
        raise StaggerError(f"{place.of(('stages',))}: {end}.")
    for index, stage in enumerate(stages):
        if not isinstance(stage, dict):
            raise StaggerError(
                f"{place.of(('stages', index))}: expected a mapping with the stage's name and pipeline, not"
                f" {described(stage) if stage is not None else 'an empty item'}."
            )


def _executor(written: Any, wanted: str | None, default: str | None) -> Any:
    """The file's settings of the executor, or the defaults of the type `wanted` if the file names another type.

    `default` is the type that the profile is for.
    """
    default = default or "local"
    if wanted is not None and wanted not in EXECUTORS:
        raise StaggerError(f"There is no executor {wanted!r}; {nearest(wanted, list(EXECUTORS))}")
    if written is None:
        return {"type": wanted or default}
    if not isinstance(written, dict):
        return written
    if wanted is None or written.get("type", default) == wanted:
        return {"type": default, **written}
    return {"type": wanted}


def _ordered(stages: list[StageSpec], place: Place) -> list[StageSpec]:
    """Sort stages so that each comes after those that it depends on or uses. Raises StaggerError when that is
    impossible.
    """
    names = [stage.name for stage in stages]
    for index, stage in enumerate(stages):
        for key, name in (*(("depends", one) for one in stage.depends), *(("uses", one) for one in stage.uses)):
            where = place.of(("stages", index, key))
            if name == stage.name:
                does = "waits for" if key == "depends" else "uses"
                raise StaggerError(f"{where}: the stage {name!r} {does} itself; name other stages.")
            if name not in names:
                raise StaggerError(f"{where}: there is no stage {name!r}; {nearest(name, names)}")
    ordered: list[StageSpec] = []
    pending = list(stages)
    while pending:
        done = {stage.name for stage in ordered}
        ready = [stage for stage in pending if done.issuperset((*stage.depends, *stage.uses))]
        if not ready:
            where = place.of(("stages", stages.index(pending[0]), "depends"))
            waiting = ", ".join(stage.name for stage in pending)
            raise StaggerError(f"{where}: these stages wait for each other: {waiting}; let one of them depend on none.")
        ordered.append(ready[0])
        pending.remove(ready[0])
    return ordered
