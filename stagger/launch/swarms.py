"""The swarms of a run beside the stages that use them: when one starts and ends, and which lost servers are replaced.

The decisions are pure functions. A swarm ends when nothing more comes of any of its users, whoever notices that first:
the end job of the last user, a waiting command, or the servers themselves (`stagger.launch.tend`).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping

from stagger.blocks.swarm_place import END, registry_folder
from stagger.errors import StaggerError
from stagger.executor.base import NotCancelled
from stagger.launch.retry_policy import Decision, decide
from stagger.ranks import named_ranks
from stagger.rundir.end_record import read_end
from stagger.rundir.launch_records import latest_launch
from stagger.rundir.run_folder import Stage
from stagger.rundir.stage_folder import encode
from stagger.spec.executors import RetrySpec, SlurmSpec
from stagger.spec.models import RunSpec, StageSpec
from stagger.status.look import Look
from stagger.storage.storage import join
from stagger.terminal import logger

#: Seconds for which a swarm goes on when a waiting command may launch more of its users, but no job may.
LEFT_S = 1800.0

#: Most times that a lost server is replaced on this machine, where no key gives another number.
REPLACED_HERE = 5


def is_used(spec: RunSpec, name: str) -> bool:
    """Whether a stage hosts blocks that other stages use."""
    return bool(spec.users_of(name))


def beside(spec: RunSpec, names: Iterable[str]) -> list[str]:
    """Stages, with the swarms that they use and the users of swarms among them, in the order of the run."""
    found = set(names)
    found |= {user.name for name in found for user in spec.users_of(name)}
    found |= {swarm for name in found for swarm in spec.stage(name).uses}
    return [stage.name for stage in spec.stages if stage.name in found]


def settled(spec: RunSpec, name: str, done: Collection[str], working: Collection[str]) -> bool:
    """Whether nothing more comes of a stage by itself: it is done, or neither it nor any stage ahead of it works.

    `done` are the stages that are done; `working` are those with active ranks or an end job that has not ended.
    """
    return name in done or not ({name} | spec.ahead_of(name)) & set(working)


def why_over(spec: RunSpec, swarm: str, looks: Mapping[str, Look], ended: Collection[str] = ()) -> str:
    """Why a swarm is over, as a clause; empty while it is needed.

    `ended` are stages that this process has just ended without launching more of them: their end job still runs.
    """
    users = [user.name for user in spec.users_of(swarm)]
    done = {name for name, look in looks.items() if look.is_done}
    working = {name for name, look in looks.items() if look.activity.ranks - look.done or look.activity.ending}
    working -= set(ended)
    waited_for = {name for user in users if user not in done for name in (user, *spec.ahead_of(user))}
    working |= {name for name in waited_for if left_to_commands(looks[name])}
    if not users or not all(settled(spec, name, done, working) for name in users):
        return ""
    if failed := [name for name in users if name not in done]:
        return f"{', '.join(failed)} ended without being done"
    return f"{', '.join(users)} {'is' if len(users) == 1 else 'are'} done"


def left_to_commands(look: Look) -> bool:
    """Whether a waiting command may launch what the end of a stage could not: retries, or stages that wait for it.

    After LEFT_S nobody is expected to wait any more.
    """
    launch = latest_launch(look.launches)
    end = None if launch is None else read_end(look.stage.folder, launch.launch)
    left = end is not None and end.ended is not None and bool(end.left or end.error)
    return left and end is not None and end.ended is not None and time.time() - end.ended < LEFT_S


def end_swarm(look: Look, why: str) -> list[str]:
    """End a swarm: its servers leave when they next look into the registry, and queued jobs of it are cancelled.

    Returns what was done, in sentences; nothing if it has ended before.
    """
    stage, path = look.stage, end_path(look.stage)
    record = {"reason": why, "time": time.time()}
    if not stage.folder.storage.create(path, encode(record)):
        return []
    said = [f"{stage.name} ends: {why}"]
    queued = look.activity.pending | look.activity.requeued
    if queued and stage.spec.executor.type == "slurm":
        try:
            look.jobs.cancel(stage, look.launches, queued)
            said.append(f"cancelled {named_ranks(queued)} of {stage.name}, not yet started")
        except NotCancelled as error:
            logger.warning(str(error))
        except StaggerError as error:  # Those that start all the same leave at once.
            logger.warning(f"{stage.name}: queued servers are not cancelled: {error}")
    return said


def end_swarms(
    spec: RunSpec, looks: Mapping[str, Look], names: Iterable[str], ended: Collection[str] = ()
) -> list[str]:
    """End those of the swarms `names` that are over. Returns what was done, in sentences.

    `ended` is as for `why_over`.
    """
    said = []
    for name in names:
        if looks[name].has_started and (why := why_over(spec, name, looks, ended)):
            said += end_swarm(looks[name], why)
    return said


def reopen(stage: Stage) -> None:
    """Let a swarm that has ended begin again. Call it under the run's lock, before its servers are launched."""
    stage.folder.storage.remove(end_path(stage))


def end_path(stage: Stage) -> str:
    return join(registry_folder(stage.folder.path), END)


def replacement_policy(stage: StageSpec) -> RetrySpec | None:
    """The policy by which lost servers of a swarm are replaced; None if they are not.

    It is the stage's `retries`, or without them as many replacements of a server as `max_requeues`. A server that was
    cancelled otherwise than by `stagger cancel` is lost, too.
    """
    given = stage.retries
    most = stage.executor.max_requeues if isinstance(stage.executor, SlurmSpec) else REPLACED_HERE
    if given is None and not most:
        return None
    base = given or RetrySpec(max=most, memory_factor=1.0, time_factor=1.0)
    return base.model_copy(update={"on": (*base.on, "CANCELLED", "COMPLETED")})


def replaceable(look: Look) -> Decision:
    """The lost servers of a swarm that are replaced, and those that are given up."""
    retries = replacement_policy(look.stage.spec)
    return Decision() if retries is None or not look.has_started else decide(retries, look.failed)
