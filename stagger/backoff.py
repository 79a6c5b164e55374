"""Exponential backoff with full jitter, for storage, for Slurm, and for the simulation of herds.

Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

from random import Random

#: Upper bounds of the first wait, and of any wait, in seconds.
BASE_S = 0.2

CAP_S = 30.0

#: Upper bounds of the first wait, the second, ... in seconds. All further waits have the last one.
WAITS_S = [min(CAP_S, BASE_S * 2.0**failures) for failures in range(9)]


def full_jitter(failures: int, random: Random) -> float:
    """Draw the wait, in seconds, after `failures` earlier failures in a row: 0 after the first failure."""
    return random.random() * WAITS_S[min(failures, len(WAITS_S) - 1)]
