"""The registry of a swarm: claims follow one another, and leases run by the reader's clock."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from stagger.blocks.placement.petals import compute_throughputs
from stagger.blocks.placement.spans import ServerState, Span
from stagger.blocks.server.records import Claim, Decided, Placed, ServerRecord, View
from stagger.blocks.server.registry import Registry, as_moves
from stagger.blocks.step import clear_registry
from stagger.storage.storage import Storage
from tests.conftest import ROOT
from tests.kit.claimants import TOTAL, join_as, kinds, name_of, one_at_a_time, record, who_claimed
from tests.kit.s3_server import running


class Clock:
    """A clock, in seconds, that tests advance by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(tmp_path: Path, clock: Clock) -> Callable[[str], Registry]:
    """Create a registry of the same folder for a server."""
    return lambda name: Registry(Storage(), str(tmp_path / "registry"), TOTAL, name, lease_s=45, clock=clock)


def no_pause(seconds: float) -> None:
    """Do not wait, since there is no other server."""


def test_view_of_a_server_follows_its_claims_and_its_record(registry: Callable[[str], Registry]) -> None:
    one, reader = registry("one"), registry("")
    claim = one.claim(join_as("one", 10, 2.0))
    assert claim is not None
    assert (claim.number, claim.moves) == (1, ["one"])
    assert claim.placements == {"one": Decided(Placed(0, 10, 2.0), 1)}
    assert reader.refresh().spans() == [Span("one", 0, 10, 2.0, ServerState.JOINING)]
    mine = one.announce(record("one", 0, 10, 1, state=ServerState.JOINING, serving=None, throughput=2.0))
    assert (reader.refresh().online(), mine.sequence) == ([], 1)
    one.announce(replace(mine, state=ServerState.ONLINE, serving=(0, 10)))
    view = reader.refresh()
    assert view.spans() == view.online() == [Span("one", 0, 10, 2.0)]
    # Another server moves it: its target is the new span, and it serves the old one until it learns of that.
    two = registry("two")
    moved = two.claim(lambda view: as_moves({"one": range(5, 15)}, view))
    assert moved is not None
    view = reader.refresh()
    assert view.spans() == [Span("one", 5, 15, 2.0, ServerState.JOINING)]
    assert view.online() == [Span("one", 0, 10, 2.0)]
    assert view.kept() == [Span("one", 5, 10, 2.0)]
    one.announce(replace(mine, start=5, end=15, serving=(5, 10), claim=moved.number))
    view = reader.refresh()
    assert view.spans() == [Span("one", 5, 15, 2.0, ServerState.JOINING)]
    assert view.online() == view.kept() == [Span("one", 5, 10, 2.0)]
    one.announce(replace(mine, state=ServerState.OFFLINE, serving=None, reason="its time is up"))
    view = reader.refresh()
    assert view.members == {}
    assert view.gone["one"].reason == "its time is up"


def test_server_is_gone_when_its_sequence_number_stands_still_for_a_lease(
    registry: Callable[[str], Registry], clock: Clock
) -> None:
    one, reader = registry("one"), registry("two")
    mine = one.announce(record("one"))
    assert "one" in reader.refresh().members
    clock.now += 40
    mine = one.announce(mine)
    assert "one" in reader.refresh().members
    clock.now += 45
    assert "one" in reader.refresh().members
    clock.now += 1
    view = reader.refresh()
    assert "one" not in view.members
    assert view.gone["one"].reason == "no heartbeat within its lease"
    # A first look cannot detect the expired lease; a server always counts itself as alive.
    assert "one" in registry("three").refresh().members
    assert "one" in one.refresh().members
    one.announce(mine)  # It had only lost its connection.
    assert "one" in reader.refresh().members


def test_claim_of_a_server_that_died_before_it_said_a_word_ends_with_the_lease(
    registry: Callable[[str], Registry], clock: Clock
) -> None:
    registry("one").claim(join_as("one", 10, 1.0))
    reader = registry("two")
    assert "one" in reader.refresh().members
    clock.now += 46
    assert reader.refresh().members == {}


def test_who_decides_on_an_old_view_decides_again(registry: Callable[[str], Registry]) -> None:
    one, two = registry("one"), registry("two")
    seen = []

    def slow(view: View) -> dict[str, Placed]:
        seen.append(sorted(view.members))
        if len(seen) == 1:
            assert two.claim(join_as("two", 40, 1.0)) is not None
        return join_as("one", 40, 1.0)(view)

    claim = one.claim(slow)
    assert claim is not None
    assert seen == [[], ["two"]]
    assert claim.placements == {"one": Decided(Placed(40, 80, 1.0), 2), "two": Decided(Placed(0, 40, 1.0), 1)}
    assert one.claim(lambda view: {}) is None
    assert one.refresh().claim == 2


def test_a_claim_that_a_listing_does_not_show_yet_is_seen_all_the_same(
    registry: Callable[[str], Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS may list a new file up to a minute late, but creating a file of the same name fails at once."""
    one, two = registry("one"), registry("two")
    before = two.storage.list(two.folder)
    one.claim(join_as("one", 40, 1.0))
    monkeypatch.setattr(two.storage, "list", lambda folder: before)
    claim = two.claim(join_as("two", 40, 1.0))
    assert claim is not None
    assert (claim.number, claim.placements["two"].placed) == (2, Placed(40, 80, 1.0))


def test_a_claim_that_came_too_late_is_withdrawn(registry: Callable[[str], Registry], clock: Clock) -> None:
    """Meanwhile its number was claimed, a later claim followed, and the claim of that number was removed."""
    one, two = registry("one"), registry("two")
    calls = 0

    def asleep(view: View) -> dict[str, Placed]:
        nonlocal calls
        calls += 1
        if calls == 1:
            for number in (1, 2):
                assert two.claim(lambda view: {"two": Placed(0, 10, 1.0)}) is not None
                two.announce(record("two", 0, 10, number))
            clock.now += 46
            two.refresh()
            two.sweep()
            assert [entry.name for entry in two.storage.list(two.folder) if "claim" in entry.name] == [
                "claim.000000002.json"
            ]
        return {"one": Placed(0, 10, 1.0)}

    claim = one.claim(asleep, no_pause)
    assert calls == 2
    assert claim is not None
    assert claim.number == 3
    assert two.refresh().claim == 3
    assert [entry.name for entry in two.storage.list(two.folder) if "claim" in entry.name] == [
        "claim.000000002.json",
        "claim.000000003.json",
    ]


def test_what_nobody_needs_is_removed_after_a_lease(registry: Callable[[str], Registry], clock: Clock) -> None:
    one, two = registry("one"), registry("two")
    one.claim(join_as("one", 10, 1.0))
    one.announce(record("one", 0, 10, 1))
    two.claim(join_as("two", 10, 1.0))
    mine = two.announce(record("two", 10, 20, 2))
    one.announce(record("one", 0, 10, 1, state=ServerState.OFFLINE, serving=None, reason="stopped by SIGTERM"))

    def files() -> list[str]:
        two.announce(mine)
        two.refresh()
        two.sweep()
        return [entry.name for entry in two.storage.list(two.folder)]

    everything = ["claim.000000001.json", "claim.000000002.json", "server.one.json", "server.two.json"]
    assert files() == everything
    clock.now += 44
    assert files() == everything
    clock.now += 2
    # The latest claim stays, since the next number follows from it. So does the record of a server in its placements:
    # without a record, the server would count as still to announce itself.
    assert files() == everything[1:]
    clock.now += 100
    assert files() == everything[1:]
    two.claim(lambda view: as_moves({"two": range(30, 40)}, view))
    mine = replace(mine, claim=3)
    files()
    clock.now += 46
    assert files() == ["claim.000000003.json", "server.two.json"]
    (Path(two.folder) / ".server.x.json.node-1.tmp").touch()
    clear_registry(two.storage, str(Path(two.folder).parent))
    assert list(Path(two.folder).iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{}",
        b"[1]",
        b"\xff",
        b'{"number": 1, "by": "x", "time": 0, "moves": [], "placements": {"x": [5, 5, 1, 1]}}',
        record("one").encode().replace(b'"end": 10', b'"end": -1'),
        record("one").encode().replace(b'"throughput": 1.0', b'"throughput": "fast"'),
        record("one", 75, 81).encode(),
        record("one", serving=(79, 82)).encode(),
        b'{"number": 1, "by": "x", "time": 0, "moves": [], "placements": {"x": [0, 5, -1, 1]}}',
        record("other").encode(),
    ],
)
def test_a_damaged_file_is_named_and_does_not_count(
    registry: Callable[[str], Registry], capsys: pytest.CaptureFixture[str], damage: bytes
) -> None:
    one = registry("one")
    one.storage.write(f"{one.folder}/server.one.json", damage)
    one.storage.write(f"{one.folder}/claim.000000007.json", damage)
    one.storage.write(f"{one.folder}/something-else.txt", b"not of the registry")
    reader = registry("two")
    assert reader.refresh().members == reader.refresh().members == {}
    claim = one.claim(join_as("one", 10, 1.0))
    assert claim is not None
    assert claim.number == 8  # The number of a damaged claim still counts.
    assert capsys.readouterr().out.count("server.one.json is damaged") == 2  # Once by each reader.


def test_records_and_claims_come_back_as_they_were() -> None:
    one = record("one", 3, 9, 4, serving=None, job="12_3", job_ends=1.5, reason="why")
    assert ServerRecord.decode(one.encode(), TOTAL) == one
    claim = Claim(3, "one", 1.0, ["one"], {"one": Decided(Placed(1, 2, 3.0), 3)})
    assert Claim.decode(claim.encode(), TOTAL) == claim
    assert claim.encode() != claim.encode()  # Equal claims of two servers stay distinguishable.


def test_fields_that_a_version_does_not_know_are_kept(registry: Callable[[str], Registry]) -> None:
    newer = {**json.loads(record("00000.1").encode()), "color": {"of": ["hair"]}}
    one = ServerRecord.decode(json.dumps(newer).encode(), TOTAL)
    assert one.more == {"color": {"of": ["hair"]}}
    registry("00000.1").announce(one)
    other = registry("00001.1")
    (seen,) = (member.record for member in other.refresh().members.values())
    assert seen is not None
    other.retire(seen, "its job restarted")
    gone = registry("").refresh().gone["00000.1"]
    assert gone.more == one.more, "also by those who write the record of another"
    assert json.loads(gone.encode())["color"] == {"of": ["hair"]}


def test_a_later_attempt_of_a_rank_hides_the_earlier_one(registry: Callable[[str], Registry]) -> None:
    for name in ("00000.1", "00000.1r1", "00001.2"):
        registry(name).announce(record(name))
    view = registry("").refresh()
    assert sorted(view.members) == ["00000.1r1", "00001.2"]
    assert view.gone["00000.1"].reason == "its rank started again as 00000.1r1"
    later = registry("00000.2")
    later.claim(join_as("00000.2", 10, 1.0))  # It has not announced itself yet.
    assert sorted(registry("").refresh().members) == ["00000.2", "00001.2"]


def claim_at_once(place: Place, count: int, how: str = "whole") -> list[int]:
    """Run `count` processes that claim at once; return their exit statuses."""
    command = [sys.executable, "-m", "tests.kit.claimants", place.folder, json.dumps(place.options), str(count), how]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert ran.stderr == ""
    statuses: list[int] = json.loads(ran.stdout)
    return statuses


@dataclass(frozen=True)
class Place:
    """The folder of a registry, and its storage options."""

    folder: str
    options: dict[str, Any]


@pytest.fixture(params=["file system", "S3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "file system":
        yield Place(str(tmp_path / "swarm"), {})
        return
    with running("--bucket", "swarm") as server:
        options = {"endpoint_url": server.endpoint, "key": "key", "secret": "secret", "engine": "obstore"}
        yield Place("s3://swarm/registry", {"s3": options})


def test_processes_that_claim_at_once_cover_as_those_that_come_one_at_a_time(place: Place) -> None:
    count = 24 if place.options else 64  # benchmarks/blocks/claims.py does it 20 times with 64, there and here.
    for run in range(1 if place.options else 3):
        here = replace(place, folder=f"{place.folder}-{run}")
        assert claim_at_once(here, count) == [0] * count
        view = Registry(Storage(here.options), here.folder, TOTAL).refresh()
        assert len(view.members) == view.claim == count
        order = who_claimed(Storage(here.options), here.folder, count)
        assert compute_throughputs(view.spans(), TOTAL).min() == one_at_a_time(kinds(order)) > 0


@pytest.mark.parametrize("when", ["deciding", "claimed"])
def test_one_who_is_killed_while_claiming_holds_up_nobody(place: Place, when: str, clock: Clock) -> None:
    assert sorted(claim_at_once(place, 16, when)) == [-signal.SIGKILL] * 2 + [0] * 14
    reader = Registry(Storage(place.options), place.folder, TOTAL, lease_s=45, clock=clock)
    alive = {name_of(number) for number in range(16) if number % 8}
    killed = {name_of(number) for number in range(0, 16, 8)}
    reader.refresh()
    clock.now += 44
    view = reader.refresh()
    assert view.members.keys() == alive | (killed if when == "claimed" else set())
    # A server killed after its claim counts for later claims until its lease expires.
    order = who_claimed(Storage(place.options), place.folder, view.claim)
    assert compute_throughputs(view.spans(), TOTAL).min() == one_at_a_time(kinds(order)) > 0
    clock.now += 1.5
    for member in view.members.values():
        if member.record is not None:
            Registry(Storage(place.options), place.folder, TOTAL).announce(replace(member.record, moves=1))
            assert reader.refresh().members[member.record.server_id].record != member.record
    assert reader.refresh().members.keys() == alive


def test_huge_records_and_claims_are_ignored_by_their_size(tmp_path: Path, clock: Clock) -> None:
    told: list[str] = []
    folder = tmp_path / "registry"
    mine = Registry(Storage(), str(folder), TOTAL, name_of(0), clock=clock, tell=told.append)
    mine.announce(record(name_of(0)))
    (folder / "server.huge.json").write_bytes(b'{"x": "' + b"a" * 48_000_000 + b'"}')
    with open(folder / "claim.000000007.json", "wb") as file:
        file.truncate(2**25)
    for _ in range(2):
        view = mine.refresh()
    assert view.claim == 7
    assert list(view.members) == [name_of(0)]
    assert sorted(re.sub(r".*/", "", line) for line in told) == [
        "claim.000000007.json is damaged (it has more than 16,777,216 bytes); it is ignored",
        "server.huge.json is damaged (it has more than 65,536 bytes); it is ignored",
    ]


ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0.5,
    1e308,
    2**63,
    2**70,
    "",
    "x",
    "\x1b[2J",
    [],
    {},
    [1],
    [1, 2, 3],
    {"a": 1},
    [[]],
)


def test_a_record_with_an_odd_value_is_right_or_damaged() -> None:
    """A value that passes can be shown and compared; any other raises ValueError, which readers expect."""
    sound = json.loads(record(name_of(0), 0, 4).encode())
    for key in sound:
        for value in ODD:
            with contextlib.suppress(ValueError):
                found = ServerRecord.decode(json.dumps({**sound, key: value}).encode(), TOTAL)
                assert f"{found.throughput:.4g} {found.moves > 1} {found.sequence + found.claim} {found.host.upper()}"
    claim = json.loads(Claim(1, "a", 1.0, ["a"], {"a": Decided(Placed(0, 4, 1.0), 1)}).encode())
    for key in claim:
        for value in (*ODD, *({"a": value} for value in ODD), *({"a": [value] * 4} for value in ODD)):
            with contextlib.suppress(ValueError):
                assert Claim.decode(json.dumps({**claim, key: value}).encode(), TOTAL)
