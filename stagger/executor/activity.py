"""What of a stage is running or queued now."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Activity:
    """What of a stage is under way right now, and who to name when it is in the way.

    `starting`: running, but for no longer than the window, so perhaps still in the delay: rank -> its launch, and the
    first rank of its job. `requeued`: pending once more. `ending` while the job that runs after a stage's arrays is
    still to end: it may launch further ones.
    """

    running: set[int] = field(default_factory=set)
    starting: dict[int, tuple[int, int]] = field(default_factory=dict)
    pending: set[int] = field(default_factory=set)
    requeued: set[int] = field(default_factory=set)
    holders: list[str] = field(default_factory=list)
    ending: bool = False

    @property
    def ranks(self) -> set[int]:
        return self.running | self.starting.keys() | self.pending | self.requeued

    def add(self, other: Activity) -> None:
        """Make it that of two executors' launches of the same stage."""
        for states in ("running", "starting", "pending", "requeued"):
            getattr(self, states).update(getattr(other, states))
        self.holders += other.holders
        self.ending |= other.ending
