"""Whether jobs of a swarm are queued or running, for users that wait for its blocks."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random

from stagger.errors import StaggerError
from stagger.rundir.launch_records import SlurmLaunch, read_launches
from stagger.rundir.stage_folder import StageFolder
from stagger.slurm.own_job import any_alive
from stagger.storage.storage import Storage

#: Seconds of a gap after which Slurm is asked for the first time, and mean seconds between two questions: hundreds of
#: ranks may wait for the same swarm.
FIRST_S, MEAN_S = 60.0, 300.0


class SwarmJobs:
    """Asks Slurm, rarely, whether jobs of the stage in `stage_dir` are queued or running. `clock` is monotonic."""

    def __init__(
        self,
        storage: Storage,
        stage_dir: str,
        clock: Callable[[], float] = time.monotonic,
        ask: Callable[[list[str]], bool] = any_alive,
    ) -> None:
        self._folder = StageFolder(storage, stage_dir)
        self._clock = clock
        self._ask = ask
        self._random = Random()  # noqa: S311 - jitter.
        self._answer: bool | None = None
        self._next = clock() + FIRST_S

    def __call__(self) -> bool | None:
        """Whether some are; None while it is unknown, as for a swarm on this machine."""
        if self._clock() >= self._next:
            self._next = self._clock() + MEAN_S * (0.5 + self._random.random())
            try:
                launches = [one for one in read_launches(self._folder) if isinstance(one, SlurmLaunch)]
                ids = [array.job_id for one in launches for array in one.arrays if array.job_id]
                self._answer = self._ask(ids) if ids else None
            except (OSError, StaggerError):
                self._answer = None
        return self._answer
