"""Start delays: how long a job sleeps before it touches anything remote.

Pure, with few imports from the standard library, since every task imports it. The job script computes the same delays
in bash (`slurm_templates/start.sh.j2`); tests compare the two.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Literal, NamedTuple

StartPolicy = Literal["uniform", "spread"]

#: (maximum number of tasks, window in seconds): the heuristic of the 8000-task FineWeb runs, scaled down for smaller
#: arrays.
AUTO_WINDOWS = ((1, 0), (100, 30), (1000, 60))
LARGEST_AUTO_WINDOW = 180

#: 2^32 divided by the golden ratio, odd. Its multiples modulo 2^32 are the most even of all low-discrepancy sequences,
#: and so is any run of neighbours (Knuth, The Art of Computer Programming 3, section 6.4: Fibonacci hashing).
GOLDEN = 2654435769

#: Each restart of a job adds this to the salt. It is odd, and unrelated to GOLDEN.
RESTART_SALT = 2246822519

#: Share of a limit that starts may use. The rest is left for all other requests to the storage.
LOAD = 0.8

#: Seconds between two rounds of Slurm's backfill scheduler (default of bf_interval). In a throttled array, each round
#: starts the successors of all jobs that have ended; their starts are spread over this time.
SCHEDULER_CYCLE_S = 30

#: A window longer than this, in seconds, costs more than other ways of starting slowly: jobs sleep on their processors.
LONG_WINDOW_S = 300

#: Maximum window, in seconds: one day. The 64-bit arithmetic of the job script would overflow after 24 days.
LONGEST_WINDOW_S = 86_400


class Slots(NamedTuple):
    """The slots of one array's jobs under `spread`. All arrays of a launch form one wave.

    The first `wave` jobs of the array are numbers `first`, `first` + 1, ... of the launch's first wave, and are spread
    over `window_s` seconds. Later jobs start when others end, and are spread over `later_s` seconds.
    """

    window_s: int
    first: int
    wave: int
    later_s: int
    salt: int


class Load(NamedTuple):
    """A limit by its key in a pipeline file, per second, and what each start takes of it."""

    key: str
    what: str
    each: int
    limit: float


def auto_window(tasks: int) -> int:
    """The default window for `tasks` tasks, in seconds: 0 | 30 | 60 | 180 for 1 | <=100 | <=1000 | more.

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
    """Draw randint(0, window): whole seconds, both ends included, unbiased. `bits` returns 32 random bits.

    Draws from the largest multiple of `window + 1` on are rejected: a plain modulo would favour small delays.
    """
    outcomes = window + 1
    limit = 2**32 - 2**32 % outcomes
    while (draw := bits()) >= limit:
        pass
    return draw % outcomes


def spread_delay_ms(index: int, window_s: int, salt: int = 0) -> int:
    """The slot of job `index` in a window, in milliseconds: 0 <= delay < 1000 window_s. Only `salt` is random.

    >>> [spread_delay_ms(index, 180) for index in range(4)]
    [0, 111246, 42492, 153738]
    """
    return ((index * GOLDEN + salt) % 2**32 * window_s * 1000) >> 32


def slot_ms(slots: Slots, index: int, restart: int = 0) -> int:
    """The delay of array element `index`, in milliseconds. A restarted job gets another slot."""
    salt = slots.salt + restart * RESTART_SALT
    if index < slots.wave:
        return spread_delay_ms(slots.first + index, slots.window_s, salt)
    return spread_delay_ms(index, slots.later_s, salt)


def window_for_limit(tasks: int, requests_per_start: float, limit: float) -> float:
    """The window, in seconds, that keeps N `tasks` with R `requests_per_start` each below 0.8 `limit` L: N R / (0.8 L).

    >>> window_for_limit(8000, 4, 3500), window_for_limit(8000, 4, 50)
    (11.428571428571429, 800.0)
    """
    return tasks * requests_per_start / (LOAD * limit)


def throttle_for_limit(task_s: float, requests_per_task: float, limit: float) -> int:
    """Number K of tasks of T = `task_s` seconds that may run at once in steady state: K <= 0.8 L T / R, at least 1.

    >>> throttle_for_limit(600, 10, 50)
    2400
    """
    return max(1, math.floor(LOAD * limit * task_s / requests_per_task))


def loads(requests: int, limit: float | None, operations: int, metadata_limit: float | None) -> list[Load]:
    """What each start takes of the limits that are set, if it takes anything."""
    both = [
        Load("backend_limit", "request", requests, limit or 0.0),
        Load("metadata_limit", "file-system call", operations, metadata_limit or 0.0),
    ]
    return [load for load in both if load.each and load.limit]


def share_of_limit(jobs: int, workers: int, limit: float) -> float:
    """Requests per second that each of the `workers` of each of `jobs` at once may make: 0.8 `limit`, divided evenly.

    >>> share_of_limit(10, 1, 3500)
    280.0
    """
    return LOAD * limit / (jobs * workers)
