"""One server, not all, looks after those that are lost; and again, if that could not be done."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from random import Random
from typing import Any

import pytest

from stagger.blocks.placement.spans import ServerState
from stagger.blocks.server.records import Member, Placed, View
from stagger.blocks.server.tending import LATER, MOST_AGAIN_S, NEVER, PERIOD_S, SOON_S, Order, Tending
from stagger.storage.storage import Storage
from tests.kit.claimants import record

LEASE_S = 45.0


class Ended:
    """A process that has ended, or will when its status is set."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.returncode: int | None = None
        self.stdout = io.BytesIO(b"done\n")

    def poll(self) -> int | None:
        return self.returncode


class Watcher:
    """One server's tending, with a clock that the test advances."""

    def __init__(self, folder: Path, name: str, now: list[float], **more: Any) -> None:
        self.folder = folder
        self.now = now
        self.begun: list[Ended] = []
        self.tending = Tending(
            Storage(),
            str(folder),
            Order("run", "swarm", {}, name),
            servers=3,
            lease_s=LEASE_S,
            clock=lambda: now[0],
            start=self._start,  # type: ignore[arg-type]
            random=Random(name),
            **{"has_users": False, **more},
        )

    def _start(self, order: Order) -> Ended:
        self.begun.append(Ended(order))
        return self.begun[-1]

    def look(self, view: View) -> int:
        """Look once; return how many processes were started so far."""
        self.tending.look(view, [path.name for path in self.folder.iterdir()])
        return len(self.begun)


@pytest.fixture
def now() -> list[float]:
    return [1000.0]


def swarm(*alive: str, gone: dict[str, ServerState] | None = None) -> View:
    members = {name: Member(Placed(0, 4, 1.0), 1, record(name, 0, 4, 1)) for name in alive}
    return View(1, members, {name: record(name, 0, 4, 1, state=state) for name, state in (gone or {}).items()})


ALL = swarm("00000.1", "00001.1", "00002.1")
LOST = swarm("00000.1", "00001.1", gone={"00002.1": ServerState.ONLINE})


def test_of_the_servers_that_see_a_lost_one_one_looks_after_it(tmp_path: Path, now: list[float]) -> None:
    watchers = [Watcher(tmp_path, name, now) for name in ("00000.1", "00001.1")]
    assert [one.look(ALL) for one in watchers] == [0, 0]
    for _ in range(20):
        now[0] += SOON_S / 10
        for one in watchers:
            one.look(LOST)
    assert sum(len(one.begun) for one in watchers) == 1
    (order,) = (started.order for one in watchers for started in one.begun)
    assert (order.gone, order.silent) == (("00002.1",), {})


def test_a_later_attempt_needs_no_care_for_the_earlier_one(tmp_path: Path, now: list[float]) -> None:
    one = Watcher(tmp_path, "00000.1", now)
    back = swarm("00000.1", "00001.1", "00002.1r1", gone={"00002.1": ServerState.OFFLINE})
    one.look(back)
    now[0] += 2 * SOON_S
    assert one.look(back) == 0


def test_what_could_not_be_done_is_tried_again_less_and_less_often(tmp_path: Path, now: list[float]) -> None:
    one = Watcher(tmp_path, "00000.1", now)
    times = []
    for _ in range(4000):
        before = len(one.begun)
        if one.look(LOST) > before:
            times.append(now[0])
            one.begun[-1].returncode = LATER
        now[0] += 1.0
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert waits[0] < 30
    assert max(waits) <= 1.5 * MOST_AGAIN_S + 2
    assert len(times) < 40


def test_a_job_of_a_server_that_has_long_been_silent_is_to_be_cancelled(tmp_path: Path, now: list[float]) -> None:
    """One that has said that it leaves is left alone: it drains."""
    one = Watcher(tmp_path, "00000.1", now)
    view = swarm("00000.1", gone={"00001.1": ServerState.OFFLINE, "00002.1": ServerState.ONLINE})
    while now[0] < 1000.0 + 4 * LEASE_S:
        one.look(view)
        if one.begun:
            one.begun[-1].returncode = LATER
        now[0] += 1.0
    assert one.begun[0].order.silent == {}
    assert one.begun[-1].order.silent.keys() == {"00002.1"}
    assert one.begun[-1].order.silent["00002.1"] > 3 * LEASE_S


def test_where_jobs_may_not_submit_jobs_it_is_not_tried_again(tmp_path: Path, now: list[float]) -> None:
    one = Watcher(tmp_path, "00000.1", now)
    for _ in range(600):
        if one.look(LOST):
            one.begun[-1].returncode = NEVER
        now[0] += 5.0
    assert len(one.begun) == 1


def test_without_an_occasion_a_swarm_with_users_is_looked_after_from_time_to_time(
    tmp_path: Path, now: list[float]
) -> None:
    """Its users may have ended without a word. A full swarm without users needs nothing."""
    one, other = Watcher(tmp_path, "00000.1", now, has_users=True), Watcher(tmp_path, "00001.1", now, has_users=True)
    idle = Watcher(tmp_path, "00002.1", now)
    for _ in range(int(20 * PERIOD_S)):
        for watcher in (one, other, idle):
            watcher.look(ALL)
            for process in watcher.begun:
                process.returncode = 0
        now[0] += 1.0
    assert 15 <= len(one.begun) + len(other.begun) <= 40
    assert idle.begun == []
