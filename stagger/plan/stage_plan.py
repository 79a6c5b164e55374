"""Makes a stage's plan at launch: lists the input once, assigns it to ranks, and fingerprints the whole."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from rich.filesize import decimal

from stagger.datatrove.block_outputs import BlockOutput, outputs_of, uncommitted_of
from stagger.datatrove.state import repeatable
from stagger.errors import StaggerError, agreeing, counted
from stagger.pipeline import Shard
from stagger.pipeline.hooks import BoundStep, Reader, Writer
from stagger.pipeline.shard_table import RankShards, ShardTable
from stagger.plan.sharding import assign, task_count
from stagger.plan.upstream import Upstream, recorded_only, writer_of
from stagger.progress import busy
from stagger.rundir.output_names import OutputNames, Places
from stagger.rundir.plan_file import write_plan
from stagger.rundir.run_folder import StageInput
from stagger.spec.models import RunSpec, StageSpec
from stagger.storage import MTIME
from stagger.storage.secrecy import secret_by_form
from stagger.storage.storage import Storage, is_local, without_secrets
from stagger.terminal import logger

#: The most ranks that a stage gets without a number from its user.
MOST_DECIDED = 1_000_000


@dataclass(frozen=True)
class StagePlan:
    """The plan of a stage: `ranks[r]` holds the shards of rank r. `fingerprint` is a hash of steps, tasks and inputs,
    without the times of local files, of which `input` has a hash.
    """

    stage: StageSpec
    fingerprint: str
    ranks: RankShards
    input: StageInput

    @property
    def shards(self) -> int:
        return len(self.ranks.table)

    def write(self, storage: Storage, path: str) -> None:
        """Write the plan file."""
        write_plan(storage, path, self.stage.name, self.fingerprint, steps_of(self.stage), self.ranks)


def steps_of(stage: StageSpec) -> list[dict[str, Any]]:
    """The steps of a stage as its plan holds them."""
    return [
        {
            "use": step.use,
            "params": step.params,
            **({"stateless": True} if step.stateless else {}),
            **({"removed": step.removed.model_dump(exclude_unset=True)} if step.removed else {}),
        }
        for step in stage.pipeline
    ]


def make_plan(storage: Storage, stage: StageSpec, steps: Sequence[Any], upstream: Sequence[Upstream] = ()) -> StagePlan:
    """Plan a stage with one listing of its input. `steps` are those of `create_steps`.

    Of files with the names of outputs of `upstream`, the stages that it depends on, only their outputs are input.
    Raises StaggerError when the input matches nothing, or when outputs would collide.
    """
    with busy(f"{stage.name}: listing the input"):
        shards = _find_shards(storage, stage, steps)
        if upstream and isinstance(steps[0], Reader):
            shards = _recorded(stage, shards, steps[0].path_of, upstream)
        stage = sized(stage, shards)
        ranks = assign(shards, stage.tasks, stage.shard_by, stage.ranks_dealt)
        check_tasks(stage, steps, stage.tasks)
        if shards:
            warn_of_idle_ranks(stage, ranks)
        elif stage.tasks > 1 and stage.blocks is None:
            tell_of_no_shards(stage, steps[0])
        warn_of_uncommitted(storage, stage, steps)
        readers, writers = [step for step in steps if isinstance(step, Reader)], writers_in(steps)
        outputs = check_outputs(ranks, readers, writers)
        refuse_inputs_by_value(stage.name, ranks.table, readers, writers)
        remote = bool(shards) and any(not is_local(reader.path_of(shards[0])) for reader in readers)
        content, times = digests(shards)
        beside = sum(one.start_requests(storage) for one in bound_steps_in(steps))
        planned = StageInput(sum(shards.sizes), len(shards) if remote else 0, outputs, times, beside)
        return StagePlan(stage, fingerprint(stage, content), ranks, planned)


def fingerprint(stage: StageSpec, content: bytes) -> str:
    """The hash of a stage's steps, tasks and shards; `content` is the digest of the latter."""
    settings = {"steps": steps_of(stage), "tasks": stage.tasks, "shard_by": stage.shard_by}
    if stage.ranks_dealt > 1:
        settings["ranks_per_job"] = stage.ranks_dealt
    settings["shards"] = content.hex()
    return hashlib.sha256(orjson.dumps(settings, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def digests(shards: ShardTable) -> tuple[bytes, str]:
    """A digest of the shards, and one of the times of local files; empty if there are none.

    Versions that identify the content are part of the first. A file that was only touched or copied has another time.
    """
    content: list[Any] = [shards.sizes, *shards.names.buffers(), *shards.versions.buffers()]
    times = b""
    if MTIME.encode() in shards.versions.buffers()[0]:
        parts = [part.versions for part in shards.parts()]
        times = digest(b"".join(digest(orjson.dumps([one for one in part if one.startswith(MTIME)])) for part in parts))
        content[3:] = [orjson.dumps(["" if one.startswith(MTIME) else one for one in part]) for part in parts]
    return digest(b"".join(map(digest, content))), times.hex()[:16]


def digest(data: Any) -> bytes:
    return hashlib.sha256(data).digest()


def sized(stage: StageSpec, shards: ShardTable) -> StageSpec:
    """The stage with the number of ranks that its shards need, if the user has not given one.

    Raises StaggerError when there are no shards, or too many.
    """
    if stage.sizing == "given":
        return stage
    size = stage.bytes_per_task
    if not shards:
        raise StaggerError(f"{stage.name}: there are no shards to make ranks of; give tasks as a number.")
    count = task_count(shards.sizes, size)
    if count > MOST_DECIDED:
        raise StaggerError(
            f"{stage.name}: its {counted(len(shards), 'shard')} would make {counted(count, 'rank')}, more than"
            f" {MOST_DECIDED:,}: set {'a larger ' if size else ''}bytes_per_task, so that a rank reads several shards,"
            " or give tasks as a number. On Slurm, executor.ranks_per_job puts several ranks into a job."
        )
    if size is None:  # One shard each: to balance bytes could leave empty shards together.
        return stage.model_copy(update={"tasks": count, "sizing": "decided", "shard_by": "count"})
    if larger := sum(one > size for one in shards.sizes):
        worst = shards[shards.sizes.index(max(shards.sizes))]
        logger.info(
            f"{stage.name}: {larger:,} of {counted(len(shards), 'shard', 'is')} larger than bytes_per_task."
            f" Each is a rank of its own, as no shard is divided: the largest, {worst.name}, has {decimal(worst.size)}"
        )
    return stage.model_copy(update={"tasks": count, "sizing": "decided"})


def with_plans(spec: RunSpec, plans: Mapping[str, StagePlan]) -> RunSpec:
    """The run with the numbers of ranks that the plans of its stages have decided."""
    return spec.with_stages(plan.stage for plan in plans.values())


def warn_of_idle_ranks(stage: StageSpec, ranks: RankShards) -> None:
    """Warn about ranks without a shard: each would be a job that sleeps, starts, and has nothing to read."""
    if idle := ranks.idle:
        logger.warning(
            f"{stage.name}: {idle:,} of {counted(stage.tasks, 'rank')} {agreeing(idle, 'has')} no shard, and"
            f" nothing to do: set tasks to {stage.tasks - idle:,}"
        )


def tell_of_no_shards(stage: StageSpec, first: Any) -> None:
    """Say that the first step finds its own input: a warning, if it lists files that a reader would list once."""
    name = stage.pipeline[0].use
    text = f"{stage.name}: {name} brings no shards: each of {counted(stage.tasks, 'rank')} gets what it finds itself"
    if hasattr(first, "data_folder"):  # A reader of datatrove.
        logger.warning(
            f"{text}. Every rank lists the input, no launch checks it, and ranks without a file still start; stagger's"
            " own readers list it once"
        )
    else:
        logger.info(text)


def warn_of_uncommitted(storage: Storage, stage: StageSpec, steps: Sequence[Any]) -> None:
    """Warn about what blocks of datatrove write at once, and not when their rank is done."""
    for what in (what for step in steps for what in uncommitted_of(step, storage.expanded_options("s3"))):
        logger.warning(
            f"{stage.name}: {what}: what a rank that fails has written there stays, and no record of the run lists it."
            " Files on mounted file systems, and on S3 with the run's storage_options, appear when their rank is done"
        )


def _with_place(error: StaggerError, stage: StageSpec, index: int) -> StaggerError:
    """The error of a step about its parameters, with the place of the step; any other error as it is."""
    if type(error) is not StaggerError or index >= len(stage.pipeline):
        return error
    return StaggerError(f"{stage.pipeline[index].named(index + 1)}: {error}")


def _find_shards(storage: Storage, stage: StageSpec, steps: Sequence[Any]) -> ShardTable:
    """The shards that the reader finds. It may be a user's, and return any sequence of them."""
    first = steps[0]
    if not isinstance(first, Reader):
        return ShardTable()
    try:
        found = first.find_shards(storage)
    except StaggerError as error:
        raise _with_place(error, stage, 0) from error
    except OSError as error:
        raise StaggerError(without_secrets(f"The input of {stage.name} cannot be listed: {error}.")) from error
    if stage.first_shards is not None:
        found = found[: stage.first_shards]
    shards = found if isinstance(found, ShardTable) else ShardTable(found)
    empty = shards.sizes.count(0)
    if empty and not first.allow_empty:
        logger.warning(
            f"{stage.name}: {empty:,} of {counted(len(shards), 'shard')} {agreeing(empty, 'is')} empty, such as"
            f" {shards[shards.sizes.index(0)].name}, and would fail a rank: leave out what is empty with glob, or"
            " remove it"
        )
    return shards


def _recorded(
    stage: StageSpec, found: ShardTable, path_of: Callable[[Shard], str], upstream: Sequence[Upstream]
) -> ShardTable:
    """The shards without those that only look like outputs of `upstream`. Raises StaggerError when none is left."""
    kept, foreign = recorded_only(found, path_of, upstream)
    if not foreign:
        return kept
    (path, writer), several = foreign[0], len(foreign) > 1
    what = (
        f"{len(foreign):,} of {counted(len(found), 'file')} of its input, such as {path},"
        f" {'have' if several else 'has'} the names of outputs of {writer}, but no record of this run lists"
        f" {'them' if several else 'it'}"
    )
    if not kept:
        raise StaggerError(f"{stage.name}: {what}, and there is no other input: {writer} has written nothing.")
    logger.warning(f"{stage.name}: {what}: left out, as files of another run or of an earlier one")
    return kept


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
                raise _with_place(error, stage, index) from error


def check_needs(
    storage: Storage, stage: StageSpec, steps: Sequence[Any], swarms: Mapping[str, Any], *, again: bool = False
) -> None:
    """Raise StaggerError when something is missing that a step needs beside its input.

    `swarms` are those that the stage uses: name -> its key `blocks`. `again`: a launch has checked this before.
    """
    for index, step in enumerate(steps):
        for one in bound_steps_in([step]):
            try:
                one.check_uses(swarms)
                one.check_retry(storage) if again else one.check_launch(storage)
            except StaggerError as error:
                raise _with_place(error, stage, index) from error


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
