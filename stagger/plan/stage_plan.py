"""Makes a stage's plan at launch: lists the input once, assigns it to ranks, and fingerprints the whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from rich.filesize import decimal

from stagger.datatrove.block_outputs import uncommitted_of
from stagger.errors import StaggerError, agreeing, counted
from stagger.pipeline import Shard
from stagger.pipeline.hooks import Reader
from stagger.pipeline.shard_table import RankShards, ShardTable
from stagger.plan.sharding import assign, task_count
from stagger.plan.step_checks import (
    bound_steps_in,
    check_outputs,
    check_tasks,
    refuse_inputs_by_value,
    with_place,
    writers_in,
)
from stagger.plan.upstream import Upstream, recorded_only
from stagger.progress import busy
from stagger.rundir.plan_file import write_plan
from stagger.rundir.run_folder import StageInput
from stagger.spec.models import RunSpec, StageSpec
from stagger.storage import MTIME
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
    found = [*map(digest, (shards.sizes, *shards.names.buffers()))]
    times = []
    if MTIME.encode() in shards.versions.buffers()[0]:
        for part in shards.parts():
            times.append(digest(orjson.dumps([one for one in part.versions if one.startswith(MTIME)])))
            found.append(digest(orjson.dumps(["" if one.startswith(MTIME) else one for one in part.versions])))
    else:
        found += map(digest, shards.versions.buffers())
    return digest(b"".join(found)), digest(b"".join(times)).hex()[:16] if times else ""


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


def _find_shards(storage: Storage, stage: StageSpec, steps: Sequence[Any]) -> ShardTable:
    """The shards that the reader finds. It may be a user's, and return any sequence of them."""
    first = steps[0]
    if not isinstance(first, Reader):
        return ShardTable()
    try:
        found = first.find_shards(storage)
    except StaggerError as error:
        raise with_place(error, stage, 0) from error
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
