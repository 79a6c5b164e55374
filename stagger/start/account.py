"""Start times of a stage's jobs, planned and measured, from their completion records."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import Any

#: Maximum length of a histogram, in seconds. Later starts, as in a throttled run, count only towards peaks and span.
HISTOGRAM_S = 600


def start_account(attempts: Sequence[Hashable], began: Sequence[float], delays: Sequence[float]) -> dict[str, Any]:
    """Peaks and histograms of job starts: `planned` by the delays alone, `measured` by the times when delays ended.

    The two differ by the times at which Slurm started the jobs. Each attempt of a job counts once, however many ranks
    it ran.

    The arguments hold what tells the attempt of each rank apart, its script_started, and its delay_s.
    """
    rows = dict(zip(attempts, range(len(attempts)), strict=True)).values()
    planned = sorted(map(delays.__getitem__, rows))
    measured = sorted(began[row] + delays[row] for row in rows)
    return {"jobs": len(rows), "planned": described(planned), "measured": described(measured)}


def described(times: Sequence[float]) -> dict[str, Any]:
    """Summarize ascending times, in seconds: the peaks within any 1 s and any 100 ms, the span, and counts per second.

    >>> described([10.0, 10.05, 10.9, 12.5])
    {'peak_1s': 3, 'peak_100ms': 2, 'span_s': 2.5, 'per_second': [3, 0, 1]}
    """
    if not times:
        return {"peak_1s": 0, "peak_100ms": 0, "span_s": 0.0, "per_second": []}
    first = times[0]
    last = min(int(times[-1] - first), HISTOGRAM_S - 1)
    ends = [bisect_left(times, second, key=lambda time: int(time - first)) for second in range(last + 2)]
    return {
        "peak_1s": most_within(times, 1.0),
        "peak_100ms": most_within(times, 0.1),
        "span_s": round(times[-1] - first, 3),
        "per_second": [end - begin for begin, end in pairwise(ends)],
    }


def most_within(times: Sequence[float], span: float) -> int:
    """The peak number of times within any interval of length `span`, its end excluded. `times` ascend."""
    most, starts = 0, iter(times)
    start = next(starts, 0.0)
    for time in times:
        if start > time - span:  # The interval that ends here holds one more than any before.
            most += 1
        else:
            start = next(starts, start)
    return most
