"""Quantities that change in steps over time, such as the slowest block's throughput, and their means."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

#: Pairs of a time, in seconds, and the value from then on; the value is 0 before the first.
Steps = list[tuple[float, float]]


@dataclass
class Coverage:
    """The hosts and throughput of each block now, and the slowest block's throughput up to now."""

    total_blocks: int
    steps: Steps = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hosts = np.zeros(self.total_blocks, dtype=np.int64)
        self.throughputs = np.zeros(self.total_blocks)

    def change(self, now: float, blocks: range, throughput: float, by: int) -> None:
        """Add (`by` = 1) or remove (-1) one server on `blocks`."""
        if not blocks:
            return
        self.hosts[blocks.start : blocks.stop] += by
        self.throughputs[blocks.start : blocks.stop] += by * throughput
        slowest = float(self.throughputs.min()) if self.hosts.all() else 0.0
        if self.steps and self.steps[-1][0] == now:
            self.steps.pop()
        if not self.steps or self.steps[-1][1] != slowest:
            self.steps.append((now, slowest))


def mean(steps: Steps, end_s: float) -> float:
    """Mean over 0..`end_s` seconds.

    >>> mean([(1.0, 4.0), (3.0, 2.0)], end_s=5.0)
    2.4
    """
    return means(steps, end_s, 1)[0]


def means(steps: Steps, end_s: float, parts: int) -> list[float]:
    """Means in equal parts of 0..`end_s` seconds.

    >>> means([(1.0, 4.0), (3.0, 2.0)], end_s=4.0, parts=2)
    [2.0, 3.0]
    """
    times = np.array([0.0, *(time for time, _ in steps), end_s])
    until = np.concatenate(([0.0], np.cumsum(np.diff(times) * [0.0, *(value for _, value in steps)])))
    sums: list[float] = np.diff(np.interp(np.linspace(0, end_s, parts + 1), times, until)).tolist()
    return [total * parts / end_s for total in sums]


def uncovered_s(served: Steps, room: Steps, end_s: float) -> float:
    """Seconds in which `served` is 0 while `room` is not.

    >>> uncovered_s([(2.0, 1.0), (4.0, 0.0)], [(1.0, 1.0)], end_s=5.0)
    2.0
    """
    changes, possible = dict(served), dict(room)
    times = sorted({time for time in [*changes, *possible] if time < end_s} | {end_s})
    now = can = total = 0.0
    for time, until in pairwise(times):
        now, can = changes.get(time, now), possible.get(time, can)
        total += until - time if can and not now else 0.0
    return total
