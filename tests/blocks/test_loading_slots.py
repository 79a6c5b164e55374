"""Loading slots: servers load in the order of their claims, few at a time, and a dead one delays nobody for long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagger.blocks.placement.loading_slots import (
    PATIENCE_S,
    Loader,
    Slots,
    ahead_of,
    first_copy,
    loads_backwards,
    turns_ahead,
)
from stagger.blocks.placement.spans import ServerState
from stagger.blocks.server.records import Member, Placed, View
from stagger.blocks.server.registry import Registry
from stagger.blocks.server.slots import Queue
from stagger.storage.storage import Storage
from tests.blocks.test_server_life import Life
from tests.conftest import until
from tests.kit.claimants import record

TOTAL = 20

LOADERS = st.lists(
    st.builds(
        lambda claim, name, start, length: Loader(claim, name, range(start, min(TOTAL, start + length))),
        st.integers(1, 9),
        st.text("abc", min_size=1, max_size=3),
        st.integers(0, TOTAL - 1),
        st.integers(1, TOTAL),
    ),
    unique_by=lambda loader: loader.server_id,
)


def loading(loaders: list[Loader], slots: Slots, served: list[range]) -> list[Loader]:
    """The servers that may load, in the order of their claims."""
    found = (
        loader
        for loader in loaders
        if not turns_ahead(loader, ahead_of(loader, loaders), slots, total_blocks=TOTAL, served=served)
    )
    return sorted(found, key=lambda loader: loader.order)


@given(loaders=LOADERS, slots=st.integers(1, 5))
def test_the_k_servers_with_the_earliest_claims_load(loaders: list[Loader], slots: int) -> None:
    assert loading(loaders, slots, []) == sorted(loaders, key=lambda loader: loader.order)[:slots]


@given(loaders=LOADERS)
def test_before_the_first_copy_is_served_those_load_that_bring_a_block_or_bring_the_last_one_earlier(
    loaders: list[Loader],
) -> None:
    chosen = loading(loaders, "auto", [])
    assert {block for one in chosen for block in one.span} == {block for one in loaders for block in one.span}
    for number, loader in enumerate(chosen):
        before = first_copy(chosen[:number], range(TOTAL))
        with_it = first_copy(chosen[: number + 1], range(TOTAL))
        assert set(loader.span) - before.place.keys() or with_it.last < before.last


def test_two_servers_share_a_long_span_and_meet_in_its_middle() -> None:
    long, other, half = Loader(1, "a", range(12)), Loader(2, "b", range(12, 20)), Loader(3, "c", range(4, 12))
    again = Loader(4, "d", range(4, 12))
    assert loading([long, other, half, again], "auto", []) == [long, other, half]
    assert not loads_backwards(long, [], "auto", total_blocks=TOTAL, served=[])
    assert loads_backwards(half, [long, other], "auto", total_blocks=TOTAL, served=[])
    assert not loads_backwards(half, [long, other], 3, total_blocks=TOTAL, served=[])
    copy = first_copy([long, other, half], range(TOTAL))
    assert (copy.last, copy.place[5], copy.place[6]) == (8, 6, 6)


@given(loaders=LOADERS, copies=st.integers(1, 3))
def test_then_as_many_load_as_have_the_blocks_that_are_served(loaders: list[Loader], copies: int) -> None:
    chosen = loading(loaders, "auto", [range(TOTAL)] * copies)
    blocks = [len(loader.span) for loader in chosen]
    assert len(chosen) == len(loaders) or sum(blocks) >= copies * TOTAL
    assert sum(blocks[:-1]) < copies * TOTAL


def test_nobody_waits_for_a_block_that_nobody_brings() -> None:
    """Block 19 lost its server, and no other has claimed it yet."""
    one, two = Loader(1, "a", range(5)), Loader(2, "b", range(5))
    assert loading([one, two], "auto", [range(19)]) == [one, two]


def test_a_server_that_hangs_while_it_loads_holds_its_slot_for_ten_minutes_only() -> None:
    members = {name: Member(Placed(0, 4, 1.0), claim, None) for claim, name in enumerate(("a", "b", "c"), 1)}
    queue = Queue("c", 8, 1)
    assert queue.wait_s(View(3, members), now=0) > 0
    assert queue.wait_s(View(3, members), now=PATIENCE_S - 1) > 0
    del members["a"]
    assert queue.wait_s(View(3, members), now=PATIENCE_S + 1) > 0
    assert queue.wait_s(View(3, members), now=2 * PATIENCE_S) > 0
    assert queue.wait_s(View(3, members), now=2 * PATIENCE_S + 2) == 0


@pytest.fixture
def lives(tmp_path: Path) -> Callable[..., Life]:
    return lambda name, **options: Life(tmp_path, name, **options)


def test_servers_load_one_after_another(lives: Callable[..., Life], tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    host = {"script": {"load": "wait"}, "flag": str(flag)}
    one = lives("00000.1", loading_slots=1, host=host).start()
    until(lambda: one.record() is not None, "the first claim")
    two = lives("00001.1", loading_slots=1).start()
    until(lambda: two.beats() > 5, "the second server to wait")
    assert two.host.calls == ["measure"]
    flag.touch()
    until(lambda: two.serves(4, 8), "the second server to load")
    assert one.serves(0, 4)
    for life in (one, two):
        life.end()


def test_a_server_that_shares_a_long_span_serves_its_end_first(lives: Callable[..., Life], tmp_path: Path) -> None:
    first = lives("00000.1").start()
    until(lambda: first.serves(0, 4), "the first server")
    long = Registry(Storage(), str(tmp_path / "registry"), 8, "00002.1", lease_s=60)
    claim = long.claim(lambda view: {"00002.1": Placed(0, 8, 1.0)})
    assert claim is not None
    long.announce(record("00002.1", 0, 8, claim.number, state=ServerState.JOINING, serving=None, throughput=1.0))
    half = lives("00001.1", lease=60.0).start()
    until(lambda: half.serves(4, 8), "it to load")
    backwards = [("load", range(block, block + 1)) for block in (7, 6, 5, 4)]
    assert [call for call in half.host.calls if call in backwards] == backwards
    for life in (first, half):
        life.end()


def test_a_killed_server_gives_up_its_slot_when_its_lease_ends(lives: Callable[..., Life], tmp_path: Path) -> None:
    folder = str(tmp_path / "registry")
    killed = Registry(Storage(), folder, 8, "00000.1")
    claim = killed.claim(lambda view: {"00000.1": Placed(0, 4, 1.0)})
    assert claim is not None
    dead = record("00000.1", 0, 4, claim.number, state=ServerState.JOINING, serving=None, throughput=1.0)
    killed.announce(dead)
    two = lives("00001.1", loading_slots=1, lease=1.0).start()
    until(lambda: two.serves(4, 8), "it to load once the lease of the killed one has ended")
    two.end()


def test_a_host_that_does_not_load_from_storage_does_not_wait(lives: Callable[..., Life], tmp_path: Path) -> None:
    host = {"script": {"load": "wait"}, "flag": str(tmp_path / "flag")}
    one = lives("00000.1", loading_slots=1, host=host).start()
    until(lambda: one.record() is not None, "the first claim")
    two = lives("00001.1", loading_slots=1)
    two.host.loads_from_storage = False
    two.start()
    until(lambda: two.serves(4, 8), "it to load")
    (tmp_path / "flag").touch()
    for life in (one, two):
        life.end()
