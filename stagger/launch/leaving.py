"""Ranks that were told to end and have not ended yet: a retry waits for them, and a swarm does not begin again without.

A swarm that began again with the servers that have left already would lack the others for ever: nobody replaces them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from stagger.launch.stages import with_swarms
from stagger.launch.swarms import is_used
from stagger.ranks import named_ranks
from stagger.rundir.launch_records import LaunchRecord
from stagger.rundir.lock import InUse
from stagger.rundir.run_folder import RunFolder, RunRecord
from stagger.spec.models import RunSpec
from stagger.status.look import Look, is_told_to_end, look_at_run
from stagger.terminal import logger

#: Seconds that ranks have to end: Slurm's KillWait (30 s by default), and the clean-up of their jobs.
LEAVING_S = 120.0

#: Seconds between two looks: the first, the longest, the growth factor.
FIRST_S, LONGEST_S, GROWTH = 1.0, 10.0, 1.3


class StillLeaving(InUse):
    """Servers of a swarm that is to begin again have not left yet."""


def leaving(look: Look) -> set[int]:
    """The ranks of a stage that were told to end and have not ended yet: by `stagger cancel`, or with their swarm."""
    activity = look.activity
    if not activity.ranks:
        return set()
    told = cancelled(look.launches) & activity.ranks
    if is_told_to_end(look.stage):
        told |= activity.running | activity.starting.keys() | activity.failing
    return told - look.done


def ending(look: Look) -> set[int]:
    """The ranks that are leaving, and those whose jobs Slurm ends for any reason."""
    return leaving(look) | (look.activity.completing - look.done)


def awaited(
    spec: RunSpec, looks: Mapping[str, Look], names: Sequence[str], ranks: Collection[int] | None = None
) -> dict[str, set[int]]:
    """Stage -> the ranks of it that end, of the stages `names` and of the swarms that these begin again with.

    `ranks` are those wanted of the stages, None for all; a swarm always has all of its servers.
    """
    found = {}
    for name in with_swarms(spec, names):
        look = looks[name]
        mine = ending(look)
        if is_used(spec, name):
            mine = mine if begins(spec, looks, name, names) else set()
        elif ranks is not None:
            mine &= set(ranks)
        if mine:
            found[name] = mine
    return found


def begins(spec: RunSpec, looks: Mapping[str, Look], swarm: str, names: Collection[str]) -> bool:
    """Whether stages among `names` need a swarm: users of it that are not done."""
    return any(user.name in names and not looks[user.name].is_done for user in spec.users_of(swarm))


def cancelled(launches: Iterable[LaunchRecord]) -> set[int]:
    """The ranks whose latest launch `stagger cancel` has cancelled."""
    found: set[int] = set()
    for launch in launches:
        found.difference_update(launch.rank_list)
        found.update(launch.cancelled_list)
    return found


def refuse_leaving(spec: RunSpec, looks: Mapping[str, Look], names: Sequence[str]) -> None:
    """Raise StillLeaving when the stages `names` begin again with a swarm some of whose servers are leaving.

    Servers that end for other reasons are replaced by the others.
    """
    for name in with_swarms(spec, names):
        if is_used(spec, name) and begins(spec, looks, name, names) and (ranks := leaving(looks[name])):
            raise StillLeaving(f"{said(looks[name], ranks)}; {name} begins again once they have ended.")


def said(look: Look, ranks: Collection[int]) -> str:
    """Which ranks are leaving, and in which jobs."""
    return f"{look.stage.name}: {named_ranks(ranks, 'is')} still ending ({', '.join(look.activity.holders)})"


@contextlib.contextmanager
def held_once_left(
    run: RunFolder,
    record: RunRecord,
    stage: str | None = None,
    ranks: Collection[int] | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[tuple[RunRecord, dict[str, Look]]]:
    """Hold the run's lock, with its record and the looks taken under it, once no rank that is wanted is still ending.

    Wanted are `ranks` of `stage`, or of all stages; None for all. While it waits, the lock is free. After LEAVING_S,
    and what servers take to drain, it waits no longer for ranks that others can start without, and says so. Raises
    StillLeaving when none of a swarm's servers could start.
    """
    first: dict[str, set[int]] | None = None
    started, interval = time.monotonic(), FIRST_S
    while True:
        with run.lock.held():
            record = run.load() or record
            looks = look_at_run(run, record)
            names = [one.name for one in record.spec.chosen(stage)]
            found = awaited(record.spec, looks, names, ranks)
            first = found if first is None else first
            left = {name: mine & first[name] for name, mine in found.items() if mine & first.get(name, set())}
            late = time.monotonic() - started > LEAVING_S + max((drain_s(looks[name]) for name in left), default=0.0)
            if left and late:
                go_without(looks, left)
            if not left or late:
                yield record, looks
                return
        if interval == FIRST_S:
            for name, mine in left.items():
                logger.info(f"{said(looks[name], mine)}: waiting until they have ended")
        pause(interval)
        interval = min(LONGEST_S, interval * GROWTH)


def drain_s(look: Look) -> float:
    """Seconds that the servers of a swarm may take to notice that it has ended, and to finish what they compute."""
    blocks = look.stage.spec.blocks
    return 0.0 if blocks is None else 2 * blocks.heartbeat + blocks.drain


def go_without(looks: Mapping[str, Look], left: Mapping[str, set[int]]) -> None:
    """Say which ranks are not started, as they do not end. Raises StillLeaving when that is a whole swarm."""
    for name, ranks in left.items():
        look = looks[name]
        later = f"type stagger retry {look.stage.run.path} once they have ended"
        if is_used(look.stage.record.spec, name) and len(ranks) == look.stage.spec.tasks:
            raise StillLeaving(f"{said(look, ranks)}, and none of {name} can start: {later}.")
        logger.warning(f"{said(look, ranks)}, and not started: {later}")
