"""How and why the latest launch of a failed rank ended."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from signal import Signals

from stagger.errors import one_line
from stagger.ranks import format_ranks, ranks_text
from stagger.rundir.launch_records import Group
from stagger.rundir.records import Failure
from stagger.slurm.states import counts_as
from stagger.task.crew import death_reason, signal_name

#: Exceptions of a task that ran out of memory where Slurm does not enforce a limit, and the kind that a crew records.
MEMORY_ERRORS = frozenset({"MemoryError", "ArrowMemoryError", "OUT_OF_MEMORY"})

#: The messages with which Slurm or the kernel reports in a job's output that it was killed for its memory.
OUT_OF_MEMORY = re.compile(r"oom[-_ ]kill|out of memory|exceeded (job )?memory limit", re.IGNORECASE)

#: What a job prints when it ends before Python starts (environment.sh.j2, array.sbatch.j2).
NOT_STARTED = re.compile(
    r"^stagger: (the environment could not be set up|Python could not be started) on node ([^\s:]+)"
    r"(?:: (.{1,1000}?) ended with exit status (\d+))?$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class NotStarted:
    """Why a job ended before Python started, and on which node; None if on none."""

    node: str | None
    why: str


#: Slurm fails a job that it finds impossible to place only once it tries to.
UNPLACED = NotStarted(
    None,
    "its job never got a node, and Slurm has ended it: no nodes together have what it requests (executor.cpus_per_task,"
    " mem_per_cpu_gb, gpus_per_task, nodes_per_job, sbatch.constraint)",
)


def looks_out_of_memory(text: str) -> bool:
    """Whether the end of a job's output reports that the job was killed for its memory.

    >>> looks_out_of_memory("slurmstepd: error: Detected 1 oom_kill event in StepId=65.batch.")
    True
    """
    return OUT_OF_MEMORY.search(text) is not None


def not_started(text: str) -> NotStarted | None:
    r"""Why a job ended before Python started, from the end of its output; None if it started.

    >>> why = "stagger: the environment could not be set up on node n1: test -e /x ended with exit status 1"
    >>> not_started(f"no such module\n{why}\n")
    NotStarted(node='n1', why="the environment could not be set up: 'test -e /x' ended with exit status 1")
    """
    found = NOT_STARTED.search(text)
    if found is None:
        return None
    command = f": {one_line(found[3])!r} ended with exit status {found[4]}" if found[3] else ""
    return NotStarted(found[2], f"{found[1]}{command}")


@dataclass(frozen=True)
class Failed:
    """A rank whose latest launch failed.

    tried: the group, with its resources, that the rank was launched in.
    state: Slurm's final state; None if unknown.
    failure: the rank's own failure record; None if it left none.
    before: the failure record of the previous launch, if the latest one was its automatic retry.
    not_started: why its job ended before Python started, if that is why it left no record.
    signal: the signal that ended its job, if it left no record; 0 if none is known.
    """

    rank: int
    tried: Group
    state: str | None
    failure: Failure | None
    before: Failure | None = None
    not_started: NotStarted | None = None
    signal: int = 0

    @property
    def node(self) -> str | None:
        """The node, as Slurm calls it, on which the rank failed; None if unknown."""
        if self.failure is not None:
            return self.failure.get("host")
        return None if self.not_started is None else self.not_started.node

    @property
    def end(self) -> str:
        """An `EndState`, or CANCELLED for a rank that a user cancelled.

        The rank's own record takes precedence: in a packed job, the job's end is not that of each rank.
        """
        if self.failure is not None and self.failure["kind"] != "interrupted":
            return "OUT_OF_MEMORY" if self.failure["kind"] in MEMORY_ERRORS else "FAILED"
        end = counts_as(self.state)
        if self.failure is not None and end in ("FAILED", "NODE_FAIL"):
            # A signal made it end: SIGUSR2 is Slurm's warning before the time limit, any other a preemption.
            return "TIMEOUT" if self.failure.get("signal") == Signals.SIGUSR2.name else "PREEMPTED"
        return end

    @property
    def reason(self) -> str:
        """The reason in a few words: `OUT_OF_MEMORY`, `ValueError in keep_long`, `lost (FAILED)`."""
        if self.failure is not None and self.failure["kind"] != "interrupted":
            step = self.failure.get("step")
            return f"{self.failure['kind']} in {step}" if step else str(self.failure["kind"])
        if self.signal:
            return f"killed by {signal_name(self.signal)}"
        if self.state in (None, "FAILED", "COMPLETED") and self.failure is None:
            return f"lost ({self.state})" if self.state else "lost"
        return self.end

    @property
    def sentence(self) -> str:
        if self.failure is not None:
            return str(self.failure["error"])
        if self.not_started is not None:
            return self.not_started.why + (f", on node {self.not_started.node}" if self.not_started.node else "")
        if self.signal:
            return f"its job {death_reason(-self.signal)}"
        return f"its job ended without a failure record ({self.reason})"

    @property
    def cause(self) -> tuple[str, ...]:
        """What ranks that failed for the same reason have in common: kind, step and line of the error, or the end."""
        if self.failure is None:
            return ("", self.reason, self.not_started.why if self.not_started else "")
        return (self.failure["kind"], self.failure.get("step") or "", self.failure.get("where") or "")

    @property
    def same_again(self) -> bool:
        """Whether the rank's own code failed with the same error as in the previous launch."""
        if self.end != "FAILED" or self.failure is None or self.before is None:
            return False
        return (self.failure["kind"], self.failure["error"]) == (self.before["kind"], self.before["error"])


@dataclass(frozen=True)
class FailureGroup:
    """Ranks that failed for the same reason, ascending. Their sentences may differ, for example in a shard's name."""

    members: list[Failed]

    @property
    def first(self) -> Failed:
        return self.members[0]

    @property
    def ranks(self) -> list[int]:
        return [one.rank for one in self.members]

    @property
    def where(self) -> str:
        """The line of the user's code that the error passed through; empty if there is none."""
        failure = self.first.failure
        return failure.get("where", "") if failure is not None else ""

    @property
    def error(self) -> str:
        """The first rank's sentence, with the line of the user's code, and how many others differ from it."""
        count = len({one.sentence for one in self.members}) - 1
        where = f" ({self.where})" if self.where else ""
        return f"{self.first.sentence}{where}" + (f", and {count:,} more like it" if count else "")

    def __str__(self) -> str:
        return f"{ranks_text(format_ranks(self.ranks), len(self.ranks))}: {self.error}"


def grouped(failed: Sequence[Failed]) -> list[FailureGroup]:
    """Failed ranks, grouped by their cause; the largest group first."""
    groups: dict[tuple[str, ...], list[Failed]] = {}
    for one in failed:
        groups.setdefault(one.cause, []).append(one)
    return [FailureGroup(members) for members in sorted(groups.values(), key=len, reverse=True)]
