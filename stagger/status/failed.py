"""How a rank that is not done ended, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass
from signal import Signals

from stagger.rundir.launch_records import Group
from stagger.rundir.stage_folder import Failure
from stagger.slurm.states import counts_as

#: What a task that ran out of memory says itself, where Slurm does not watch it.
MEMORY_ERRORS = frozenset({"MemoryError", "ArrowMemoryError"})

#: How Slurm, or the kernel, says in a job's output that it was killed for its memory.
OUT_OF_MEMORY = re.compile(r"oom[-_ ]kill|out of memory|exceeded (job )?memory limit", re.IGNORECASE)


def looks_out_of_memory(text: str) -> bool:
    """Whether the end of a job's output says that it was killed for its memory.

    >>> looks_out_of_memory("slurmstepd: error: Detected 1 oom_kill event in StepId=65.batch.")
    True
    """
    return OUT_OF_MEMORY.search(text) is not None


@dataclass(frozen=True)
class Failed:
    """How a rank's latest launch ended: Slurm's state if it is known, and the rank's own failure record if it has one.

    `before` is the failure record of the launch before, when that was another try of the same series.
    """

    rank: int
    tried: Group
    state: str | None
    failure: Failure | None
    before: Failure | None = None

    @property
    def end(self) -> str:
        """One of `EndState`; or CANCELLED, what a user did on purpose.

        What the rank says itself comes first: in a packed job the job's end is not each rank's.
        """
        if self.failure is not None and self.failure["kind"] != "interrupted":
            return "OUT_OF_MEMORY" if self.failure["kind"] in MEMORY_ERRORS else "FAILED"
        end = counts_as(self.state)
        if self.failure is not None and end in ("FAILED", "NODE_FAIL"):
            # It ended by itself when it was told to: Slurm's warning before the limit, or a preemption.
            return "TIMEOUT" if self.failure.get("signal") == Signals.SIGUSR2.name else "PREEMPTED"
        return end

    @property
    def reason(self) -> str:
        """Why it failed, in a few words: `OUT_OF_MEMORY`, `ValueError in keep_long`, `lost (FAILED)`."""
        if self.failure is not None and self.failure["kind"] != "interrupted":
            step = self.failure.get("step")
            return f"{self.failure['kind']} in {step}" if step else str(self.failure["kind"])
        if self.state in (None, "FAILED", "COMPLETED") and self.failure is None:
            return f"lost ({self.state})" if self.state else "lost"
        return self.end

    @property
    def sentence(self) -> str:
        return str(self.failure["error"]) if self.failure is not None else self.end

    @property
    def same_again(self) -> bool:
        """Whether the rank's own code has failed with the very same error as the time before."""
        if self.end != "FAILED" or self.failure is None or self.before is None:
            return False
        return (self.failure["kind"], self.failure["error"]) == (self.before["kind"], self.before["error"])
