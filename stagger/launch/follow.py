"""Waits for the Slurm jobs of a run, and runs the local stages that depend on them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType

from stagger.launch.check import ready_stages
from stagger.launch.launched import Launched
from stagger.launch.stages import note_unfinished, run_stages
from stagger.progress import Progress
from stagger.rundir.run_folder import RunFolder, RunRecord
from stagger.status.look import Look, look_at_run
from stagger.status.stage_status import stage_status
from stagger.terminal import logger

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

    Then run the local stages that waited for them, and repeat. Launches no stage twice.
    """
    if all(stage.executor.type == "local" for stage in record.spec.stages):
        return launched
    while True:
        try:
            looks = wait_for_slurm(run, record)
        except KeyboardInterrupt:
            logger.warning(f"stopped waiting; the jobs keep running. Check them with: stagger status {run.path}")
            raise
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
    ended = Launched(run.path, [stage_status(look) for look in looks.values()], lost_outputs=launched.lost_outputs)
    for name in pending_stages(record, looks):
        if ranks.get(name) is None:
            note_unfinished(ended, looks[name], limit)
    return ended


def pending_stages(record: RunRecord, looks: Mapping[str, Look]) -> list[str]:
    """The stages that are not done and wait for no other stage."""
    done = {name for name, look in looks.items() if look.is_done}
    return [stage.name for stage in ready_stages(record.spec, done) if stage.name not in done]


def wait_for_slurm(run: RunFolder, record: RunRecord) -> dict[str, Look]:
    """Wait until no array and no end job of the run is queued or running. Returns the last look."""
    interval = FIRST_S
    with Progress(record.spec.name, sum(stage.tasks for stage in record.spec.stages)) as progress:
        while True:
            looks = look_at_run(run, record)
            progress.set(sum(len(look.done) for look in looks.values()), 0)
            if not any(look.activity.ranks or look.activity.ending for look in looks.values()):
                return looks
            time.sleep(interval)
            interval = min(LONGEST_S, interval * GROWTH)
