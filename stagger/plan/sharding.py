"""Assigns shards to ranks. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from stagger.pipeline import Shard, ShardBy


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
