"""Which server is next: by plain values, and in a simulation of unequal servers, against the best routing."""

from __future__ import annotations

import heapq
import itertools

import pytest

from stagger.blocks.placement.bound import routing_capacity
from stagger.blocks.placement.spans import Span
from stagger.blocks.serving.routing import LATE, Load, next_hop, patience
from stagger.blocks.serving.span_server import CREDITS
from tests.kit.unequal_servers import UNEQUAL, Spans

TOKENS, BLOCKS = 256, 12

REPLICAS: Spans = [(0, 6, 9000.0), (0, 6, 9000.0), (0, 6, 3000.0), (6, 12, 9000.0), (6, 12, 12000.0)]


class Simulation:
    """Servers that compute one microbatch at a time, in the order in which they came."""

    def __init__(self, spans: Spans, clients: int) -> None:
        self.spans = spans
        self.now = 0.0
        self.loads = [
            {number: Load(start, end, CREDITS, rate) for number, (start, end, rate) in enumerate(spans)}
            for _ in range(clients)
        ]
        self.waiting = [[(0, order) for order in range(CREDITS * len(spans) + 1)] for _ in range(clients)]
        self.queues: list[list[tuple[int, int, int, int]]] = [[] for _ in spans]
        self.events: list[tuple[float, int, int]] = []
        self.number = itertools.count()
        self.landed = self.hops = 0

    def send(self, client: int) -> None:
        left = []
        for at, order in sorted(self.waiting[client], key=lambda one: (-one[0], one[1])):
            hop = next_hop(self.loads[client], range(at, BLOCKS), TOKENS, self.now)
            if hop is None:
                left.append((at, order))
                continue
            server, end = hop
            self.loads[client][server].send(TOKENS * (end - at), self.spans[server][2], self.now)
            self.queues[server].append((client, at, end, order))
            self.hops += 1
            if len(self.queues[server]) == 1:
                self.begin(server)
        self.waiting[client] = left

    def begin(self, server: int) -> None:
        _, at, end, _ = self.queues[server][0]
        done = self.now + TOKENS * (end - at) / self.spans[server][2]
        heapq.heappush(self.events, (done, next(self.number), server))

    def run(self, seconds: float) -> float:
        """Tokens per second that pass all blocks, as a share of the capacity."""
        for client in range(len(self.loads)):
            self.send(client)
        while self.now < seconds:
            self.now, _, server = heapq.heappop(self.events)
            client, at, end, order = self.queues[server].pop(0)
            load = self.loads[client][server]
            load.own -= TOKENS * (end - at)
            load.credits += 1
            self.landed += end == BLOCKS
            self.waiting[client].append((0 if end == BLOCKS else end, order))
            if self.queues[server]:
                self.begin(server)
            self.send(client)
        capacity = routing_capacity([Span(str(n), *span) for n, span in enumerate(self.spans)], BLOCKS)
        return self.landed * TOKENS / seconds / capacity


@pytest.mark.parametrize(("spans", "hops"), [(UNEQUAL, 4.5), (REPLICAS, 2.1)])
@pytest.mark.parametrize("clients", [1, 6])
def test_unequal_servers_carry_nearly_what_the_best_routing_does(spans: Spans, clients: int, hops: float) -> None:
    one = Simulation(spans, clients)
    assert one.run(60) >= 0.95
    assert one.hops / one.landed <= hops


def load(start: int, end: int, used: float = 0.0, rate: float = 1000.0) -> Load:
    return Load(start, end, CREDITS, rate, used=used)


def test_the_server_that_was_used_least_is_next() -> None:
    loads = {"a": load(0, 4, used=2.0), "b": load(0, 4, used=1.0), "c": load(1, 4, used=9.0)}
    assert next_hop(loads, range(4), 1, now=0.0) == ("b", 4)
    loads["b"].credits = 0
    assert next_hop(loads, range(4), 1, now=0.0) == ("a", 4)
    loads["a"].rests_until = 5.0
    assert next_hop(loads, range(4), 1, now=0.0) is None
    assert next_hop(loads, range(2), 1, now=6.0) == ("a", 2), "no further than is wanted"


def test_it_stops_where_an_idle_span_begins_if_that_saves_more_than_a_transfer() -> None:
    loads = {"a": load(0, 8, used=10.0), "b": load(4, 12)}
    assert next_hop(loads, range(12), 1000, now=0.0) == ("a", 4)
    assert next_hop(loads, range(12), 1000, now=0.0, transfer_s=20.0) == ("a", 8)
    loads["b"].used = 20.0
    assert next_hop(loads, range(12), 1000, now=0.0) == ("a", 8)


def test_use_is_forgotten() -> None:
    one = load(0, 4)
    one.send(5000.0, 1000.0, now=100.0)
    assert (one.lately(100.0), one.own, one.credits) == (5.0, 5000.0, CREDITS - 1)
    assert one.lately(200.0) < 0.05


def test_a_late_answer_is_one_that_takes_ten_times_as_long_as_all_that_waits() -> None:
    one = load(0, 4)
    one.own, one.others = 3000.0, 2000.0
    assert patience(one, 1000.0, least_s=1.0, unknown_s=99.0) == LATE * 6.0
    assert patience(one, 1000.0, least_s=100.0, unknown_s=999.0) == 100.0
    assert patience(load(0, 4, rate=0.0), 1000.0, least_s=1.0, unknown_s=99.0) == 99.0
