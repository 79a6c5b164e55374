"""Loading slots: servers load in the order of their claims, few at a time, and a dead one delays nobody for long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagger.blocks.placement.loading_slots import PATIENCE_S, Loader, ahead_of, turns_ahead
from stagger.blocks.placement.petals import ServerState
from stagger.blocks.server.records import Member, Placed, View
from stagger.blocks.server.registry import Registry
from stagger.blocks.server.slots import Queue
from stagger.storage.storage import Storage
from tests.blocks.test_server_life import Life
from tests.conftest import until
from tests.kit.claimants import record

LOADERS = st.lists(
    st.builds(Loader, st.integers(1, 9), st.text("abc", min_size=1, max_size=3), st.integers(1, 80)),
    unique_by=lambda loader: loader.server_id,
)


def may_load(loader: Loader, loaders: list[Loader], slots: int | str, served: int = 0) -> bool:
    ahead = ahead_of(loader.server_id, loaders)
    return turns_ahead(ahead, slots, total_blocks=80, served=served) == 0  # type: ignore[arg-type]


@given(loaders=LOADERS, slots=st.integers(1, 5))
def test_the_k_servers_with_the_earliest_claims_load(loaders: list[Loader], slots: int) -> None:
    chosen = [loader for loader in loaders if may_load(loader, loaders, slots)]
    earliest = sorted(loaders, key=lambda loader: (loader.claim, loader.server_id))[:slots]
    assert sorted(chosen, key=lambda loader: (loader.claim, loader.server_id)) == earliest


@given(loaders=LOADERS, served=st.integers(0, 400))
def test_auto_loads_one_copy_or_as_much_as_is_served(loaders: list[Loader], served: int) -> None:
    chosen = [loader for loader in loaders if may_load(loader, loaders, "auto", served)]
    blocks = sum(loader.blocks for loader in chosen)
    assert blocks == sum(loader.blocks for loader in loaders) or blocks >= max(80, served)
    last = max(chosen, key=lambda loader: (loader.claim, loader.server_id), default=None)
    assert last is None or blocks - last.blocks < max(80, served)


def test_whoever_does_not_load_has_nobody_ahead() -> None:
    assert ahead_of("b", [Loader(1, "a", 4)]) == []


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
