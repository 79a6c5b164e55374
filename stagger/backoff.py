"""Exponential backoff with full jitter: one for storage, for Slurm, and for the simulation of herds."""

from __future__ import annotations

from random import Random

#: Upper end of the first wait, and of any wait, in seconds.
BASE_S = 0.2

CAP_S = 30.0

#: Upper ends of the first wait, the second, ...; all further ones are like the last.
WAITS_S = [min(CAP_S, BASE_S * 2.0**failures) for failures in range(9)]


def full_jitter(failures: int, random: Random) -> float:
    """A draw of the wait after the n-th failure in a row, in seconds; the first is number 0."""
    return random.random() * WAITS_S[min(failures, len(WAITS_S) - 1)]
