"""Assigns shards to ranks. Pure."""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Sequence

from stagger.pipeline import ShardBy
from stagger.pipeline.shard_table import RankShards, ShardTable


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


def assign(shards: ShardTable, tasks: int, shard_by: ShardBy, per_job: int = 1) -> RankShards:
    """Assign every shard to exactly one rank. Each rank keeps the order of `shards`.

    `count` is round robin, datatrove's rule: rank r reads shards r, r + tasks, r + 2 tasks, ...
    `bytes` balances bytes: the largest shard goes first, to the least loaded rank (LPT). The fullest rank gets at most
    4/3 - 1/(3 tasks) times its load under the best assignment (Graham 1969). Where a job runs `per_job` consecutive
    ranks, jobs are balanced in the same way: the fullest rank goes first, to the least loaded job that has room.
    """
    if shard_by == "count":
        return RankShards(shards, [range(rank, len(shards), tasks) for rank in range(tasks)])
    sizes = shards.sizes
    ranks = deal(sizes, [len(shards)] * tasks)
    if per_job > 1:
        loads = [sum(map(sizes.__getitem__, mine)) for mine in ranks]
        room = [min(per_job, tasks - first) for first in range(0, tasks, per_job)]
        ranks = [ranks[rank] for job in deal(loads, room) for rank in job]
    for number, mine in enumerate(ranks):
        ranks[number] = array("Q", sorted(mine))
    return RankShards(shards, ranks)


def deal(sizes: Sequence[int], room: Sequence[int]) -> list[array[int]]:
    """Deal items to bins by LPT: the largest first, to the least loaded bin of those with room for one more.

    `room[b]` is the number of items that bin b can take; together the bins have room for all. Returns the indices of
    the items in each bin, largest first. An item of size 0 counts as 1: it costs something, too.
    """
    count = len(room)
    loads = list(range(count))  # Each is the load times the number of bins, plus the bin: one number compares fast.
    bins = [array("Q") for _ in room]
    for item in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        load = loads[0]
        one = load % count
        bins[one].append(item)
        if len(bins[one]) < room[one]:
            heapq.heapreplace(loads, load + (sizes[item] or 1) * count)
        else:
            heapq.heappop(loads)
    return bins
