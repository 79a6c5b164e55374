"""When a job starts: how long it sleeps before it touches anything remote.

Pure: the standard library only, and little of that, since every task imports it. The job script draws the same delays
in bash (`slurm_templates/start.sh.j2`); tests compare the two.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Literal, NamedTuple

StartPolicy = Literal["uniform", "spread"]

#: (most tasks, window in seconds): the heuristic of the 8000-task FineWeb runs, scaled down for smaller arrays.
AUTO_WINDOWS = ((1, 0), (100, 30), (1000, 60))
LARGEST_AUTO_WINDOW = 180

#: 2^32 divided by the golden ratio, odd: multiples of it modulo 2^32 are the most even of all low-discrepancy sequences
#: (Knuth, The Art of Computer Programming 3, section 6.4: Fibonacci hashing), and so is any run of neighbours.
GOLDEN = 2654435769

#: Odd, and unrelated to GOLDEN: what a restart adds to the salt.
RESTART_SALT = 2246822519

#: Share of a limit that is planned for: the rest is for what else asks the storage.
LOAD = 0.8

#: Seconds between two rounds of Slurm's backfill scheduler (bf_interval's default): what it starts at once, when jobs
#: of a throttled array have ended, is spread over that.
SCHEDULER_CYCLE_S = 30

#: Beyond this many seconds, sleeping on allocated processors costs more than other ways of starting slowly.
LONG_WINDOW_S = 300

#: No window is longer: a day. The job script's 64 bits of milliseconds would carry 24 of them.
LONGEST_WINDOW_S = 86_400


class Slots(NamedTuple):
    """How the jobs of one array sleep, under `spread`. All arrays of a launch are one wave.

    Its first `wave` jobs are numbers `first`, `first` + 1, ... of the launch's first wave, which takes `window_s`.
    Later ones start when others end, and are spread over `later_s`.
    """

    window_s: int
    first: int
    wave: int
    later_s: int
    salt: int


def auto_window(tasks: int) -> int:
    """Seconds over which the starts of `tasks` tasks are spread: 0 | 30 | 60 | 180 for 1 | <=100 | <=1000 | more.

    >>> [auto_window(n) for n in (1, 2, 100, 101, 1000, 1001, 8000)]
    [0, 30, 30, 60, 60, 180, 180]
    """
    for most, window in AUTO_WINDOWS:
        if tasks <= most:
            return window
    return LARGEST_AUTO_WINDOW


def kernel_bits() -> int:
    """32 random bits from the kernel."""
    return int.from_bytes(os.urandom(4), "little")


def uniform_delay(window: int, bits: Callable[[], int] = kernel_bits) -> int:
    """A draw of randint(0, window): whole seconds, both ends included, unbiased, from a source of 32 random bits.

    Rejected above the largest multiple of `window + 1`: a plain modulo would favour small delays.
    """
    outcomes = window + 1
    limit = 2**32 - 2**32 % outcomes
    while (draw := bits()) >= limit:
        pass
    return draw % outcomes


def spread_delay_ms(index: int, window_s: int, salt: int = 0) -> int:
    """The slot of job `index` in a window: milliseconds, 0 <= delay < 1000 window_s. No randomness but the salt's.

    >>> [spread_delay_ms(index, 180) for index in range(4)]
    [0, 111246, 42492, 153738]
    """
    return ((index * GOLDEN + salt) % 2**32 * window_s * 1000) >> 32


def slot_ms(slots: Slots, index: int, restart: int = 0) -> int:
    """The delay of element `index` of an array, in milliseconds. A restarted job draws another slot."""
    salt = slots.salt + restart * RESTART_SALT
    if index < slots.wave:
        return spread_delay_ms(slots.first + index, slots.window_s, salt)
    return spread_delay_ms(index, slots.later_s, salt)


def window_for_limit(tasks: int, requests_per_start: float, limit: float) -> float:
    """Seconds in which `tasks` starts of so many requests each stay below 0.8 `limit` requests a second: N R / (0.8 L).

    >>> window_for_limit(8000, 4, 3500), window_for_limit(8000, 4, 50)
    (11.428571428571429, 800.0)
    """
    return tasks * requests_per_start / (LOAD * limit)


def throttle_for_limit(task_s: float, requests_per_task: float, limit: float) -> int:
    """How many tasks of `task_s` seconds may run at once in steady state: K <= 0.8 L T / R, and one at least.

    >>> throttle_for_limit(600, 10, 50)
    2400
    """
    return max(1, math.floor(LOAD * limit * task_s / requests_per_task))
