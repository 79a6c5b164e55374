"""Microbatches pass each block exactly once, whatever happens to servers. Real processes, real signals."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stagger.blocks.serving.client import Client, MicrobatchFailed
from stagger.blocks.serving.connections import Looked
from stagger.blocks.serving.keys import KeyPair
from stagger.blocks.serving.routing import Uncovered
from tests.blocks.serving.conftest import QUICK
from tests.conftest import until
from tests.kit.span_servers import MODEL, OVERFLOWS, SHAPE, Servers, hidden_state, passed, work
from tests.kit.tcp_proxy import Proxy

Clients = Callable[..., Client]


def check(number: int, states: dict[int, Any]) -> None:
    """Each state equals, bit for bit, what one process computes."""
    for layer, state in states.items():
        assert np.array_equal(
            np.frombuffer(b"".join(state), np.float32).reshape(SHAPE), passed(hidden_state(number), 0, layer)
        )


def finish(running: Iterator[tuple[Any, dict[int, Any]]], seen: set[int], count: int) -> None:
    """Take what is left, and check that each microbatch came back once, as it should be."""
    for number, states in running:
        assert number not in seen
        seen.add(number)
        check(number, states)
    assert seen == set(range(count))


def take(running: Iterator[tuple[Any, dict[int, Any]]], seen: set[int], count: int) -> None:
    while len(seen) < count:
        number, states = next(running)
        assert number not in seen
        seen.add(number)
        check(number, states)


@pytest.fixture
def four(servers: Servers) -> Servers:
    """Each block on two servers."""
    for name, start, end in (("00000.1", 0, 6), ("00001.1", 6, 12), ("00002.1", 0, 8), ("00003.1", 4, 12)):
        servers.start(name, start, end)
    until(servers.are_there, "the servers")
    return servers


def test_states_of_all_layers_come_back_as_one_process_computes_them(four: Servers, client: Clients) -> None:
    layers = tuple(range(13))
    one = client(four)
    got = dict(one.run(work(number, layers) for number in range(40)))
    for number, states in got.items():
        assert tuple(sorted(states)) == layers
        check(number, states)
    again = dict(one.run(work(number, (0, 12)) for number in range(5)))
    assert [sorted(states) for states in again.values()] == [[0, 12]] * 5
    assert one.evicted == {}


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, "its connection is gone"),
        (signal.SIGTERM, "it leaves"),
        (signal.SIGSTOP, "its connection is gone"),
    ],
)
def test_a_server_that_is_lost_in_the_middle_costs_nothing(
    servers: Servers, client: Clients, number: signal.Signals, reason: str
) -> None:
    servers.start("00000.1", 0, 12, delay_s=0.005)
    servers.start("00001.1", 0, 12, delay_s=0.005)
    until(servers.are_there, "the servers")
    one, seen = client(servers), set[int]()
    running = one.run(work(index) for index in range(120))
    take(running, seen, 10)
    until(lambda: next_of(running, seen) and one.peers["00001.1"].flights, "it to have something in hand")
    sent = one.peers["00001.1"].sent
    servers.signal("00001.1", number)
    until(lambda: next_of(running, seen) and one.evicted, "it to be given up")
    assert one.evicted["00001.1"] in (reason, "its connection is gone")
    assert "00001.1" not in one.peers
    at_most = sent + one.counts["sent"]  # Whatever was sent before the client could know.
    finish(running, seen, 120)
    if number == signal.SIGSTOP:
        servers.signal("00001.1", signal.SIGCONT)
    assert servers.requests("00001.1") <= at_most
    assert list(one.evicted) == ["00001.1"]


def next_of(running: Iterator[tuple[Any, dict[int, Any]]], seen: set[int]) -> bool:
    take(running, seen, len(seen) + 1)
    return True


def test_a_server_that_leaves_is_sent_nothing_any_more(servers: Servers, client: Clients) -> None:
    servers.start("00000.1", 0, 12, delay_s=0.002)
    servers.start("00001.1", 0, 12, delay_s=0.002)
    until(servers.are_there, "the servers")
    one, seen = client(servers), set[int]()
    running = one.run(work(index) for index in range(100))
    take(running, seen, 20)
    servers.signal("00001.1", signal.SIGTERM)
    finish(running, seen, 100)
    servers.processes["00001.1"].join()
    (left,) = (line for line in (servers.folder / "00001.1.requests").read_text().splitlines() if "left" in line)
    refused = int(left.partition("'leaving': ")[2].partition(",")[0].rstrip("}") or 0)
    assert refused <= 2  # As many as a client may have in flight there when it leaves.


@pytest.mark.parametrize(
    ("faults", "reasons", "most"),
    [
        # The server leaves after two failures, which a client that is slow may notice first.
        ({"nan": True}, ("it failed: NotFinite: 4 values of row 0 are not finite", "its connection is gone"), 5),
        ({"hang": True}, ("it is late: its connection lives, but it does not answer",), 4),
    ],
)
def test_results_that_are_not_finite_and_computing_that_hangs(
    servers: Servers, client: Clients, faults: dict[str, bool], reasons: tuple[str, ...], most: int
) -> None:
    servers.start("00000.1", 0, 12, delay_s=0.002)
    servers.start("00001.1", 0, 12, delay_s=0.002, after=3, **faults)
    until(servers.are_there, "the servers")
    one = client(servers)
    finish(one.run(work(index) for index in range(60)), set(), 60)
    assert list(one.evicted) == ["00001.1"]
    assert one.evicted["00001.1"] in reasons
    assert servers.requests("00001.1") <= most


def test_a_microbatch_that_fails_on_two_servers_is_to_blame_itself(servers: Servers, client: Clients) -> None:
    servers.start("00000.1", 0, 12, nan=True)
    servers.start("00001.1", 0, 12, nan=True)
    until(servers.are_there, "the servers")
    with pytest.raises(MicrobatchFailed, match=r"2 servers could not compute a microbatch: 0000.*4 values of row 0"):
        list(client(servers).run([work(0)]))


WRONG = "its results are not finite, but those of another server for the same states are"


@pytest.mark.parametrize(
    ("spans", "doubted"),
    [
        ([(0, 12)], 0),  # Nobody else can be asked.
        ([(0, 12), (0, 12)], 1),
        ([(0, 12), (0, 3), (3, 12)], 1),
        ([(0, 12), (0, 6), (2, 5), (4, 12)], 1),
    ],
)
def test_a_microbatch_that_no_server_can_keep_finite_passes_as_in_one_process(
    servers: Servers, client: Clients, spans: list[tuple[int, int]], doubted: int
) -> None:
    for rank, (start, end) in enumerate(spans):
        servers.start(f"{rank:05d}.1", start, end)
    until(servers.are_there, "the servers")
    one, given = client(servers), [0, 1, OVERFLOWS, 2, OVERFLOWS + 1, OVERFLOWS + 2, 3]
    got = list(one.run(work(number, (3, 6, 12)) for number in given))
    assert sorted(number for number, _ in got) == sorted(given)
    for number, states in got:
        check(number, states)
    assert one.evicted == {}, "it is not their fault"
    assert one.counts["doubted"] >= doubted * 3
    assert one.counts["failed"] == 0


def test_a_server_that_spoils_what_another_one_can_compute_is_given_up(servers: Servers, client: Clients) -> None:
    servers.start("00000.1", 0, 12, delay_s=0.002)
    servers.start("00001.1", 0, 8, delay_s=0.002, after=3, spoils=True)
    servers.start("00002.1", 4, 12, delay_s=0.002)
    until(servers.are_there, "the servers")
    one, seen = client(servers), set[int]()
    finish(one.run(work(index) for index in range(60)), seen, 60)
    assert one.evicted == {"00001.1": WRONG}


def test_a_server_whose_doubt_nobody_can_settle_any_more_computes_it_again(servers: Servers, client: Clients) -> None:
    servers.start("00000.1", 0, 12)
    servers.start("00001.1", 0, 12, hang=True)
    until(servers.are_there, "the servers")
    one = client(servers)
    for number, states in one.run([work(0), work(OVERFLOWS)]):
        check(number, states)
    assert "00000.1" not in one.evicted


def test_the_only_server_is_believed_once_it_has_computed_something(
    servers: Servers, client: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers.start("00000.1", 0, 12)
    until(servers.are_there, "the server")
    one, seen = client(servers), set[int]()
    given = iter([OVERFLOWS, OVERFLOWS + 1])
    held: list[int] = []

    def later() -> Iterator[Any]:
        """The first two are doubted for as long as nothing else is there."""
        for number in given:
            held.append(number)
            yield work(number)
        yield work(0)

    running = one.run(later(), may_take=lambda: len(held) < 2 or one.counts["doubted"] > 3)
    for number, states in running:
        check(number, states)
        seen.add(number)
    assert seen == {0, OVERFLOWS, OVERFLOWS + 1}
    monkeypatch.setattr("stagger.blocks.serving.doubts.ALONE_S", 0.5)
    servers.start("00001.1", 0, 12)
    until(servers.are_there, "the server")
    alone = client(servers)
    servers.signal("00000.1", signal.SIGKILL)
    (servers.folder / "00000.1.json").unlink()
    ((number, states),) = alone.run([work(OVERFLOWS)])
    check(number, states)
    assert alone.evicted == {}


def test_a_server_that_is_not_listed_any_more_is_named_in_the_log(servers: Servers, client: Clients) -> None:
    servers.start("00000.1", 0, 12)
    servers.start("00001.1", 0, 12)
    until(servers.are_there, "the servers")
    one, seen = client(servers), set[int]()
    running = one.run(work(index) for index in range(100000))
    take(running, seen, 10)
    listed = servers.folder / "00001.1.json"
    listed.rename(listed.with_suffix(".gone"))
    until(lambda: next_of(running, seen) and "00001.1" not in one.peers, "it to be used no more")
    assert one.evicted == {}
    told = "uses server 00001.1 no more: it is not in the registry any more, and had nothing in hand"
    assert one.log == [told]  # type: ignore[attr-defined]
    running.close()  # type: ignore[attr-defined]


def test_blocks_that_move_while_microbatches_are_on_their_way(servers: Servers, client: Clients) -> None:
    """The span of two servers changes with each request, and not as they published it."""
    servers.start("00000.1", 0, 7)
    servers.start("00001.1", 5, 12)
    servers.start("00002.1", 0, 6, moves=[(0, 6), (2, 4), (8, 12), (3, 9)])
    servers.start("00003.1", 6, 12, moves=[(6, 12), (0, 3), (7, 8)])
    until(servers.are_there, "the servers")
    one = client(servers)
    finish(one.run(work(index, (0, 3, 7, 12)) for index in range(100)), set(), 100)
    assert one.evicted == {}
    assert one.counts["not_here"] > 0


def test_blocks_without_a_server_are_named_and_waited_for(servers: Servers, client: Clients) -> None:
    servers.start("00000.1", 0, 5)
    until(servers.are_there, "the server")
    told: list[Uncovered] = []

    def come(uncovered: Uncovered) -> None:
        told.append(uncovered)
        if len(told) == 2:
            servers.start("00001.1", 5, 12)

    one = client(servers, waits=come)
    finish(one.run(work(index) for index in range(10)), set(), 10)
    assert list(told[1].blocks) == list(range(5, 12))
    assert told[1].since_s > 0
    log = one.log  # type: ignore[attr-defined]
    assert log[0].startswith("no server serves blocks 5-11: ")
    assert log[1].startswith("all blocks have servers again, after ")


def test_waiting_ends_when_whoever_decides_says_so(servers: Servers, client: Clients) -> None:
    class Enough(Exception):
        pass

    def refuse(uncovered: Uncovered) -> None:
        raise Enough(uncovered.blocks)

    with pytest.raises(Enough, match=r"\[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11\]"):
        list(client(servers, waits=refuse).run([work(0)]))


def test_a_client_without_servers_does_not_spin(
    servers: Servers, client: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = 0
    send = Client._send

    def counted(self: Client) -> None:
        nonlocal turns
        turns += 1
        send(self)

    def half_a_second(uncovered: Uncovered) -> None:
        if uncovered.since_s > 0.5:
            raise InterruptedError

    monkeypatch.setattr(Client, "_send", counted)
    with pytest.raises(InterruptedError):
        list(client(servers, waits=half_a_second).run(work(index) for index in range(10)))
    assert turns < 100


def test_a_client_that_nobody_closes_is_no_obstacle(servers: Servers, keys: KeyPair) -> None:
    """As one of a rank that failed, in a process that goes on with the next rank."""

    class Engine:
        def __init__(self) -> None:
            self.client = Client(self.look, MODEL, keys, timing=QUICK)

        def look(self) -> Looked:
            return servers.look()

    servers.start("00000.1", 0, 12)
    until(servers.are_there, "the server")
    assert len(list(Engine().client.run(work(number) for number in range(3)))) == 3
    running = Engine().client.run(work(number) for number in range(3))
    next(running)
    del running
    collecting = threading.Thread(target=gc.collect, daemon=True)
    collecting.start()
    collecting.join(60)
    assert not collecting.is_alive()


def test_several_clients_at_once_lose_a_server(four: Servers, client: Clients) -> None:
    runs = [(one, one.run(work(index) for index in range(50)), set[int]()) for one in (client(four) for _ in range(3))]
    for _, running, seen in runs:
        take(running, seen, 10)
    four.signal("00001.1", signal.SIGKILL)
    for one, running, seen in runs:
        finish(running, seen, 50)
        assert set(one.evicted) <= {"00001.1"}


def test_a_client_that_was_stopped_itself_gives_up_nobody(servers: Servers, keys: KeyPair) -> None:
    """As after SIGSTOP and SIGCONT: its last event is long ago, and the servers have closed the connections to it."""
    servers.start("00000.1", 0, 12)
    until(servers.are_there, "the server")
    (offer,) = servers.look().offers.values()
    proxy = Proxy(offer.address)
    there = Looked({"00000.1": replace(offer, address=proxy.address)})
    one, seen = Client(lambda: there, MODEL, keys, timing=QUICK), set[int]()
    running = one.run(work(index) for index in range(60))
    take(running, seen, 3)
    proxy.cut()
    one._polled -= 60
    finish(running, seen, 60)
    assert one.evicted == {}
    assert len(proxy.sent) == 2
    one.close()
    proxy.close()
