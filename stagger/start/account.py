"""How a stage's jobs really started, beside how they were to: from what each wrote down of its delay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: Seconds of a histogram at most: later starts, those of a throttled run, are summed up by the peaks alone.
HISTOGRAM_S = 600


def start_account(completions: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Peaks and histogram of the jobs' starts: `planned`, by their delays alone, and `measured`, when delays ended.

    What lies between the two is when Slurm began the jobs. Each attempt of a job counts once, whatever ranks it ran.
    """
    jobs = {(r["job"], r["launch"], r["restart"]): (r["script_started"], r["delay_s"]) for r in completions}
    planned = sorted(float(delay) for _, delay in jobs.values())
    measured = sorted(began + delay for began, delay in jobs.values())
    return {"jobs": len(jobs), "planned": described(planned), "measured": described(measured)}


def described(times: Sequence[float]) -> dict[str, Any]:
    """Ascending times, in seconds, as the most in any second and in any 100 ms, their span, and a count per second.

    >>> described([10.0, 10.05, 10.9, 12.5])
    {'peak_1s': 3, 'peak_100ms': 2, 'span_s': 2.5, 'per_second': [3, 0, 1]}
    """
    if not times:
        return {"peak_1s": 0, "peak_100ms": 0, "span_s": 0.0, "per_second": []}
    seconds = Counter(int(time - times[0]) for time in times)
    last = min(max(seconds), HISTOGRAM_S - 1)
    return {
        "peak_1s": most_within(times, 1.0),
        "peak_100ms": most_within(times, 0.1),
        "span_s": round(times[-1] - times[0], 3),
        "per_second": [seconds[second] for second in range(last + 1)],
    }


def most_within(times: Sequence[float], span: float) -> int:
    """The most of some ascending times that lie within any span, its end excluded."""
    most = 0
    for index, time in enumerate(times):
        if times[index - most] > time - span:  # One more than ever before fits into the span that ends here.
            most += 1
    return most
