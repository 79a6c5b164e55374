"""Assigns shards to ranks. Pure."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from stagger.pipeline import Shard, ShardBy


def task_count(sizes: Sequence[int], bytes_per_task: int | None) -> int:
    """The number of ranks for shards of these sizes in bytes: one a shard, or as many as needed for about
    `bytes_per_task` each. A shard of that size or more has a rank of its own.

    >>> task_count([5, 9, 1], None), task_count([40, 5, 9, 1], 10), task_count([3, 3, 3], 100)
    (3, 3, 1)
    """
    if bytes_per_task is None:
        return len(sizes)
    large = sum(size >= bytes_per_task for size in sizes)
    return max(1, large + math.ceil(sum(size for size in sizes if size < bytes_per_task) / bytes_per_task))


def assign(shards: Sequence[Shard], tasks: int, shard_by: ShardBy) -> list[list[Shard]]:
    """Assign every shard to exactly one rank. Each rank keeps the order of `shards`.

    `count` is round robin, datatrove's rule: rank r reads shards r, r + tasks, r + 2 tasks, ...
    `bytes` balances bytes: the largest shard goes first, to the least loaded rank (LPT). The fullest rank gets at most
    4/3 - 1/(3 tasks) times its load under the best assignment (Graham 1969).
    """
    if shard_by == "count":
        return [list(shards[rank::tasks]) for rank in range(tasks)]
    loads = [(0, rank) for rank in range(tasks)]
    indices: list[list[int]] = [[] for _ in range(tasks)]
    for index in sorted(range(len(shards)), key=lambda i: -shards[i].size):
        load, rank = loads[0]
        heapq.heapreplace(loads, (load + shards[index].size, rank))
        indices[rank].append(index)
    return [[shards[index] for index in sorted(mine)] for mine in indices]
