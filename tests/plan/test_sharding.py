"""Which rank gets which shard."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stagger.pipeline import Shard, ShardBy
from stagger.plan.sharding import assign

sizes = st.lists(st.integers(0, 10**12), max_size=60)


@given(sizes, st.integers(1, 20), st.sampled_from(["count", "bytes"]))
def test_every_shard_goes_to_exactly_one_rank(sizes: list[int], tasks: int, shard_by: ShardBy) -> None:
    shards = [Shard(f"{i:03d}", size) for i, size in enumerate(sizes)]
    ranks = assign(shards, tasks, shard_by)
    assert len(ranks) == tasks
    assert sorted(shard for rank in ranks for shard in rank) == shards
    assert all(rank == sorted(rank) for rank in ranks)


@given(sizes.filter(any), st.integers(1, 20))
def test_bytes_are_evened_out(sizes: list[int], tasks: int) -> None:
    """Graham's bound, relative to lower bounds that no assignment can beat."""
    ranks = assign([Shard(f"{i:03d}", size) for i, size in enumerate(sizes)], tasks, "bytes")
    fullest = max(sum(shard.size for shard in rank) for rank in ranks)
    largest = sorted(sizes, reverse=True)
    pair = largest[tasks - 1] + largest[tasks] if len(largest) > tasks else 0
    assert fullest <= (4 / 3) * max(sum(sizes) / tasks, largest[0], pair) + sum(sizes) / tasks * 1e-9 + largest[0] / 3


def test_round_robin_is_datatroves_rule() -> None:
    shards = [Shard(name, 1) for name in "abcdefg"]
    assert [[s.name for s in rank] for rank in assign(shards, 3, "count")] == [list("adg"), list("be"), list("cf")]
