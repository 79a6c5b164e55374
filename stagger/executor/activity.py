"""The ranks of a stage that are running or queued now."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from stagger.slurm.states import Starts

#: The fields of an Activity that are sets of ranks, or maps from ranks.
STATES = ("running", "starting", "pending", "requeued", "completing", "failing", "unknown", "waiting", "ordinary")


class Waiting(NamedTuple):
    """Why a job does not start soon: Slurm's reason, when it starts, and what the reason means in words."""

    job_id: str
    reason: str
    starts: Starts
    message: str


@dataclass
class Activity:
    """The ranks of a stage that are running or queued, by state.

    starting: ranks whose job has run no longer than the window, so that it may still sleep out its start delay:
        rank -> (launch, first rank of its job).
    requeued: ranks that Slurm has put back into the queue.
    unknown: ranks that may be running or queued, because Slurm did not answer, or hides the jobs of other users.
    waiting: why ranks wait that will not start soon.
    ordinary: Slurm's reason why pending ranks wait that start by themselves, such as Priority.
    completing: of the running ranks, those whose jobs Slurm is ending.
    failing: ranks that have failed in a job that still runs other ranks. They may run again if the job is requeued.
    holders: the jobs or processes that run the ranks, for error messages.
    ending: whether an end job is running, or queued and can start; it may launch more ranks.
    """

    running: set[int] = field(default_factory=set)
    starting: dict[int, tuple[int, int]] = field(default_factory=dict)
    pending: set[int] = field(default_factory=set)
    requeued: set[int] = field(default_factory=set)
    completing: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)
    waiting: dict[int, Waiting] = field(default_factory=dict)
    ordinary: dict[int, str] = field(default_factory=dict)
    failing: set[int] = field(default_factory=set)
    holders: list[str] = field(default_factory=list)
    ending: bool = False

    @property
    def ranks(self) -> set[int]:
        return self.running | self.starting.keys() | self.pending | self.requeued | self.failing | self.unknown

    @property
    def stuck(self) -> set[int]:
        """The ranks whose queued jobs never start as they are."""
        return {rank for rank, why in self.waiting.items() if why.starts == "never"}

    def add(self, other: Activity) -> None:
        """Merge in the activity of another executor's launches of the same stage."""
        for states in STATES:
            getattr(self, states).update(getattr(other, states))
        self.holders += other.holders
        self.ending |= other.ending


@dataclass(frozen=True)
class EndJob:
    """An end job: Slurm's state of it, empty if Slurm does not know it any more, and why it waits."""

    state: str
    reason: str = ""
