"""The end job of a stage, which runs `python -I -m stagger.launch.finalize RUN_DIR STAGE SETTINGS` after its arrays.

SETTINGS is the path of the settings of the tasks: their storage options are needed to read run.json.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from time import sleep

import orjson

from stagger.errors import StaggerError
from stagger.executor.end_job import end_time
from stagger.executor.limits import NoRoom
from stagger.launch.ending import Ending, EndNote, end_stage, may_launch, nodes_submit, recording_end
from stagger.rundir.launch_records import wait_for_launch
from stagger.rundir.lock import InUse
from stagger.rundir.run_folder import RunFolder, RunRecord, Stage
from stagger.slurm import cluster
from stagger.slurm.answers import parse_time
from stagger.slurm.own_job import requeue
from stagger.spec.executors import SlurmSpec
from stagger.status.look import look_at_run
from stagger.storage.storage import hide_secrets
from stagger.task import read_argument
from stagger.terminal import logger

#: Seconds for which an end job waits in all: for the lock, which a local stage holds while it runs, or for room.
PATIENCE_S = 6 * 3600.0

#: Seconds for which it waits for the lock at once, as for the command that submitted it.
LOCK_S = 60.0

#: The share of its time limit that an end job waits, before it goes back into the queue; seconds between two tries.
SHARE, NAP_S = 0.5, 20.0

#: Messages of an sbatch that does not take jobs from this node, and what to do about it.
DENIED = re.compile(r"denied|not permitted|not allowed|submit host|no sbatch", re.IGNORECASE)
NO_JOBS = "Where jobs may not submit jobs, set executor.nodes_submit: false, and follow runs with launch --wait."


def main(arguments: list[str]) -> int:
    """End a stage, and record how. Returns the exit status: 1 if ranks are left that are neither done nor retried."""
    try:
        run_dir, name, path = arguments
        settings = orjson.loads(read_argument(path))
        run, record = RunFolder.open(run_dir, settings.get("storage_options"), patient=True)
        stage, number = run.stage(record, name), settings.get("launch", 1)
        wait_for_launch(stage.folder, number)
        with run.changing(record):
            return EndJob(run, record, stage, number).run_recorded()
    except StaggerError as error:
        say_error(error)
        return error.exit_status
    except OSError as error:
        logger.error(str(error))
        return 1


@contextlib.contextmanager
def explaining_refusals() -> Iterator[None]:
    """Say what to do where a cluster does not let jobs submit jobs."""
    try:
        yield
    except StaggerError as error:
        if DENIED.search(str(error)):
            raise StaggerError(f"{str(error).rstrip('.')}. {NO_JOBS}") from error
        raise


def say_error(error: StaggerError) -> None:
    for line in str(error).split("\n"):
        logger.error(line)


def node() -> str:
    """Slurm's name of this node."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


@dataclass(frozen=True)
class EndJob:
    """The end job of one launch of a stage."""

    run: RunFolder
    record: RunRecord
    stage: Stage
    launch: int

    def run_recorded(self) -> int:
        """End the stage, and record what that did, or why it failed. Returns the exit status."""
        by = f"end job {os.environ.get('SLURM_JOB_ID', '')} on {node()}"
        with recording_end(self.stage, self.launch, by) as note:
            ending = self._when_possible(note)
            note(ending)
        return int(ending.failed)

    def _when_possible(self, note: EndNote) -> Ending:
        """End the stage once no other process holds the run's lock, and there is room for the jobs to launch.

        With half of its time gone, the job goes back into the queue, to wait with a new time limit.
        """
        executor = self.stage.spec.executor
        limit_s = parse_time(end_time(executor)) if isinstance(executor, SlurmSpec) else None
        deadline = time.monotonic() + SHARE * (limit_s or PATIENCE_S)
        while True:
            try:
                return self._end()
            except (InUse, NoRoom) as error:
                if time.time() - note.record.started > PATIENCE_S:
                    raise
                logger.info(f"{self.stage.name}: waits: {error}")
                note.write(said=(f"waits: {error}",))
                if time.monotonic() > deadline:
                    self._start_over(error)
            sleep(NAP_S * random.uniform(0.5, 1.5))  # noqa: S311 # Not all at once.

    def _start_over(self, error: StaggerError) -> None:
        """Requeue this job; Slurm then stops it. Raises `error` where that is not possible."""
        try:
            requeue(os.environ["SLURM_JOB_ID"])
        except (StaggerError, KeyError):
            raise error from None
        sleep(PATIENCE_S)

    def _end(self) -> Ending:
        submits = nodes_submit(self.stage.spec)
        if submits and cluster.is_here() and may_launch(self.record.spec, self.stage.name):
            with self.run.lock.held(wait_s=LOCK_S), explaining_refusals():
                return self._end_now(self.run.load() or self.record, submits=True)
        ending = self._end_now(self.record, submits=False)  # Without the lock: a user's retry need not wait.
        if submits and ending.left:
            raise StaggerError(
                f"There is no sbatch on {node()}, so the end job could not launch {', '.join(ending.left)}. {NO_JOBS}"
            )
        return ending

    def _end_now(self, record: RunRecord, *, submits: bool) -> Ending:
        return end_stage(self.run, record, look_at_run(self.run, record), self.stage.name, submits=submits)


if __name__ == "__main__":
    logger.configure(patcher=hide_secrets)
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
