"""Waits for the Slurm jobs of a run, acts for end jobs that did not, and runs the local stages that depend on them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

from stagger.errors import StaggerError, counted
from stagger.executor.activity import Waiting
from stagger.launch.check import enter
from stagger.launch.ending import end_stage, recording_end
from stagger.launch.launched import Launched
from stagger.launch.leaving import refuse_leaving
from stagger.launch.plans import ready_stages
from stagger.launch.stages import note_unfinished, run_stages, wanted_ranks
from stagger.launch.swarms import is_used, replaceable, why_over
from stagger.launch.tend import tend
from stagger.progress import Progress
from stagger.ranks import format_ranks, ranks_text
from stagger.rundir.launch_records import latest_launch
from stagger.rundir.lock import InUse
from stagger.rundir.run_folder import RunFolder, RunRecord, Stage
from stagger.slurm import cluster
from stagger.slurm.command import SlurmBusy
from stagger.status.end_job import BY_COMMAND, end_of
from stagger.status.look import Look, glance_at_run, is_told_to_end, look_at_run
from stagger.status.stage_status import stage_statuses
from stagger.storage.storage import join
from stagger.terminal import logger

#: Seconds for which ranks that never start are waited for once nothing else is active: Slurm may correct a reason.
STUCK_S = 60.0

#: Seconds between polls: the first, the longest, the growth factor. Slurm's manual discourages frequent polling.
FIRST_S, LONGEST_S, GROWTH = 1.0, 30.0, 1.3

#: Most seconds between polls of a run that no Slurm job is part of.
LOCAL_S = 0.5


def follow(
    run: RunFolder,
    record: RunRecord,
    launched: Launched,
    limit: int | None,
    ranks: Mapping[str, set[int] | None] = MappingProxyType({}),
) -> Launched:
    """Wait until all Slurm jobs of the run have ended, also those that end jobs launch.

    Then do what end jobs failed to do or may not, start the stages that no end job starts, and repeat. Launches no
    stage twice. Gives up when only ranks are left that never start; they stay queued.
    """
    if is_local_only(record):
        return launched

    def expected(look: Look) -> Collection[int]:
        return wanted_ranks(look.stage.spec, limit) if ranks.get(look.stage.name) is None else ()

    return _follow(run, record, expected, limit=limit, lost_outputs=launched.lost_outputs)


def wait_for_end(run: RunFolder, record: RunRecord, timeout_s: float | None = None) -> Launched:
    """Wait as `follow` does, for what any process has launched of a run.

    Raises TimeoutError when the run has not ended after `timeout_s` seconds, and StaggerError when its folder is gone,
    or when this machine cannot know whether its jobs have ended.
    """
    if not cluster.has_queue() and any(
        look.activity.unknown - look.done for look in glance_at_run(run, record).values()
    ):
        raise StaggerError(
            f"There is no squeue on this machine, so it cannot know when the jobs of {run.path} end: wait on a machine"
            " with Slurm, or look at the records from time to time (status)."
        )
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with run.changing(record):
        ended = _follow(run, record, launched_ranks, deadline=deadline)
    if run.load() is None:
        raise StaggerError(f"{run.path} is gone: somebody has removed the run while this process waited for it.")
    return ended


def is_local_only(record: RunRecord) -> bool:
    return all(stage.executor.type == "local" for stage in record.spec.stages)


def is_held(run: RunFolder, record: RunRecord) -> bool:
    """Whether a process is running local stages of the run, or is between two of them."""
    if all(stage.executor.type != "local" for stage in record.spec.stages):
        return False
    holder = run.lock.holder()
    return holder is not None and not holder.is_dead()


def launched_ranks(look: Look) -> Collection[int]:
    """The ranks that were ever launched; all ranks of a stage that never started, although it could."""
    return {rank for launch in look.launches for rank in launch.rank_list} or range(look.stage.spec.tasks)


def _follow(
    run: RunFolder,
    record: RunRecord,
    expected: Callable[[Look], Collection[int]],
    *,
    limit: int | None = None,
    lost_outputs: Collection[str] = (),
    deadline: float | None = None,
) -> Launched:
    """Wait for a run, and do what is left to this process. `expected` are the ranks of a stage that must be done."""
    lost = list(lost_outputs)
    while True:
        try:
            looks = wait_for_jobs(run, record, deadline)
        except KeyboardInterrupt:
            logger.warning(f"stopped waiting; the jobs keep running. Check them with: stagger status {run.path}")
            raise
        try:
            acted, record = _act(run, record, looks, limit, lost)
        except InUse as error:  # Another process that waits does the same.
            logger.info(f"{str(error).rstrip('.')}; still waiting")
            pause(LONGEST_S, deadline, str(error))
            continue
        if lost or not acted or any(look.activity.stuck for look in looks.values()):
            break
    ended = Launched(run.path, stage_statuses(looks), lost_outputs=lost)
    for name in pending_stages(record, looks):
        note_unfinished(ended, looks[name], expected(looks[name]))
    return ended


def _act(
    run: RunFolder, record: RunRecord, looks: dict[str, Look], limit: int | None, lost: list[str]
) -> tuple[bool, RunRecord]:
    """Do what end jobs did not do, or else start the stages that no end job starts.

    Returns whether there was anything to do, and the run's current record. Adds lost outputs to `lost`.
    """
    if unended := [name for name, look in looks.items() if falls_to_us(look)]:
        for name in unended:
            record = end_in_place(run, record, name)
        return True, record
    if swarms := swarms_to_tend(record, looks):
        for name in swarms:
            tend(run, name)
        return True, record
    ready = [looks[name] for name in pending_stages(record, looks)]
    fresh = {one.stage.name for one in ready if not one.has_started and no_end_job_starts(one.stage)}
    if not fresh or is_local_only(record):
        return False, record
    with run.lock.held():
        record = run.load() or record
        enter(record.spec)
        looks = look_at_run(run, record)
        refuse_leaving(record.spec, looks, sorted(fresh))
        lost += run_stages(run, record, looks, limit=limit, only=fresh).lost_outputs
    return True, record


def swarms_to_tend(record: RunRecord, looks: Mapping[str, Look]) -> list[str]:
    """The swarms that are over, or have lost servers to replace, while others of them or their users go on."""
    spec = record.spec
    found = []
    for name, look in looks.items():
        if spec.stage(name).blocks is None or not look.has_started or look.is_done or is_told_to_end(look.stage):
            continue
        has_ended = is_used(spec, name) and bool(why_over(spec, name, looks))
        goes_on = is_used(spec, name) or bool(look.activity.ranks)
        if has_ended or (goes_on and replaceable(look).again):
            found.append(name)
    return found


def no_end_job_starts(stage: Stage) -> bool:
    """Whether a stage runs on this machine, or depends on one that does."""
    spec = stage.record.spec
    return any(spec.stage(name).executor.type == "local" for name in (stage.name, *stage.spec.depends))


def falls_to_us(look: Look) -> bool:
    """Whether a stage has ended, and its end job did not do what it had to, although nobody cancelled it.

    What this process itself could not do is not tried again.
    """
    if look.activity.ranks or look.activity.ending:
        return False
    end = end_of(look)
    return end is not None and end.fell_short and end.state != "cancelled" and not end.by_command


def end_in_place(run: RunFolder, record: RunRecord, name: str) -> RunRecord:
    """End a stage in place of its end job, and record that. Returns the run's current record."""
    with run.lock.held():
        record = run.load() or record
        for stage in run.stages(record):
            refresh_launches(stage)
        looks = look_at_run(run, record)
        launch = latest_launch(looks[name].launches)
        if launch is None or not falls_to_us(looks[name]):
            return record
        logger.info(f"{name}: acting in place of its end job, {launch.finalize.job_id}")
        with recording_end(looks[name].stage, launch.launch, f"{BY_COMMAND} on {socket.gethostname()}") as note:
            note(end_stage(run, record, looks, name))
    return record


def refresh_launches(stage: Stage) -> None:
    """List the launches of a stage, so that a client of NFS shows what other machines have just written there."""
    folder = join(stage.folder.path, "launches")
    for entry in stage.folder.storage.list(folder):
        stage.folder.storage.list(join(folder, entry.name))


def pending_stages(record: RunRecord, looks: Mapping[str, Look]) -> list[str]:
    """The stages that are not done and wait for no other stage."""
    done = {name for name, look in looks.items() if look.is_done}
    return [stage.name for stage in ready_stages(record.spec, done) if stage.name not in done]


def patient_look(run: RunFolder, record: RunRecord, deadline: float | None) -> dict[str, Look]:
    """Look at a run as soon as Slurm answers, however long its controller is away: the jobs go on without it."""
    while True:
        try:
            return look_at_run(run, record)
        except SlurmBusy as error:
            logger.warning(f"{str(error).rstrip('.')}; still waiting")
            pause(LONGEST_S, deadline, str(error))


def pause(seconds: float, deadline: float | None, why: str) -> None:
    """Sleep, at most until the deadline. Raises TimeoutError, saying why, when that has passed."""
    left = seconds if deadline is None else deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(why)
    time.sleep(min(seconds, left))


def wait_for_jobs(run: RunFolder, record: RunRecord, deadline: float | None) -> dict[str, Look]:
    """Wait until no rank and no end job of the run is queued or running, or until a stage falls to this process.

    Says once why ranks do not start. Does not wait longer than STUCK_S for ranks that never start, if nothing else is
    active. Returns the last look. Raises TimeoutError at the deadline, a time of `time.monotonic`.
    """
    longest = LOCAL_S if is_local_only(record) else LONGEST_S
    interval, said, since = min(FIRST_S, longest), set[tuple[str, Waiting]](), 0.0
    with Progress(record.spec.name, sum(stage.tasks for stage in record.spec.stages)) as progress:
        while True:
            record = run.refreshed(record)
            held = is_held(run, record)  # Asked first: what it has done by then is seen below.
            looks = patient_look(run, record, deadline)
            done = sum(len(look.done) for look in looks.values())
            progress.total = sum(stage.tasks for stage in record.spec.stages)
            progress.set(done, 0)
            active = held or any(look.activity.ranks or look.activity.ending for look in looks.values())
            if not active or any(map(falls_to_us, looks.values())) or swarms_to_tend(record, looks):
                return looks
            for look in looks.values():
                say_why_waiting(look, said)
            since = (since or time.monotonic()) if only_stuck(looks) and not held else 0.0
            if since and time.monotonic() - since >= STUCK_S:
                return looks
            share = f"{done:,} of {counted(progress.total, 'rank', 'is')} done"
            pause(interval, deadline, f"{run.path} has not ended yet: {share}.")
            interval = min(longest, interval * GROWTH)


def only_stuck(looks: Mapping[str, Look]) -> bool:
    """Whether some ranks never start as they are, and no others are active. (Their end job only waits for them.)"""
    activities = [look.activity for look in looks.values()]
    return any(one.stuck for one in activities) and all(one.ranks <= one.stuck for one in activities)


def say_why_waiting(look: Look, said: set[tuple[str, Waiting]]) -> None:
    """Log why ranks do not start, unless it is in `said`."""
    name, activity = look.stage.name, look.activity
    for why in set(activity.waiting.values()):
        if (name, why) not in said:
            said.add((name, why))
            ranks = [rank for rank, one in activity.waiting.items() if one == why]
            how = "can never start" if why.starts == "never" else "waiting"
            logger.warning(f"{name}: {how}: {ranks_text(format_ranks(ranks), len(ranks))}: {why.reason}: {why.message}")
