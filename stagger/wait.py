"""Waiting for the Slurm jobs of a stage, at a polite interval."""

from __future__ import annotations

import time

from stagger.launches import read_launches
from stagger.progress import Progress
from stagger.rundir import StageFolder
from stagger.spec.models import StageSpec

#: Seconds between two questions: short at first, for short runs, then longer; Slurm's manual asks not to poll.
FIRST_S, LONGEST_S, GROWTH = 1.0, 30.0, 1.3


def wait_for_slurm(folder: StageFolder, stage: StageSpec, run_dir: str) -> None:
    """Return when none of the stage's jobs is queued or running."""
    from stagger.status import activity_of

    launches = read_launches(folder)
    interval = FIRST_S
    with Progress(stage.name, stage.tasks) as progress:
        while True:
            active = activity_of(folder, launches, run_dir).ranks
            progress.set(len(folder.done()), 0)
            if not active:
                return
            time.sleep(interval)
            interval = min(LONGEST_S, interval * GROWTH)
