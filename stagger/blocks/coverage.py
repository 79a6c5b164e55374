"""Whether a swarm serves all blocks, and how long its users wait when it does not. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from stagger.blocks.server.records import View
from stagger.errors import StaggerError, plural
from stagger.ranks import format_ranks

#: Seconds for which users wait by default when no job of the swarm is queued or running.
PATIENCE_S = 1800.0


class SwarmGone(StaggerError):
    """Blocks of a swarm had no server for too long. The rank may succeed when it is retried."""

    exit_status = 1


@dataclass(frozen=True)
class Gap:
    """Blocks without a server. `seconds` since that was first seen; `has_jobs`: whether jobs of the swarm are queued or
    running, None if unknown; `is_over`: whether the users' patience has ended.
    """

    swarm: str
    blocks: tuple[int, ...]
    seconds: float
    has_jobs: bool | None
    is_over: bool

    @property
    def missing(self) -> str:
        """The blocks, in words."""
        return f"{plural(len(self.blocks), 'block')} {format_ranks(self.blocks)} of {self.swarm}"

    def __str__(self) -> str:
        jobs = {True: "jobs of it are queued or running", False: "no job of it is queued or running", None: ""}
        why = f"; {jobs[self.has_jobs]}" if jobs[self.has_jobs] else ""
        has = "has" if len(self.blocks) == 1 else "have"
        return f"{self.missing} {has} had no server for {self.seconds:,.0f} s{why}"

    def error(self, now: float) -> SwarmGone:
        """The error with which a rank gives up. `now` is in seconds since the epoch.

        It names the time, so that it is not the same as that of an earlier try, which would not be retried.
        """
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now - self.seconds))
        return SwarmGone(f"{self}, since {since} (blocks.patience).")


class Coverage:
    """Watches the blocks of one swarm, for one user. Times are those of a monotonic clock, in seconds.

    Args:
        swarm: the name of the swarm's stage.
        total_blocks: of the model.
        patience_s: seconds after which users give up; None for PATIENCE_S while no job of the swarm is queued or
            running, and for ever while some are.
    """

    def __init__(self, swarm: str, total_blocks: int, patience_s: float | None = None) -> None:
        self.swarm = swarm
        self.total_blocks = total_blocks
        self.patience_s = patience_s
        self._since: float | None = None

    def see(
        self,
        view: View,
        now: float,
        has_jobs: Callable[[], bool | None] = lambda: None,
        without: Collection[str] = (),
    ) -> Gap | None:
        """The gap in the view; None if all blocks are served.

        `has_jobs` answers whether jobs of the swarm are queued or running (None: unknown), and is asked only in a gap.
        `without` are servers that this user has given up: their blocks count only if others serve them, too.
        """
        blocks = missing_blocks(view, self.total_blocks, without)
        if not blocks:
            self._since = None
            return None
        self._since = now if self._since is None else self._since
        seconds, jobs = now - self._since, has_jobs()
        over = seconds > PATIENCE_S and not jobs if self.patience_s is None else seconds > self.patience_s
        return Gap(self.swarm, tuple(blocks), seconds, jobs, over)


def missing_blocks(view: View, total_blocks: int, without: Collection[str] = ()) -> list[int]:
    """The blocks that no server serves, ascending; servers `without` do not count."""
    served: set[int] = set()
    for span in view.online():
        if span.server_id not in without:
            served.update(range(span.start, span.end))
    return [block for block in range(total_blocks) if block not in served]
