"""What a launch checks of the steps of a stage: where they write, what they need, and how many ranks they allow."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from stagger.datatrove.block_outputs import BlockOutput, outputs_of
from stagger.datatrove.state import repeatable
from stagger.errors import StaggerError
from stagger.pipeline import Shard
from stagger.pipeline.hooks import BoundStep, Reader, Writer
from stagger.pipeline.shard_table import RankShards
from stagger.plan.upstream import Upstream, writer_of
from stagger.rundir.output_names import OutputNames, Places
from stagger.spec.models import StageSpec
from stagger.storage.secrecy import secret_by_form
from stagger.storage.storage import Storage, is_local


def check_outputs(ranks: RankShards, readers: Sequence[Reader], writers: Sequence[Writer]) -> int:
    """The number of remote outputs. Raises StaggerError when an output would collide with another output or an input.

    Holds the hashes of all paths, and only those paths whose hashes meet.
    """

    def outputs() -> Iterator[tuple[str, str]]:
        return itertools.chain.from_iterable(writer.planned_outputs(ranks) for writer in writers)

    def inputs() -> Iterator[str]:
        return (reader.path_of(shard) for reader in readers for shard in ranks.table)

    remote = 0
    known: set[int] = set()
    met: set[int] = set()
    folders: set[str] = set()
    start = tuple(reader.input_folder for reader in readers)
    beside = False  # Whether an output lies where inputs do.
    for path, _ in outputs():
        remote += not is_local(path)
        beside = beside or path.startswith(start)
        folders.add(path.rpartition("/")[0])
        if (one := hash(path)) in known:
            met.add(one)
        known.add(one)
    met.update(known.intersection(map(hash, folders)))
    if beside:
        met.update(known.intersection(map(hash, inputs())))
    if met:
        of = named_once((path, what) for path, what in outputs() if not met.isdisjoint(map(hash, with_folder(path))))
        refuse_collisions(of, (path for path in inputs() if hash(path) in met))
    return remote


def with_folder(path: str) -> tuple[str, str]:
    return path, path.rpartition("/")[0]


def named_once(outputs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Path -> source of outputs. Raises StaggerError when two have the same path."""
    of: dict[str, str] = {}
    for path, what in outputs:
        if path in of:
            raise StaggerError(
                f"{of[path][0].upper()}{of[path][1:]} and {what} would both be written to {path}: give each writer its"
                " own folder, or a filename that differs ({rank}, {stem})."
            )
        of[path] = what
    return of


def refuse_collisions(of: Mapping[str, str], inputs: Iterable[str]) -> None:
    """Raise StaggerError when an output, of which `of` holds the source, is the folder of another, or an input."""
    for path, what in of.items():
        _, folder = with_folder(path)
        if folder in of:
            raise StaggerError(
                f"{folder} would be the output of {of[folder]}, and also the folder for the output of {what}: change"
                " the filename, or rename an input."
            )
    if path := next((path for path in inputs if path in of), ""):
        raise StaggerError(
            f"The output of {of[path]} would replace the input {path}: choose another folder or filename for the"
            " output."
        )


def refuse_inputs_by_value(
    stage: str, shards: Iterable[Shard], readers: Sequence[Reader], writers: Sequence[Writer]
) -> None:
    """Raise StaggerError when an input has a name that a writer could give an output by a document's metadata."""
    by_value = [names for names in output_names(writers) if names.by_value]
    if not by_value:
        return
    places, of = Places(), [Upstream(stage, by_value, ())]
    for path in (reader.path_of(shard) for reader in readers for shard in shards):
        if writer_of(path, of, places):
            raise StaggerError(
                f"The input {path} has a name of the outputs in {by_value[0].folder}, which would replace it:"
                " choose another folder or filename for the output."
            )


def output_names(steps: Sequence[Any]) -> list[OutputNames]:
    """The names of the files that each writer writes, as far as `steps`, those of `create_steps`, define them."""
    return [OutputNames(writer.output_folder, list(writer.output_names)) for writer in writers_in(steps)]


def check_tasks(stage: StageSpec, steps: Sequence[Any], tasks: int) -> None:
    """Raise StaggerError when a step cannot be part of a stage that has `tasks` ranks."""
    for index, step in enumerate(steps):
        for one in bound_steps_in([step]):
            try:
                one.check_tasks(tasks)
            except StaggerError as error:
                raise with_place(error, stage, index) from error


def check_needs(storage: Storage, stage: StageSpec, steps: Sequence[Any], swarms: Mapping[str, Any]) -> None:
    """Raise StaggerError when something is missing that a step needs beside its input.

    `swarms` are those that the stage uses: name -> its key `blocks`.
    """
    for index, step in enumerate(steps):
        for one in bound_steps_in([step]):
            try:
                one.check_uses(swarms)
                one.check_launch(storage)
            except StaggerError as error:
                raise with_place(error, stage, index) from error


def output_folders(stage: StageSpec, steps: Sequence[Any]) -> list[str]:
    """The folders that the stage writes to, as far as its `steps`, those of `create_steps`, define `output_folder`.

    Raises StaggerError when two ranks would write the same file or, with `commit: shard`, two shards would; and for a
    folder with a secret in its URL.
    """
    waits = stage.sizing == "undecided" and stage.depends  # There may be several ranks.
    check_tasks(stage, steps, 2 if waits else stage.tasks)
    writers = writers_in(steps)
    if stage.commit == "shard":
        named = [writer for writer in writers if not isinstance(writer, BlockOutput)]
        if not (writers and all(writer.shard_by_shard for writer in named)):
            raise StaggerError(
                f"{stage.name}: commit: shard needs an output for each shard: put {{stem}} into the filename of every"
                " writer, or leave commit out."
            )
        refuse_state(stage, steps)
    folders = list(dict.fromkeys(writer.output_folder for writer in writers))
    for folder in folders:
        if reason := secret_by_form(folder):
            raise StaggerError(
                f"{stage.name}: the folder of its outputs holds a secret ({reason}), and the records of its ranks name"
                " every output: give the secret in storage_options instead, as ${NAME}."
            )
    return folders


def refuse_state(stage: StageSpec, steps: Sequence[Any]) -> None:
    """Raise StaggerError when a stage with `commit: shard` has a step that may keep something from one shard to the
    next: a rank that resumes could not restore it.
    """
    for number, (spec, step) in enumerate(zip(stage.pipeline, steps, strict=False), 1):
        if repeatable(step, declared=spec.stateless):
            continue
        advice = "leave out commit: shard"
        if not writers_in([step]):
            advice += (
                ", or declare that it keeps nothing from one call to the next: `stateless: true` beside the step in the"
                " pipeline file, or @stagger.stateless above its function or class"
            )
        raise StaggerError(
            f"{spec.named(number)}: with commit: shard a rank that resumes calls its steps for the shards that are"
            f" left, and what this step kept of earlier shards is gone: {advice}."
        )


def bound_steps_in(steps: Sequence[Any]) -> list[BoundStep]:
    """The steps that have hooks, and what datatrove's blocks write, as a `Writer` for each place. A costly step, which
    is still a class, has none of a launch's hooks.
    """
    found: list[BoundStep] = []
    for step in steps:
        if isinstance(step, BoundStep):
            found.append(step)
        found += outputs_of(step)
    return found


def writers_in(steps: Sequence[Any]) -> list[Writer]:
    """The steps that write files, and what datatrove's blocks write."""
    return [step for step in bound_steps_in(steps) if isinstance(step, Writer)]


def with_place(error: StaggerError, stage: StageSpec, index: int) -> StaggerError:
    """The error of a step about its parameters, with the place of the step; any other error as it is."""
    if type(error) is not StaggerError or index >= len(stage.pipeline):
        return error
    return StaggerError(f"{stage.pipeline[index].named(index + 1)}: {error}")
