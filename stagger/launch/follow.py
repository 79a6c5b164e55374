"""Waits for the Slurm jobs of a run, acts for end jobs that did not, and runs the local stages that depend on them."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from types import MappingProxyType

from stagger.executor.activity import Waiting
from stagger.launch.check import ready_stages
from stagger.launch.ending import end_stage, recording_end
from stagger.launch.launched import Launched
from stagger.launch.stages import note_unfinished, run_stages
from stagger.progress import Progress
from stagger.ranks import format_ranks, ranks_text
from stagger.rundir.launch_records import latest_launch
from stagger.rundir.run_folder import RunFolder, RunRecord, Stage
from stagger.slurm.command import SlurmBusy
from stagger.status.end_job import BY_COMMAND, end_of
from stagger.status.look import Look, look_at_run
from stagger.status.stage_status import stage_statuses
from stagger.storage.storage import join
from stagger.terminal import logger

#: Seconds for which ranks that never start are waited for once nothing else is active: Slurm may correct a reason.
STUCK_S = 60.0

#: Seconds between polls: the first, the longest, the growth factor. Slurm's manual discourages frequent polling.
FIRST_S, LONGEST_S, GROWTH = 1.0, 30.0, 1.3


def follow(
    run: RunFolder,
    record: RunRecord,
    launched: Launched,
    limit: int | None,
    ranks: Mapping[str, set[int] | None] = MappingProxyType({}),
) -> Launched:
    """Wait until all Slurm jobs of the run have ended, also those that end jobs launch.

    Then do what end jobs failed to do or may not, run the local stages that waited, and repeat. Launches no stage
    twice. Gives up when only ranks are left that never start; they stay queued.
    """
    if all(stage.executor.type == "local" for stage in record.spec.stages):
        return launched
    while True:
        try:
            looks = wait_for_slurm(run, record)
        except KeyboardInterrupt:
            logger.warning(f"stopped waiting; the jobs keep running. Check them with: stagger status {run.path}")
            raise
        if unended := [name for name, look in looks.items() if falls_to_us(look)]:
            for name in unended:
                record = end_in_place(run, record, name)
            continue
        if any(look.activity.stuck for look in looks.values()):
            break
        ready = [looks[name] for name in pending_stages(record, looks)]
        fresh = {one.stage.name for one in ready if one.stage.spec.executor.type == "local" and not one.launches}
        if not fresh:
            break
        with run.lock.held():
            record = run.load() or record
            looks = look_at_run(run, record)
            launched.lost_outputs += run_stages(run, record, looks, limit=limit, only=fresh).lost_outputs
        if launched.lost_outputs:
            break
    ended = Launched(run.path, stage_statuses(looks), lost_outputs=launched.lost_outputs)
    for name in pending_stages(record, looks):
        if ranks.get(name) is None:
            note_unfinished(ended, looks[name], limit)
    return ended


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


def patient_look(run: RunFolder, record: RunRecord) -> dict[str, Look]:
    """Look at a run as soon as Slurm answers, however long its controller is away: the jobs go on without it."""
    while True:
        try:
            return look_at_run(run, record)
        except SlurmBusy as error:
            logger.warning(f"{str(error).rstrip('.')}; still waiting")
            time.sleep(LONGEST_S)


def wait_for_slurm(run: RunFolder, record: RunRecord) -> dict[str, Look]:
    """Wait until no array and no end job of the run is queued or running, or until a stage falls to this process.

    Says once why ranks do not start. Does not wait longer than STUCK_S for ranks that never start, if nothing else is
    active. Returns the last look.
    """
    interval, said, since = FIRST_S, set[tuple[str, Waiting]](), 0.0
    with Progress(record.spec.name, sum(stage.tasks for stage in record.spec.stages)) as progress:
        while True:
            record = run.refreshed(record)
            looks = patient_look(run, record)
            progress.total = sum(stage.tasks for stage in record.spec.stages)
            progress.set(sum(len(look.done) for look in looks.values()), 0)
            active = any(look.activity.ranks or look.activity.ending for look in looks.values())
            if not active or any(map(falls_to_us, looks.values())):
                return looks
            for look in looks.values():
                say_why_waiting(look, said)
            since = (since or time.monotonic()) if only_stuck(looks) else 0.0
            if since and time.monotonic() - since >= STUCK_S:
                return looks
            time.sleep(interval)
            interval = min(LONGEST_S, interval * GROWTH)


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
