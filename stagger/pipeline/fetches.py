"""Which requests fetch a shard from remote storage: one, or several for ranges of a large one. Pure arithmetic.

The planner counts with the same functions (plan/requests.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from stagger.storage.storage import connections_to

#: Bytes per range of a large shard. At 90 MB/s a connection and 30 ms before the first byte, two ranges in flight
#: bring 134 MB/s; ranges of 4 MiB need three, and twice the requests (benchmarks/s3_reading).
RANGE_BYTES = 8 * 2**20

#: Larger shards are fetched in ranges: of shards up to this size, the read-ahead holds several whole ones.
LARGE_BYTES = 2 * RANGE_BYTES

#: Requests per second that ranges take at the pace of one core. A task with a smaller share fetches shards whole.
RANGE_RATE = 25.0


def range_bytes(path: str, read_ahead: int, share: float) -> int:
    """The size of the ranges in which large shards below `path` are fetched; 0 if each is fetched whole.

    `read_ahead` is the size of the read-ahead in bytes, `share` the task's requests per second (0: no limit).
    """
    if connections_to(path) == 1 or read_ahead < 2 * RANGE_BYTES or 0 < share < RANGE_RATE:
        return 0
    return RANGE_BYTES


def parts(size: int, range_size: int) -> int:
    """Number of requests that fetch a shard of `size` bytes.

    >>> parts(16 * 2**20, RANGE_BYTES), parts(17 * 2**20, RANGE_BYTES), parts(10**9, 0), parts(0, 0)
    (1, 3, 1, 0)
    """
    return math.ceil(size / range_size) if range_size and size > LARGE_BYTES else min(size, 1)


def spans(size: int, range_size: int) -> Iterator[tuple[int, int]]:
    """Start and end (exclusive) of each part of a shard, all about as long.

    >>> list(spans(10, 0)), list(spans(0, 0)), [end - start for start, end in spans(20 * 2**20, RANGE_BYTES)]
    ([(0, 10)], [], [6990507, 6990507, 6990506])
    """
    count = parts(size, range_size)
    length = math.ceil(size / count) if count else 1
    for start in range(0, size, length):
        yield start, min(start + length, size)
