"""Waiting for the Slurm jobs of a run, at a polite interval."""

from __future__ import annotations

import time

from stagger.executor.kinds import LaunchedJobs
from stagger.progress import Progress
from stagger.rundir.launch_records import read_launches
from stagger.rundir.run_folder import RunFolder, RunRecord
from stagger.status.stage_status import activity_of

#: Seconds between two questions: short at first, for short runs, then longer; Slurm's manual asks not to poll.
FIRST_S, LONGEST_S, GROWTH = 1.0, 30.0, 1.3


def wait_for_slurm(folder: RunFolder, record: RunRecord) -> None:
    """Return when none of the run's jobs is queued or running: neither arrays nor what ends a stage."""
    stages = [folder.stage(record.spec, stage) for stage in record.spec.stages]
    interval = FIRST_S
    with Progress(record.spec.name, sum(stage.tasks for stage in record.spec.stages)) as progress:
        while True:
            launches = [read_launches(stage) for stage in stages]
            jobs = LaunchedJobs([launch for mine in launches for launch in mine])
            activities = [
                activity_of(stage, mine, folder.path, jobs) for stage, mine in zip(stages, launches, strict=True)
            ]
            progress.set(sum(len(stage.done()) for stage in stages), 0)
            if not any(activity.ranks or activity.ending for activity in activities):
                return
            time.sleep(interval)
            interval = min(LONGEST_S, interval * GROWTH)
