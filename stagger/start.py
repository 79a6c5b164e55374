"""When a job starts: how long it sleeps before it touches anything remote.

Pure: the standard library only, and little of that, since every task imports it.
"""

from __future__ import annotations

import os

#: (most tasks, window in seconds): the heuristic of the 8000-task FineWeb runs, scaled down for smaller arrays.
AUTO_WINDOWS = ((1, 0), (100, 30), (1000, 60))
LARGEST_AUTO_WINDOW = 180


def auto_window(tasks: int) -> int:
    """Seconds over which the starts of `tasks` tasks are spread: 0 | 30 | 60 | 180 for 1 | <=100 | <=1000 | more.

    >>> [auto_window(n) for n in (1, 2, 100, 101, 1000, 1001, 8000)]
    [0, 30, 30, 60, 60, 180, 180]
    """
    for most, window in AUTO_WINDOWS:
        if tasks <= most:
            return window
    return LARGEST_AUTO_WINDOW


def uniform_delay(window: int) -> int:
    """A draw of randint(0, window): whole seconds, both ends included, unbiased, from the kernel's random source.

    The job script draws the same way in bash (`slurm_templates/array.sbatch.j2`): 32 random bits, rejected above the
    largest multiple of `window + 1`, because a plain modulo would favour small delays.
    """
    outcomes = window + 1
    limit = 2**32 - 2**32 % outcomes
    while True:
        draw = int.from_bytes(os.urandom(4), "little")
        if draw < limit:
            return draw % outcomes
