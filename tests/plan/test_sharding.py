"""Which rank gets which shard."""

from __future__ import annotations

from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from stagger.pipeline import Shard, ShardBy
from stagger.pipeline.shard_table import RankShards, ShardTable
from stagger.plan.sharding import assign

sizes = st.lists(st.integers(0, 10**12), max_size=60)


@given(sizes, st.integers(1, 20), st.sampled_from(["count", "bytes"]), st.integers(1, 25))
def test_every_shard_goes_to_exactly_one_rank(sizes: list[int], tasks: int, shard_by: ShardBy, per_job: int) -> None:
    shards = [Shard(f"{i:03d}", size) for i, size in enumerate(sizes)]
    ranks = assign(ShardTable(shards), tasks, shard_by, per_job)
    assert len(ranks) == tasks
    assert sorted(shard for rank in ranks for shard in rank) == shards
    assert all(rank == sorted(rank) for rank in ranks)


@given(sizes.filter(any), st.integers(1, 20))
def test_bytes_are_evened_out(sizes: list[int], tasks: int) -> None:
    """Graham's bound, relative to lower bounds that no assignment can beat."""
    ranks = assign(ShardTable(Shard(f"{i:03d}", size) for i, size in enumerate(sizes)), tasks, "bytes")
    fullest = max(sum(shard.size for shard in rank) for rank in ranks)
    largest = sorted(sizes, reverse=True)
    pair = largest[tasks - 1] + largest[tasks] if len(largest) > tasks else 0
    assert fullest <= (4 / 3) * max(sum(sizes) / tasks, largest[0], pair) + sum(sizes) / tasks * 1e-9 + largest[0] / 3


@given(sizes.filter(any), st.integers(1, 20), st.integers(1, 5))
def test_jobs_of_many_ranks_are_evened_out_and_their_ranks_stay_as_even(
    sizes: list[int], jobs: int, per_job: int
) -> None:
    shards = ShardTable(Shard(f"{i:03d}", size) for i, size in enumerate(sizes))
    alone = loads(assign(shards, jobs * per_job, "bytes"))
    packed = loads(assign(shards, jobs * per_job, "bytes", per_job))
    assert sorted(packed) == sorted(alone)
    grouped = [sum(packed[first : first + per_job]) for first in range(0, jobs * per_job, per_job)]
    assert max(grouped) <= sum(packed) / jobs + max(packed)


def test_no_job_gets_all_giants() -> None:
    giants = dict(zip((0, 4, 6, 9, 14, 18), (1000, 900, 800, 700, 600, 500), strict=True))
    packed = loads(assign(ShardTable(Shard(f"{i:03d}", giants.get(i, 10)) for i in range(20)), 20, "bytes", 5))
    assert [sum(packed[first : first + 5]) for first in range(0, 20, 5)] == [1040, 940, 1330, 1330]
    assert packed == [max(packed), *packed[1:]]  # The job with the largest shard comes first.


def loads(ranks: RankShards) -> list[int]:
    return [sum(shard.size for shard in rank) for rank in ranks]


def test_empty_shards_are_spread_like_others() -> None:
    shards = ShardTable(Shard(f"{i}", 5 * (i == 0)) for i in range(6))
    dealt = assign(shards, 3, "bytes")
    assert [[shard.name for shard in rank] for rank in dealt] == [["0"], ["1", "3", "5"], ["2", "4"]]


def test_round_robin_is_datatroves_rule() -> None:
    shards = ShardTable(Shard(name, 1) for name in "abcdefg")
    assert [[s.name for s in rank] for rank in assign(shards, 3, "count")] == [list("adg"), list("be"), list("cf")]


@given(sizes, st.integers(1, 20), st.integers(1, 7))
def test_the_table_is_dealt_as_a_list_of_shards_would_be(sizes: list[int], tasks: int, per_job: int) -> None:
    """The plain algorithm, on objects: the largest first, to the least loaded."""
    shards = [Shard(f"{i:03d}", size) for i, size in enumerate(sizes)]

    def dealt(items: list[list[Shard]], room: list[int]) -> list[list[list[Shard]]]:
        bins: list[list[list[Shard]]] = [[] for _ in room]
        for item in sorted(items, key=load, reverse=True):
            free = [one for one in range(len(room)) if len(bins[one]) < room[one]]
            bins[min(free, key=lambda one: sum(load(item) or 1 for item in bins[one]))].append(item)
        return bins

    def load(shards: list[Shard]) -> int:
        return sum(shard.size for shard in shards)

    ranks = [sorted(chain.from_iterable(mine)) for mine in dealt([[one] for one in shards], [len(shards)] * tasks)]
    if per_job > 1:
        room = [min(per_job, tasks - first) for first in range(0, tasks, per_job)]
        ranks = list(chain.from_iterable(dealt(ranks, room)))
    assert list(assign(ShardTable(shards), tasks, "bytes", per_job)) == ranks
