"""Assigns shards to ranks. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from stagger.pipeline import Shard, ShardBy


def assign(shards: Sequence[Shard], tasks: int, shard_by: ShardBy, per_job: int = 1) -> list[list[Shard]]:
    """Assign every shard to exactly one rank. Each rank keeps the order of `shards`.

    `count` is round robin, datatrove's rule: rank r reads shards r, r + tasks, r + 2 tasks, ...
    `bytes` balances bytes: the largest shard goes first, to the least loaded rank (LPT). The fullest rank gets at most
    4/3 - 1/(3 tasks) times its load under the best assignment (Graham 1969). Where a job runs `per_job` consecutive
    ranks, jobs are balanced in the same way: the fullest rank goes first, to the least loaded job that has room.
    """
    if shard_by == "count":
        return [list(shards[rank::tasks]) for rank in range(tasks)]
    ranks = deal([shard.size for shard in shards], [len(shards)] * tasks)
    if per_job > 1:
        loads = [sum(shards[index].size for index in mine) for mine in ranks]
        room = [min(per_job, tasks - first) for first in range(0, tasks, per_job)]
        ranks = [ranks[rank] for job in deal(loads, room) for rank in job]
    return [[shards[index] for index in sorted(mine)] for mine in ranks]


def deal(sizes: Sequence[int], room: Sequence[int]) -> list[list[int]]:
    """Deal items to bins by LPT: the largest first, to the least loaded bin of those with room for one more.

    `room[b]` is the number of items that bin b can take; together the bins have room for all. Returns the indices of
    the items in each bin, largest first.
    """
    loads = [(0, one) for one in range(len(room))]
    bins: list[list[int]] = [[] for _ in room]
    for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        load, one = loads[0]
        bins[one].append(item)
        if len(bins[one]) < room[one]:
            heapq.heapreplace(loads, (load + sizes[item], one))
        else:
            heapq.heappop(loads)
    return bins
