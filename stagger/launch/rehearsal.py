"""Rehearses a run: all its stages over the first shards of the input, in a folder of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stagger.datatrove.block_outputs import blocks_in
from stagger.datatrove.shape import is_block
from stagger.errors import StaggerError
from stagger.launch.launch import NO_WISHES, Wishes, launch
from stagger.launch.launched import Launched
from stagger.launch.plans import NO_OBJECTS, Pipeline, stages_ahead
from stagger.launch.redirect import Redirect, located, told_outputs
from stagger.launch.without_swarms import without_swarms
from stagger.pipeline.chain import Step
from stagger.pipeline.hooks import Reader
from stagger.pipeline.names import add_import_path
from stagger.plan.fingerprint import describe_object
from stagger.rundir.stage_folder import encode
from stagger.spec.executors import LocalSpec
from stagger.spec.models import RunSpec, StageSpec, StepSpec
from stagger.storage.storage import is_local, join

#: The file that marks a folder as made by a rehearsal, which the next one removes.
MARK = "rehearsal.json"


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal launches: the changed run, and its steps if they are Python objects. All lies in `folder`."""

    folder: str
    spec: RunSpec
    objects: Mapping[str, Sequence[Step]]


def rehearse(
    spec: RunSpec, shards: int, objects: Mapping[str, Sequence[Step]] = NO_OBJECTS, wishes: Wishes = NO_WISHES
) -> tuple[Rehearsal, Launched]:
    """Run all stages on this machine, over the first `shards` shards of each input. Replaces an earlier rehearsal.

    Nothing of the real run is read or written: outputs, and what stages read of them, lie below the rehearsal's folder.
    Raises StaggerError when that cannot be promised.
    """
    folder = folder_of(spec)
    clear(folder)
    rehearsal = prepared(spec, shards, objects, folder)
    return rehearsal, launch(rehearsal.spec, replace(wishes, wait=True), rehearsal.objects)


def folder_of(spec: RunSpec) -> str:
    """The folder of a run's rehearsal: beside its run directory, or in the current folder if that is remote.

    Its name begins with `_`, as no reader takes such a folder for input, and no launch for outputs.
    """
    if is_local(spec.run_dir):
        parent, _, name = spec.run_dir.rstrip("/").rpartition("/")
        return f"{parent}/_{name}-rehearsal"
    return join(spec.cwd, f"_{spec.name}-rehearsal")


def clear(folder: str) -> None:
    """Remove an earlier rehearsal. Raises StaggerError when it still runs, or when the folder is something else."""
    if not os.path.lexists(folder) or (os.path.isdir(folder) and not os.listdir(folder)):
        return
    if not os.path.isfile(join(folder, MARK)):
        raise StaggerError(f"{folder} is no rehearsal, but a rehearsal would lie there: move it away.")
    if os.path.exists(join(folder, "run", "lock")):
        raise StaggerError(
            f"The rehearsal in {folder} is running, or was killed: wait for it, or remove it with: rm -r {folder}"
        )
    shutil.rmtree(folder)


def prepared(spec: RunSpec, shards: int, objects: Mapping[str, Sequence[Step]], folder: str) -> Rehearsal:
    """The run as it is rehearsed, without servers of blocks. Raises StaggerError when a stage cannot be."""
    add_import_path(spec.import_path)
    spec, objects = without_swarms(spec, objects)
    spec = spec.with_stages(stage.model_copy(update={"publish": None}) for stage in spec.stages)
    made = Pipeline.create(spec, objects)
    for stage in spec.stages:
        refuse_unknown(stage, made.steps[stage.name])
    folders = {located(path) for paths in made.outputs.values() for path in paths}
    folders.update(path for stage in spec.stages for step in stage.pipeline for path in told_outputs(step.params))
    first = [made.steps[stage.name][0] for stage in spec.stages if not stage.depends]
    inputs = {located(path) for path in map(input_of, first) if path}
    redirect = Redirect(join(folder, "outputs"), tuple(sorted(folders)), tuple(sorted(inputs - folders)))
    os.makedirs(folder, exist_ok=True)
    with open(join(folder, MARK), "wb") as mark:
        mark.write(encode({"run_dir": spec.run_dir, "shards": shards}))
    changed: dict[str, list[Step]] = {}
    stages = []
    for stage in spec.stages:
        here = replace(redirect, above=bool(stages_ahead(spec, stage.name)))
        if stage.name in objects:
            changed[stage.name] = [here.step(step) for step in objects[stage.name]]
        moved = stage.model_copy(update={"pipeline": tuple(_moved(step, here) for step in stage.pipeline)})
        if mine := changed.get(stage.name):
            moved = moved.model_copy(update={"pipeline": _described(moved, mine)})
        reader = made.steps[stage.name][0]
        moved = small(moved, reader, here, shards)
        if moved.first_shards and is_disk_reader(reader):
            paths = with_first_paths(reader, shards, join(folder, f"{stage.name}.paths"))
            if mine:
                mine[0].paths_file = paths  # type: ignore[attr-defined]  # A copy, or an object of this process alone.
            head, *rest = moved.pipeline
            head = head.model_copy(update={"params": {**head.params, "paths_file": paths}})
            moved = moved.model_copy(update={"pipeline": (head, *rest)})
        stages.append(moved)
    return Rehearsal(folder, spec.model_copy(update={"run_dir": join(folder, "run"), "stages": tuple(stages)}), changed)


def refuse_unknown(stage: StageSpec, steps: Sequence[Any]) -> None:
    """Raise StaggerError for a stage that would write to where a rehearsal must not."""
    for number, step in enumerate(steps, 1):
        if any(hasattr(block, "upload_files") for block in blocks_in(step)):
            raise StaggerError(
                f"{stage.name}: step {number} would upload to the Hugging Face Hub, and a rehearsal cannot send that"
                " elsewhere: rehearse a file without this step."
            )


def input_of(first: Any) -> str:
    """The folder that the first step of a stage reads; empty if it is unknown."""
    if isinstance(first, Reader):
        return str(getattr(first, "path", ""))
    if is_disk_reader(first):
        return str(first.data_folder.resolve_paths(""))
    return ""


def is_disk_reader(step: Any) -> bool:
    """Whether a step is a reader of datatrove that lists a folder."""
    return is_block(step) and hasattr(step, "read_file") and hasattr(getattr(step, "data_folder", None), "get_shard")


def with_first_paths(reader: Any, shards: int, file: str) -> str:
    """Write the paths of the first files that a reader of datatrove reads, as it takes them itself. Returns `file`."""
    if reader.paths_file:
        with open(reader.paths_file) as given:
            paths = [line.strip() for line in given if line.strip()]
    else:
        folder = reader.data_folder
        paths = folder.list_files(recursive=reader.recursive, glob_pattern=reader.glob_pattern)
    with open(file, "w") as lines:
        lines.writelines(f"{path}\n" for path in paths[:shards])
    return file


def _moved(step: StepSpec, redirect: Redirect) -> StepSpec:
    removed = step.removed
    if removed is not None:
        path = str(redirect.params(removed.path, "path"))
        removed = removed.model_copy(update={"path": path})
    return step.model_copy(update={"params": redirect.params(step.params), "removed": removed})


def _described(stage: StageSpec, steps: Sequence[Step]) -> tuple[StepSpec, ...]:
    """The steps of a stage, with the settings of these objects."""
    pairs = zip(stage.pipeline, steps, strict=True)
    return tuple(spec.model_copy(update={"params": describe_object(step)["params"]}) for spec, step in pairs)


def small(stage: StageSpec, first: Any, redirect: Redirect, shards: int) -> StageSpec:
    """A stage with as many ranks as the first shards need, and on this machine.

    Stages with readers that have the same number of ranks still have the same. Without a reader, the number of ranks is
    part of what the stage does, and stays; but MinHash needs only one rank for each of its buckets.
    """
    update: dict[str, Any] = {
        "executor": stage.executor if isinstance(stage.executor, LocalSpec) else LocalSpec(),
        "randomize_start_duration": 0,
        "backend_limit": None,
        "metadata_limit": None,
        "retries": None,
        "publish": None,
    }
    buckets = getattr(getattr(first, "config", None), "num_buckets", 0)
    if isinstance(first, Reader) or is_disk_reader(first):
        update["tasks"] = min(stage.tasks, shards)
        if redirect.path(input_of(first), "path") is None:
            update["first_shards"] = shards
    elif buckets and stage.depends and not stage.tasks % buckets:
        update["tasks"] = buckets
    elif not stage.depends:
        raise StaggerError(
            f"{stage.pipeline[0].named(1)} makes its own records, so {stage.name} has no first shards to rehearse:"
            " launch it with --limit and another run_dir."
        )
    return stage.model_copy(update=update)
