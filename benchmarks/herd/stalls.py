"""Which burst does the simulation of 1000 jobs at once lack? Requests of its jobs on a machine that is busy, or stalls.

The simulated starts of `backend_limit: 75` with 1000 of 8000 jobs at once are delayed in two ways: by a queue for two
processors, which each start needs for some time; and by moments in which the machine starts nothing.
"""

from __future__ import annotations

import argparse
import heapq
import sys
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from benchmarks.kit import measure
from stagger.start.account import most_within
from stagger.start.herd import Herd, simulate

REQUESTS, PROCESSORS, EVERY_S = 6, 2, 30.0

HERD = Herd(8000, "spread", 100, REQUESTS, 75.0, throttle=1000, task_s=0.5, hold_s=100, cycle_s=1.0)

#: Seconds of a processor that a start needs, and seconds that a stall lasts.
STARTS_S, STALLS_S = (0.05, 0.1, 0.15, 0.18, 0.2), (0.3, 0.5, 0.6, 0.7, 0.8, 1.0)


def peak(starts: Sequence[float], start_s: float, stalled: Callable[[float], float], seed: int = 0) -> int:
    """The peak of requests in one second. `stalled` delays a moment to the end of the stall in which it lies."""
    random = Random(seed)
    free = [0.0] * PROCESSORS
    requests = []
    for start in starts:
        begun = stalled(max(start, heapq.heappop(free)))
        needed = start_s * random.uniform(0.7, 1.3)
        heapq.heappush(free, begun + needed)
        requests += [begun + needed * (0.6 + 0.4 * number / REQUESTS) for number in range(REQUESTS)]
    return most_within(sorted(requests), 1.0)


def stall(seconds: float) -> Callable[[float], float]:
    """The machine starts nothing in the first `seconds` of every EVERY_S."""
    return lambda moment: moment + max(0.0, seconds - moment % EVERY_S)


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    outcome = simulate(HERD)
    results: dict[str, Any] = {
        "peak without either": most_within(outcome.requests, 1.0),
        "peak by seconds of a processor per start": {
            s: peak(outcome.starts, s, lambda moment: moment) for s in STARTS_S
        },
        "peak by seconds of a stall": {s: peak(outcome.starts, 0.05, stall(s)) for s in STALLS_S},
    }
    return measure.report(options, results, [])


if __name__ == "__main__":
    sys.exit(main())
