"""Ends a stage whose jobs have ended: merges its statistics, retries failed ranks, launches the stages that waited.

The end job does this, or a waiting process in its place.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from stagger.errors import StaggerError, counted
from stagger.executor.limits import check_limits
from stagger.launch.check import enter
from stagger.launch.foreign import warn_of_foreign
from stagger.launch.hand_over import start
from stagger.launch.leaving import refuse_leaving
from stagger.launch.leftovers import remove_leftovers
from stagger.launch.publish import NotPublished, publish
from stagger.launch.retry_policy import Decision, decide
from stagger.launch.stages import run_stages
from stagger.launch.swarms import beside, end_swarms, is_used, replacement_policy, why_over
from stagger.ranks import format_ranks, named_ranks
from stagger.rundir.end_record import EndRecord, read_end, write_end
from stagger.rundir.launch_records import Group
from stagger.rundir.run_folder import RunFolder, RunRecord, Stage
from stagger.rundir.stage_folder import StageFolder
from stagger.slurm import cluster
from stagger.spec.executors import RetrySpec, SlurmSpec
from stagger.spec.models import RunSpec, StageSpec
from stagger.status.efficiency import sentences
from stagger.status.look import Look, is_told_to_end
from stagger.status.report import write_stats
from stagger.storage.storage import without_secrets
from stagger.terminal import logger


@dataclass
class Ending:
    """What the end of a stage did.

    said: what it did, one sentence each.
    left: what it had to launch, but may not.
    failed: whether ranks are neither done nor retried, or output files have different columns.
    again: whether ranks were launched again, or are left to be.
    """

    said: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    failed: bool = False
    again: bool = False


@contextlib.contextmanager
def recording_end(stage: Stage, launch: int, by: str) -> Iterator[EndNote]:
    """Record in end.json how the block ends a launch: what it notes, or its error."""
    note = EndNote(stage.folder, launch, by)
    try:
        yield note
    except Exception as error:
        text = str(error) if isinstance(error, (StaggerError, OSError)) else f"{type(error).__name__}: {error}"
        note.write(ended=time.time(), error="; ".join(text.split("\n")))
        raise


class EndNote:
    """The end.json of a launch, while `by` ends it: a new one, or that of an end job which was requeued."""

    def __init__(self, folder: StageFolder, launch: int, by: str) -> None:
        self.folder = folder
        self.launch = launch
        before = None
        with contextlib.suppress(StaggerError):  # A damaged record is replaced.
            before = read_end(folder, launch)
        self.record = EndRecord(by, before.started if before else time.time())
        self.write()

    def __call__(self, ending: Ending) -> None:
        """Record what the end of the stage did."""
        self.write(ended=time.time(), said=tuple(ending.said), left=tuple(ending.left))

    def write(self, **changes: Any) -> None:
        """Change fields of the record, without secrets, and write it."""
        record = replace(self.record, **changes)
        clean = replace(record, said=tuple(map(without_secrets, record.said)), error=without_secrets(record.error))
        write_end(self.folder, self.launch, clean)


def may_launch(spec: RunSpec, name: str) -> bool:
    """Whether the end of stage `name` can launch anything, or end a swarm: retries of its ranks, replacements of lost
    servers, or stages that depend on it.
    """
    stage = spec.stage(name)
    launches = stage.retries is not None or is_used(spec, name) or any(name in one.depends for one in spec.stages)
    return launches or bool(stage.uses)


def nodes_submit(stage: StageSpec) -> bool:
    """Whether the end job of a stage may submit jobs."""
    return not isinstance(stage.executor, SlurmSpec) or stage.executor.nodes_submit


def end_stage(run: RunFolder, record: RunRecord, looks: dict[str, Look], name: str, *, submits: bool = True) -> Ending:
    """End stage `name`, under the run's lock if it may launch anything. Without `submits`, launch nothing.

    `looks` are those of all stages. Raises StaggerError when something cannot be launched; StillLeaving, before it has
    done anything, when that has to wait for servers.
    """
    if submits:
        again = [] if looks[name].is_done else [name]  # It may have ended its swarm, and be retried now.
        refuse_leaving(record.spec, looks, [*again, *dependents(record.spec, name)])
    ending = _end_stage(run, record, looks, name, submits=submits)
    swarms = record.spec.stage(name).uses
    if ending.again and submits and (gone := [one for one in swarms if is_told_to_end(looks[one].stage)]):
        run_stages(run, record, looks, only=gone)  # Somebody took this stage for ended.
    if not ending.again and not ending.left:
        said = end_swarms(record.spec, looks, swarms, ended=[name])
        for line in said:
            logger.info(line)
        ending.said += said
    return ending


def _end_stage(run: RunFolder, record: RunRecord, looks: dict[str, Look], name: str, *, submits: bool) -> Ending:
    look, stage = looks[name], run.stage(record, name)
    if not look.activity.ranks:  # Removed at once: a user's retry may start ranks while the statistics are merged.
        remove_leftovers(stage)
    stats = write_stats(look)
    for line in sentences(stats.get("efficiency", {})):
        logger.info(f"{name}: {line}")
    if stats["missing_ranks"]:
        retries = stage.spec.retries
        if is_used(record.spec, name):
            retries = None if why_over(record.spec, name, looks) else replacement_policy(stage.spec)
        return _end_unfinished(look, retries, stats["missing_ranks"], submits)
    done = f"all {counted(stage.spec.tasks, 'rank', 'is')} done" if stage.spec.tasks > 1 else "its rank is done"
    logger.success(f"{name}: {done}")
    for line in stats["schema_differences"]:
        logger.error(f"{name}: output files have different columns: {line}")
    ending = Ending([done], failed=bool(stats["schema_differences"]))
    try:
        ending.said += publish(look)
    except NotPublished as error:
        logger.error(str(error))
        ending.said.append(str(error))
        ending.failed = True
    ending.said += warn_of_foreign(record, looks, [name])
    if submits:
        ending.said += launch_dependents(run, record, looks, name)
    else:
        ending.left = [f"the stage {one}" for one in dependents(record.spec, name) if not looks[one].has_started]
    return ending


def _end_unfinished(look: Look, retries: RetrySpec | None, missing: str, submits: bool) -> Ending:
    """End a stage with ranks that are not done: retry those that `retries` allows."""
    name = look.stage.name
    left = named_ranks(missing, "is") + " not done"
    logger.warning(f"{name}: {left}")
    ending = Ending([left])
    if retries is not None and not submits and not cluster.is_here():  # Nobody here knows which of them have failed.
        ending.left = [f"retries of {named_ranks(missing)}"]
        ending.again = True
        return ending
    decision = decide(retries, look.failed) if retries is not None else Decision()
    for reason, ranks in given_up(decision).items():
        logger.warning(f"{name}: given up: {named_ranks(ranks)}: {reason}")
        ending.said.append(f"given up: {named_ranks(ranks)}: {reason}")
    again = [describe(group, retries) for group in decision.again] if retries is not None else []
    ending.again = bool(again)
    for line in again:
        logger.info(f"{name}: {line}")
    if again and submits:
        start_again(look, decision.again)
        ending.said += again
    elif again:
        ending.left = again
    else:
        failed = format_ranks(one.rank for one in look.failed)
        logger.error(f"{name}: {left} ({failed} failed)")
        ending.failed = True
    return ending


def given_up(decision: Decision) -> dict[str, list[int]]:
    """Reason -> the ranks that are given up for it."""
    ranks = defaultdict(list)
    for rank, reason in decision.given_up.items():
        ranks[reason].append(rank)
    return ranks


def describe(group: Group, retries: RetrySpec) -> str:
    """A retry in words."""
    return (
        f"retry {group.tries} of {retries.max} for {named_ranks(group.ranks)}, with {group.memory_scale:g} x the memory"
        f" and {group.time_scale:g} x the time"
    )


def start_again(look: Look, groups: list[Group]) -> None:
    """Relaunch the groups, each with its own resources, without ranks that are done or active by now.

    Each group has an array, and each array takes a part of the throttle: what does not fit waits for the next end job.
    """
    spec = look.stage.record.spec
    enter(spec)
    settled = look.done | look.activity.ranks
    left = [replace(group, ranks=[rank for rank in group.ranks if rank not in settled]) for group in groups]
    if left := [group for group in left if group.ranks][: look.stage.spec.executor.workers]:
        check_limits(spec, {look.stage.name: sum(len(group.ranks) for group in left)}, {})
        start(look.stage, look, left)


def dependents(spec: RunSpec, name: str) -> list[str]:
    """The Slurm stages that depend on stage `name`, with the swarms and the users beside them.

    Local stages do not run in an end job, but where the user runs `launch --wait` or `stagger retry`.
    """
    behind = [stage.name for stage in spec.stages if name in stage.depends and isinstance(stage.executor, SlurmSpec)]
    return beside(spec, behind)


def launch_dependents(run: RunFolder, record: RunRecord, looks: dict[str, Look], name: str) -> list[str]:
    """Launch the Slurm stages that waited for stage `name`, which is done. Returns what was launched, in sentences."""
    enter(record.spec)
    before = {one: len(looks[one].launches) for one in looks}
    run_stages(run, record, looks, only=dependents(record.spec, name))
    return [f"launched {one}" for one in looks if len(looks[one].launches) > before[one]]
