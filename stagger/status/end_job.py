"""What the end of a stage did, or why it did nothing: one line of the status."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from stagger.errors import one_line
from stagger.rundir.end_record import EndRecord, read_end
from stagger.rundir.launch_records import SlurmLaunch, latest_launch
from stagger.slurm.states import counts_as, has_ended, is_queued, never_starts, why_waiting
from stagger.status.look import Look

#: Bytes of the end of the end job's output that are read for its last line.
TAIL_BYTES = 2048

#: What acts in place of an end job: the beginning of `by` in its record.
BY_COMMAND = "a waiting command"


@dataclass(frozen=True)
class End:
    """The end of the latest launch of a stage.

    state: `ahead` while its jobs run, `waiting` in the queue, `running`, `done` when everything is launched that had to
        be, `left` when jobs may not submit what there is to launch, `cancelled`, `failed`, or `lost` when it left no
        record.
    message: what it did or waits for, or why it failed.
    by_command: whether a waiting process acted in place of the end job.
    """

    state: Literal["ahead", "waiting", "running", "done", "left", "cancelled", "failed", "lost"]
    message: str = ""
    by_command: bool = False

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of the end job."""
        return self.state not in ("ahead", "waiting", "running")

    @property
    def fell_short(self) -> bool:
        """Whether the end job did not do all that it had to."""
        return self.is_over and self.state != "done"


def end_of(look: Look) -> End | None:
    """The end of the latest Slurm launch of a stage; None if there is none, or if it was cancelled as a whole."""
    launch = latest_launch(look.launches)
    if launch is None or launch.cancelled:
        return None
    record = read_end(look.stage.folder, launch.launch)
    if record is not None and record.ended is not None:
        return _recorded(record)
    job = look.jobs.end_job(launch)
    if job is None:
        return None
    name = f"end job {launch.finalize.job_id}"
    if has_ended(job.state) or not job.state or (is_queued(job.state) and never_starts(job.reason)):
        return _gone(name, job.state, job.reason, launch)
    if job.state == "RUNNING":
        return End("running", f"{name} is running" + _so_far(record))
    if look.activity.ranks - look.done:
        return End("ahead")
    why = words_for_end(job.reason, launch)
    reason = f"{job.reason or 'no reason'}{f': {why}' if why else ''}"
    return End("waiting", f"{name} is {job.state.lower()} ({reason})" + _so_far(record))


def words_for_end(reason: str, launch: SlurmLaunch) -> str:
    """What an end job with this reason waits for; empty if the wait is ordinary."""
    return why_waiting(reason, launch.finalize.job_id or "").replace("(executor.", "(executor.end.")


def _recorded(record: EndRecord) -> End:
    by_command = record.by.startswith(BY_COMMAND)
    if record.error:
        return End("failed", f"{record.by} failed: {record.error}", by_command)
    message = f"{record.by}: {'; '.join(record.said)}"
    if record.left:
        return End("left", f"{message}; left to do: {'; '.join(record.left)}", by_command)
    return End("done", message, by_command)


def _so_far(record: EndRecord | None) -> str:
    return f": {'; '.join(record.said)}" if record is not None and record.said else ""


def _gone(name: str, state: str, reason: str, launch: SlurmLaunch) -> End:
    """The end of a job that left no record of its end."""
    if counts_as(state) == "CANCELLED":
        return End("cancelled", f"{name} was cancelled")
    if is_queued(state):
        return End("lost", f"{name} will never start ({reason}: {words_for_end(reason, launch)})")
    if not state:
        return End("lost", f"{name} ended without a record, and Slurm does not know it any more" + _last_line(launch))
    return End("lost", f"{name} ended ({state}) before it was done" + _last_line(launch))


def _last_line(launch: SlurmLaunch) -> str:
    """The last line of the end job's output, as a clause; empty if there is none."""
    try:
        with open(launch.end_output, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f"; its output, {launch.end_output}, ends with: {one_line(lines[-1])}" if lines else ""


def end_message(look: Look, looks: Mapping[str, Look], end: End) -> str:
    """The line about the end of a stage: what it did, and what to type if nothing more starts by itself.

    Empty if a later command has done what the end job did not.
    """
    stages, name = look.stage.record.spec.stages, look.stage.name
    behind = [looks[stage.name] for stage in stages if name in stage.depends]
    waiting = [other.stage.name for other in behind if not other.has_started and not other.is_done]
    command = f"stagger retry {look.stage.run.path}"
    if not end.is_over or (look.activity.ranks and not end.fell_short):
        return end.message
    message = end.message.rstrip(".")
    if waiting or not look.is_done:
        held = f"; {', '.join(waiting)} will not start" if waiting else ""
        return f"{message}{held}; nothing more starts by itself: {command}"
    if not end.fell_short:
        return end.message
    folder = look.stage.folder
    return "" if folder.storage.entry(folder.stats()) else f"{message}; to merge the statistics: {command}"
