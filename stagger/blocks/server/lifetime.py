"""When a server leaves: by its job's time, the swarm's, or because the swarm has ended. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from stagger.slurm.own_job import TIME_IS_UP_S

#: A server that comes back leaves at U(FIRST_LEAVES, 1) of its job's time. Array jobs start together: with the same
#: time limit they would all end within a second, and leave every block without a server.
FIRST_LEAVES = 0.6

#: Least seconds that a job's time must leave to serve.
LEAST_S = 1.0

#: Seconds between the end of draining and the end of the job.
SPARE_S = 5.0

#: Slurm may warn a server this many seconds before it has to start draining: the job script requests the warning 60 s
#: early (`stagger.executor.arrays.block_scripts`), and Slurm may send it another 60 s earlier (sbatch(1)).
WARNED_EARLY_S = 150


@dataclass(frozen=True)
class Lifetime:
    """The times of one server, in seconds since the epoch; None for those that there are none of.

    `began`: when it began to run. `job_ends`: when its job's time is up. `swarm_ends`: when `blocks.serve_for` has
    elapsed. `has_users`: whether stages use the swarm, which then lasts as long as they do. `share`: the share of its
    job's time after which it leaves, if it comes back.
    """

    began: float
    job_ends: float | None
    drain_s: float
    swarm_ends: float | None = None
    has_users: bool = False
    share: float = 1.0

    @property
    def comes_back(self) -> bool:
        """Whether the server begins again in a new job when this one's time is up."""
        if self.job_ends is None:
            return False
        return self.has_users or (self.swarm_ends is not None and self.swarm_ends > self.last_call)

    @property
    def last_call(self) -> float:
        """When the server has to begin to drain, for its job's sake; never without a time limit."""
        return float("inf") if self.job_ends is None else self.job_ends - self.drain_s - SPARE_S

    @property
    def leaves(self) -> float:
        """When the server leaves for its job's sake. Those that come back leave at different times."""
        if self.job_ends is None or not self.comes_back:
            return self.last_call
        return min(self.last_call, self.began + self.share * (self.job_ends - self.began))

    @property
    def is_too_short(self) -> bool:
        """Whether the job's time leaves less than LEAST_S to serve."""
        return self.last_call - self.began < LEAST_S

    def is_over(self, now: float) -> bool:
        """Whether the swarm's time is over."""
        return self.swarm_ends is not None and now > self.swarm_ends

    def is_near_its_end(self, now: float) -> bool:
        """Whether the job's time is up, or suffices for no more than draining; True when the end is unknown."""
        return self.job_ends is None or now > self.job_ends - max(TIME_IS_UP_S, self.drain_s + WARNED_EARLY_S)


def share_of_time(random: Random) -> float:
    """U(FIRST_LEAVES, 1)."""
    return random.uniform(FIRST_LEAVES, 1)
