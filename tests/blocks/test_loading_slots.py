"""Loading slots: servers load in the order of their claims, few at a time, and a dead one delays nobody for long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagger.blocks.placement.loading_slots import PATIENCE_S, Loader, Slots, ahead_of, turns_ahead
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
def test_before_the_first_copy_is_served_those_load_that_bring_a_block(loaders: list[Loader]) -> None:
    chosen = loading(loaders, "auto", [])
    assert {block for one in chosen for block in one.span} == {block for one in loaders for block in one.span}
    before: set[int] = set()
    for loader in chosen:
        assert set(loader.span) - before
        before |= set(loader.span)


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
