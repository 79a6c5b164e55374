"""A look at documents: of a file or folder, of a run's outputs, of what was removed, or behind a step."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from stagger.datatrove.block_outputs import writes
from stagger.datatrove.patches import committed_with
from stagger.datatrove.shape import is_block
from stagger.errors import BadInput, Interrupted, StaggerError, counted
from stagger.launch.check import enter
from stagger.launch.stored_steps import steps_of
from stagger.launch.without_swarms import alone
from stagger.pipeline import COUNTS, Document
from stagger.pipeline.chain import Step, StepCount, chain
from stagger.pipeline.hooks import BoundStep, Reader, Writer
from stagger.pipeline.task_context import Circumstances, TaskContext
from stagger.plan.stage_steps import create_steps
from stagger.rundir.plan_file import read_rank
from stagger.rundir.run_folder import RunFolder, RunRecord, Stage
from stagger.spec.models import RunSpec, StageSpec
from stagger.status.look import done_ranks
from stagger.steps.formats import READERS, reader_name, reader_of
from stagger.steps.removed import WriteRemoved
from stagger.storage.storage import Storage, join
from stagger.task.attempt_records import describe, innermost_line

#: Most documents that are read to find some behind a step, or among what it removes.
READ = 10_000

#: Most files of a folder that are sorted to find the first ones.
LISTED = 1000


def of_path(storage: Storage, path: str, text_key: str | None = None) -> Iterator[Document]:
    """The documents of a file, or of the files below a folder whose names say how to read them, in their order.

    Raises StaggerError when there are none.
    """
    if storage.entry(path) is not None:
        yield from of_files(storage, [path], text_key)
        return
    first = [entry.name for entry in itertools.islice(storage.walk(path), LISTED)]
    names = sorted(name for name in first if reader_name(name) and is_shown(name))
    if not first:
        raise StaggerError(f"{path} does not exist, or is empty: give a run, a pipeline file, or documents.")
    if not names:
        raise StaggerError(
            f"{path} has no files whose names end with {', '.join(READERS)}, also compressed; but it has {first[0]}."
        )
    yield from of_files(storage, [join(path, name) for name in names], text_key)


def is_shown(name: str) -> bool:
    """Whether no part of a name is hidden: what other programs write is no data."""
    return not any(part.startswith((".", "_")) for part in name.split("/"))


def of_files(storage: Storage, paths: Iterable[str], text_key: str | None = None) -> Iterator[Document]:
    """The documents of files, one file after another."""
    for path in paths:
        reader = reader_of(path, text_key)
        task = TaskContext(storage, 0, 1, reader.find_shards(storage), "head")
        reader.bind(task)
        try:
            yield from reader(None, 0, 1)
        except BadInput as error:
            raise StaggerError(f"{error} (--text-key)." if "text_key" in str(error) else f"{error}.") from error
        finally:
            task.close()


def of_outputs(stage: Stage, *, removed: bool = False, text_key: str | None = None) -> Iterator[Document]:
    """The documents that the done ranks of a stage have written, or with `removed` those that its steps removed.

    Raises StaggerError when there are none.
    """
    if stage.spec.blocks is not None:
        raise StaggerError(f"{stage.name} hosts blocks, and has no documents: choose another stage with --stage.")
    done = done_ranks(stage)
    if not done:
        raise StaggerError(f"No rank of {stage.name} is done; look at what a step yields with: --step N")
    found = False
    keys = (step.params.get("text_key") for step in stage.spec.pipeline[1:])
    text_key = text_key or (None if removed else next((key for key in keys if key), None))
    for rank in sorted(done):
        for record in stage.folder.completions({rank}):
            paths = [one["path"] for one in record["outputs"] if ("removed_by" in one) == removed]
            found = found or bool(paths)
            yield from of_files(stage.run.storage, paths, text_key)
    if not found:
        raise StaggerError(nothing_kept(stage) if removed else f"{stage.name} has written no files; look at --step N.")


def nothing_kept(stage: Stage) -> str:
    """Why there are no removed documents to look at."""
    if any(step.removed for step in stage.spec.pipeline):
        return f"The steps of {stage.name} have removed nothing."
    return (
        f"{stage.name} keeps nothing of what its steps remove: write `removed: {{path: ...}}` beside a step, or see"
        " what a step removes with: --step N --removed"
    )


@dataclass(kw_only=True)
class Removed(WriteRemoved):
    """Holds what a step removes, in place of writing it."""

    found: list[Document] = field(default_factory=list)

    def _write_next(self) -> None:
        self.found += self._removed
        self._removed.clear()


@dataclass(frozen=True)
class Behind:
    """The first steps of a stage, called here as rank 0 over its first shards, without those that write.

    number: how many steps, from the first on.
    """

    stage: StageSpec
    steps: Sequence[Any]
    task: TaskContext
    number: int

    def documents(self) -> Iterator[Document]:
        """What leaves the last of the steps."""
        counts, records = self._chain(None)
        yield from self._named(counts, records)

    def removed(self) -> Iterator[Document]:
        """What the last of the steps removes. Raises StaggerError when nobody can know it."""
        if self.number == 1:
            raise StaggerError("--step 1 --removed: the first step reads, and removes nothing; choose a later step.")
        removed = Removed(path=".", step=self.number, name=self.stage.pipeline[self.number - 1].named(self.number))
        counts, documents = self._chain(removed)
        for _ in self._named(counts, documents):
            yield from removed.found
            removed.found.clear()
        removed.end_shard()
        yield from removed.found

    def _named(self, counts: list[StepCount], records: Iterable[Any]) -> Iterator[Any]:
        """The records. Raises StaggerError, naming the step, for what a step raises. Nothing that it writes appears."""
        try:
            with committed_with(self.task, self.steps):
                yield from records
        except (StaggerError, Interrupted, GeneratorExit):
            raise
        except Exception as error:
            where = innermost_line(error)
            raise StaggerError(f"{describe(error, counts)[1]}{f' ({where})' if where else ''}.") from error
        finally:
            self.task.abort()

    def _chain(self, removed: Removed | None) -> tuple[list[StepCount], Iterable[Any]]:
        COUNTS.clear()
        specs = self.stage.pipeline[: self.number]
        counts = [StepCount(step.use) for step in specs]
        counts[-1].removal = removed
        steps = [
            harmless(step, spec.named(place))
            for place, (spec, step) in enumerate(zip(specs, self.steps, strict=False), 1)
        ]
        first = steps[0]
        steps[0] = lambda data, rank, world_size: itertools.islice(first(data, rank, world_size) or (), READ)
        for step in self.steps:
            if isinstance(step, BoundStep):
                step.bind(self.task)
        return counts, chain(steps, counts, 0, self.task.world_size, self.task.circumstances.stop.check)


def behind(storage: Storage, stage: StageSpec, steps: Sequence[Any], task: TaskContext, number: int) -> Behind:
    """The first `number` steps of a stage. Raises StaggerError when there are fewer."""
    if not 1 <= number <= len(stage.pipeline):
        steps_of_it = counted(len(stage.pipeline), "step")
        raise StaggerError(f"--step {number}: {stage.name} has {steps_of_it}; give 1 to {len(stage.pipeline)}.")
    return Behind(stage, steps[:number], task, number)


def behind_step_of_run(run: RunFolder, record: RunRecord, stage: Stage, number: int) -> Behind:
    """The first steps of a stage of a run, over the shards of its rank 0. Imports the run's steps, and runs them."""
    with run.changing(record):
        enter(record.spec)
        steps = alone(record.spec, stage.spec, steps_of(stage))
    shards = []
    if fingerprint := record.fingerprints.get(stage.name):
        shards = read_rank(run.storage, stage.folder.plan(fingerprint), fingerprint, 0).shards
    task = TaskContext(run.storage, 0, stage.spec.tasks, shards, "head", circumstances=Circumstances(looking=True))
    return behind(run.storage, stage.spec, steps, task, number)


def behind_step_of_file(storage: Storage, spec: RunSpec, stage: StageSpec, number: int) -> Behind:
    """The first steps of a stage of a pipeline file, over the first shards of its input. Runs them."""
    steps = alone(spec, stage, create_steps(stage))
    first = steps[0]
    shards = first.find_shards(storage) if isinstance(first, Reader) else []
    return behind(
        storage,
        stage,
        steps,
        TaskContext(storage, 0, stage.tasks, shards, "head", circumstances=Circumstances(looking=True)),
        number,
    )


def harmless(step: Any, name: str) -> Step:
    """A step, or what passes all documents on for one that only writes. Raises StaggerError for one that does both."""
    if isinstance(step, Writer):
        return passed_on
    if is_block(step) and writes(step):
        if getattr(step, "exclusion_writer", None) is not None:
            step.exclusion_writer = None
        if hasattr(step, "output_filename"):
            return passed_on
        if writes(step):
            raise StaggerError(
                f"{name} writes files by itself, which a look at documents must not: choose an earlier --step."
            )
    found: Step = step
    return found


def passed_on(data: Any, rank: int, world_size: int) -> Any:
    """What a writer yields."""
    return data
