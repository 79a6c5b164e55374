"""Makes a stage's plan at launch: lists the input once, assigns it to ranks, and fingerprints the whole."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
from rich.filesize import decimal

from stagger.datatrove.block_outputs import outputs_of, uncommitted_of
from stagger.datatrove.state import repeatable
from stagger.errors import StaggerError, agreeing, counted
from stagger.pipeline import Shard
from stagger.pipeline.hooks import BoundStep, Reader, Writer
from stagger.plan.sharding import assign, task_count
from stagger.plan.upstream import Upstream, recorded_only, writer_of
from stagger.progress import busy
from stagger.rundir.output_names import OutputNames, Places
from stagger.rundir.plan_file import encode_plan
from stagger.rundir.run_folder import StageInput
from stagger.rundir.stage_folder import collection_paused
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
    without the times of local files.

    `outputs` are the files that the stage will write, as far as their names are known. `remote_shards` is the number of
    shards on remote storage.
    """

    stage: StageSpec
    fingerprint: str
    ranks: list[list[Shard]]
    outputs: Collection[str] = ()
    remote_shards: int = 0

    @property
    def shards(self) -> int:
        return sum(map(len, self.ranks))

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size for shards in self.ranks for shard in shards)

    @property
    def input(self) -> StageInput:
        """Bytes, remote shards and remote outputs, from which `requests.py` counts requests; times of local shards."""
        versions = [shard.version for shards in self.ranks for shard in shards if shard.version.startswith(MTIME)]
        times = hashlib.sha256("\n".join(versions).encode()).hexdigest()[:16] if versions else ""
        return StageInput(self.size, self.remote_shards, sum(not is_local(path) for path in self.outputs), times)

    def encode(self) -> bytes:
        """The content of the plan file."""
        with collection_paused():
            return encode_plan(self.stage.name, self.fingerprint, steps_of(self.stage), self.ranks)


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
    with busy(f"{stage.name}: listing the input"), collection_paused():
        found = _find_shards(storage, stage, steps)
        if upstream and isinstance(steps[0], Reader):
            found = _recorded(stage, found, steps[0].path_of, upstream)
        plan = _plan(stage, found)
        check_tasks(plan.stage, steps, plan.stage.tasks)
        if plan.shards:
            warn_of_idle_ranks(plan)
        warn_of_uncommitted(storage, stage, steps)
        readers, writers = [step for step in steps if isinstance(step, Reader)], writers_in(steps)
        first = next(itertools.chain.from_iterable(plan.ranks), None)
        remote = first is not None and any(not is_local(reader.path_of(first)) for reader in readers)
        return replace(plan, outputs=check_outputs(plan, readers, writers), remote_shards=plan.shards if remote else 0)


def _plan(stage: StageSpec, shards: list[Shard]) -> StagePlan:
    check_names(shards)
    stage = sized(stage, shards)
    per_job = stage.ranks_dealt
    content = {"steps": steps_of(stage), "tasks": stage.tasks, "shard_by": stage.shard_by}
    if per_job > 1:
        content["ranks_per_job"] = per_job
    digest = hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS))
    for shard in shards:
        digest.update(b"%s\0%d\0%s\n" % (shard.name.encode(), shard.size, content_version(shard).encode()))
    return StagePlan(stage, digest.hexdigest()[:16], assign(shards, stage.tasks, stage.shard_by, per_job))


def sized(stage: StageSpec, shards: Sequence[Shard]) -> StageSpec:
    """The stage with the number of ranks that its shards need, if the user has not given one.

    Raises StaggerError when there are no shards, or too many.
    """
    if stage.sizing == "given":
        return stage
    size = stage.bytes_per_task
    if not shards:
        raise StaggerError(f"{stage.name}: there are no shards to make ranks of; give tasks as a number.")
    count = task_count([shard.size for shard in shards], size)
    if count > MOST_DECIDED:
        raise StaggerError(
            f"{stage.name}: its {counted(len(shards), 'shard')} would make {counted(count, 'rank')}, more than"
            f" {MOST_DECIDED:,}: set {'a larger ' if size else ''}bytes_per_task, so that a rank reads several shards,"
            " or give tasks as a number. On Slurm, executor.ranks_per_job puts several ranks into a job."
        )
    if size is None:  # One shard each: to balance bytes could leave empty shards together.
        return stage.model_copy(update={"tasks": count, "sizing": "decided", "shard_by": "count"})
    larger = [shard for shard in shards if shard.size > size]
    if larger:
        worst = max(larger, key=lambda shard: shard.size)
        logger.info(
            f"{stage.name}: {len(larger):,} of {counted(len(shards), 'shard', 'is')} larger than bytes_per_task."
            f" Each is a rank of its own, as no shard is divided: the largest, {worst.name}, has {decimal(worst.size)}"
        )
    return stage.model_copy(update={"tasks": count, "sizing": "decided"})


def with_plans(spec: RunSpec, plans: Mapping[str, StagePlan]) -> RunSpec:
    """The run with the numbers of ranks that the plans of its stages have decided."""
    return spec.with_stages(plan.stage for plan in plans.values())


def warn_of_idle_ranks(plan: StagePlan) -> None:
    """Warn about ranks without a shard: each would be a job that sleeps, starts, and has nothing to read."""
    idle = sum(not shards for shards in plan.ranks)
    if idle:
        tasks = plan.stage.tasks
        logger.warning(
            f"{plan.stage.name}: {idle:,} of {counted(tasks, 'rank')} {agreeing(idle, 'has')} no shard, and"
            f" nothing to do: set tasks to {tasks - idle:,}"
        )


def warn_of_uncommitted(storage: Storage, stage: StageSpec, steps: Sequence[Any]) -> None:
    """Warn about what blocks of datatrove write at once, and not when their rank is done."""
    for what in (what for step in steps for what in uncommitted_of(step, storage.expanded_options("s3"))):
        logger.warning(
            f"{stage.name}: {what}: what a rank that fails has written there stays, and no record of the run lists it."
            " Files on mounted file systems, and on S3 with the run's storage_options, appear when their rank is done"
        )


def content_version(shard: Shard) -> str:
    """The shard's version, if it identifies the content. A file that was only touched or copied has another mtime."""
    return "" if shard.version.startswith(MTIME) else shard.version


def check_names(shards: list[Shard]) -> None:
    """Raise StaggerError for a shard whose name is not UTF-8: neither JSON nor S3 can hold it."""
    for shard in shards:
        if not shard.name.isascii():
            try:
                shard.name.encode()
            except UnicodeEncodeError:
                raise StaggerError(f"The name of the input {shard.name!a} is not UTF-8; rename it.") from None


def _with_place(error: StaggerError, stage: StageSpec, index: int) -> StaggerError:
    """The error of a step about its parameters, with the place of the step; any other error as it is."""
    if type(error) is not StaggerError or index >= len(stage.pipeline):
        return error
    return StaggerError(f"{stage.pipeline[index].named(index + 1)}: {error}")


def _find_shards(storage: Storage, stage: StageSpec, steps: Sequence[Any]) -> list[Shard]:
    first = steps[0]
    if not isinstance(first, Reader):
        return []
    try:
        found = first.find_shards(storage)
    except StaggerError as error:
        raise _with_place(error, stage, 0) from error
    except OSError as error:
        raise StaggerError(without_secrets(f"The input of {stage.name} cannot be listed: {error}.")) from error
    found = found[: stage.first_shards]
    empty = [shard.name for shard in found if not shard.size]
    if empty and not first.allow_empty:
        logger.warning(
            f"{stage.name}: {len(empty):,} of {counted(len(found), 'shard')} {agreeing(len(empty), 'is')} empty, such"
            f" as {empty[0]}, and would fail a rank: leave out what is empty with glob, or remove it"
        )
    return found


def _recorded(
    stage: StageSpec, found: list[Shard], path_of: Callable[[Shard], str], upstream: Sequence[Upstream]
) -> list[Shard]:
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


def check_outputs(plan: StagePlan, readers: Sequence[Reader], writers: Sequence[Writer]) -> Collection[str]:
    """The paths of all outputs. Raises StaggerError when an output would collide with another output or an input."""
    of: dict[str, str] = {}
    for writer in writers:
        for path, what in writer.planned_outputs(plan.ranks):
            if path in of:
                raise StaggerError(
                    f"{of[path][0].upper()}{of[path][1:]} and {what} would both be written to {path}: give each"
                    " writer its own folder, or a filename that differs ({rank}, {stem})."
                )
            of[path] = what
    for path, what in of.items():
        folder = path.rpartition("/")[0]
        if folder in of:
            raise StaggerError(
                f"{folder} would be the output of {of[folder]}, and also the folder for the output of {what}: change"
                " the filename, or rename an input."
            )
    places = Places()
    by_value = [names for names in output_names(writers) if names.by_value]
    for reader in readers:
        for shard in itertools.chain.from_iterable(plan.ranks) if by_value else ():
            if writer_of(path := reader.path_of(shard), [Upstream(plan.stage.name, by_value, ())], places):
                raise StaggerError(
                    f"The input {path} has a name of the outputs in {by_value[0].folder}, which would replace it:"
                    " choose another folder or filename for the output."
                )
        for shard in itertools.chain.from_iterable(plan.ranks) if of else ():
            if (path := reader.path_of(shard)) in of:
                raise StaggerError(
                    f"The output of {of[path]} would replace the input {path}: choose another folder or filename for"
                    " the output."
                )
    return of.keys()


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


def output_folders(stage: StageSpec, steps: Sequence[Any]) -> list[str]:
    """The folders that the stage writes to, as far as its `steps`, those of `create_steps`, define `output_folder`.

    Raises StaggerError when two ranks would write the same file or, with `commit: shard`, two shards would; and for a
    folder with a secret in its URL.
    """
    waits = stage.sizing == "undecided" and stage.depends  # There may be several ranks.
    check_tasks(stage, steps, 2 if waits else stage.tasks)
    writers = writers_in(steps)
    if stage.commit == "shard":
        refuse_state(stage, steps)
    if stage.commit == "shard" and not (writers and all(writer.shard_by_shard for writer in writers)):
        raise StaggerError(
            f"{stage.name}: commit: shard needs an output for each shard: put {{stem}} into the filename of every"
            " writer, or leave commit out."
        )
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
