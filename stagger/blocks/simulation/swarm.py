"""Discrete-event simulation of a swarm over hours: which server serves which blocks, under one policy. Seeded.

Throughput here is that of the slowest block, counting blocks that are loaded and served (not merely announced): the
measure that the rules of `stagger.blocks.placement.petals` optimize. Request routing is not simulated.
"""

from __future__ import annotations

import heapq
import itertools
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from stagger.blocks.placement.bound import routing_capacity
from stagger.blocks.placement.joint_moves import MEAN_PLAN_PERIOD_S
from stagger.blocks.placement.petals import choose_best_blocks
from stagger.blocks.placement.rules import Setting, Swarm
from stagger.blocks.placement.spans import ServerState, Span
from stagger.blocks.simulation.allocation import Resource
from stagger.blocks.simulation.policies import (
    MEAN_CHECK_PERIOD_S,
    Checks,
    Conditions,
    Policy,
    next_check,
)
from stagger.blocks.simulation.steps import Coverage, Steps, mean, uncovered_s
from stagger.blocks.simulation.traces import Server
from stagger.blocks.simulation.upper_bounds import passes_steps, room_steps

#: Seconds between two looks at the routing capacity.
CAPACITY_S = 60.0


@dataclass(frozen=True)
class Outcome:
    """The result of one policy on one trace."""

    policy: str
    throughput: float
    """The slowest block's throughput, averaged over time; `bound` is the mean of its upper bound for any placement."""
    bound: float
    moves: int
    blocks_loaded: int
    uncovered_s: float
    """Seconds in which some block was not served, although the servers had room for all."""
    server_hours: float
    collisions: int
    """Pairs of moves whose later one began before its server could see the earlier one."""
    capacity: float
    """Requests per second that the served blocks carry with the best routing, each server's budget being its room times
    its throughput: the mean of looks every CAPACITY_S seconds. `passes` is the mean of what no placement exceeds."""
    passes: float
    steps: Steps

    @property
    def share(self) -> float:
        """Throughput as a share of the bound."""
        return self.throughput / self.bound if self.bound else 0.0

    @property
    def capacity_share(self) -> float:
        """Routing capacity as a share of what no placement exceeds."""
        return self.capacity / self.passes if self.passes else 0.0

    @property
    def moves_per_server_hour(self) -> float:
        return self.moves / self.server_hours if self.server_hours else 0.0


@dataclass
class _Host:
    """A server that is present."""

    server: Server
    target: range | None = None
    """The blocks that it hosts or is about to host; None until it has chosen."""
    served: range = range(0)
    throughput: float = 0.0
    """Requests per second of each block that it serves."""
    generation: int = 0
    """Counts its decisions: events of earlier generations are void."""

    @property
    def loaded(self) -> bool:
        return self.target is not None and self.served == self.target


@dataclass(frozen=True)
class _Listed:
    """A server's entry in the registry."""

    span: Span
    online: Span | None


class _Swarm:
    """The simulation of one policy: events in order of time, simultaneous ones in order of creation."""

    def __init__(
        self, trace: Sequence[Server], policy: Policy, conditions: Conditions, total_blocks: int, seed: int
    ) -> None:
        self.policy, self.conditions, self.total_blocks = policy, conditions, total_blocks
        self.rng = np.random.default_rng([seed, zlib.crc32(policy.name.encode())])
        self.setting = Setting(total_blocks, conditions.seconds_per_block, policy.delta, self.rng)
        self.lease_s = policy.lease_s if conditions.lease_s is None else conditions.lease_s
        self.visibility_s = 0.0 if policy.lock else conditions.visibility_s
        self.coverage = Coverage(total_blocks)
        self.hosts: dict[str, _Host] = {}
        self.listed: dict[str, _Listed] = {}
        self.changed_s = 0.0
        """Time at which a server was last seen to come or go."""
        self.unseen: dict[str, float] = {}
        """Moving server -> time until which the others cannot see its new blocks."""
        self.moves = self.blocks_loaded = self.collisions = 0
        self.now = 0.0
        self.capacities: list[float] = []
        self.present: frozenset[str] = frozenset()
        """The servers that were listed at the last allocation."""
        self.numbers = itertools.count()
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        for server in trace:
            self.at(server.joins_s, partial(self.join, server))
        if policy.checks is Checks.LEADER:
            self.at(MEAN_CHECK_PERIOD_S, self.lead)
        if policy.allocate is not None:
            self.servers = {server.server_id: server for server in trace}
            self.at(MEAN_PLAN_PERIOD_S, self.allocate)
        self.at(CAPACITY_S / 2, self.note_capacity)

    def at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self.events, (time, next(self.numbers), event))

    def run(self, end_s: float) -> None:
        while self.events and self.events[0][0] < end_s:
            self.now, _, event = heapq.heappop(self.events)
            event()

    # A server's life.

    def join(self, server: Server) -> None:
        host = self.hosts[server.server_id] = _Host(server)
        if server.leaves_s < math.inf:
            self.at(server.leaves_s, lambda: self.leave(host))
        self.choose_soon(host)

    def leave(self, host: _Host) -> None:
        self.serve(host, range(0))
        del self.hosts[host.server.server_id]
        host.generation += 1
        self.unseen.pop(host.server.server_id, None)
        listed_s = self.lease_s if host.server.crashes else 0.0
        self.list_later(host.server.server_id, None, max(listed_s, self.visibility_s))

    def choose_soon(self, host: _Host) -> None:
        """Choose at once under a lock, else after a random delay, so that simultaneous servers choose differently."""
        mean_s = 0.0 if self.policy.lock else self.conditions.selection_delay_s
        self.at(self.now + float(self.rng.uniform(0, 2 * mean_s)), self.unless_changed(host, self.choose))

    def choose(self, host: _Host) -> None:
        length = host.server.length
        if self.policy.random_place:
            start = int(self.rng.integers(self.total_blocks - length + 1))
            window = range(start, start + length)
        else:
            name = host.server.server_id
            others = [listed.span for key, listed in self.listed.items() if key != name]
            window = choose_best_blocks(length, others, self.total_blocks)
        self.load(host, window)
        if host.server.server_id in self.unseen:
            self.unseen[host.server.server_id] = self.now + self.visibility_s

    def load(self, host: _Host, window: range) -> None:
        first = not host.generation
        kept = overlap(host.served, window) if self.policy.delta else range(0)
        self.serve(host, kept, window)
        host.target = window
        host.generation += 1
        self.announce(host)
        missing = len(window) - len(kept)
        self.blocks_loaded += missing
        ready = self.now + missing * self.conditions.seconds_per_block
        self.at(ready, self.unless_changed(host, self.loaded))
        if first:
            self.check_later(host, max(ready, self.now), first=True)

    def loaded(self, host: _Host) -> None:
        assert host.target is not None
        self.serve(host, host.target)
        self.announce(host)

    # Checks and moves.

    def check_later(self, host: _Host, since: float, *, first: bool = False) -> None:
        when = next_check(self.policy.checks, since, len(self.listed), self.rng, first=first)
        if when < math.inf:
            self.at(when, lambda: self.check(host))

    def check(self, host: _Host) -> None:
        if self.hosts.get(host.server.server_id) is not host:
            return
        if host.loaded:
            self.decide(host.server.server_id)
        self.check_later(host, self.now)

    def lead(self) -> None:
        self.decide("")
        self.at(self.now + MEAN_CHECK_PERIOD_S, self.lead)

    def decide(self, local_id: str) -> None:
        assert self.policy.rule is not None
        for name, window in self.policy.rule(local_id, self.seen_by(local_id), self.setting).items():
            host = self.hosts.get(name)
            if host is None or window == host.target:
                continue  # crashed but still listed, or already there
            self.note_move(name)
            if not self.policy.lock:
                self.restart(host)
            elif name == local_id:
                self.load(host, window)
            else:
                self.claim(host, window)

    def allocate(self) -> None:
        """A central scheduler, which sees all, allocates the blocks of all servers."""
        assert self.policy.allocate is not None
        found = [
            Resource(name, server.length, server.passes, range(listed.span.start, listed.span.end))
            for name, listed in sorted(self.listed.items())
            for server in (self.servers[name],)
        ]
        names = frozenset(self.listed)
        windows = self.policy.allocate(found, self.total_blocks, names != self.present, self.rng)
        self.present = names
        for name, window in windows.items():
            host = self.hosts.get(name)
            if host is not None and window != host.target:
                self.note_move(name)
                self.claim(host, window)
        self.at(self.now + MEAN_PLAN_PERIOD_S, self.allocate)

    def note_move(self, name: str) -> None:
        self.moves += 1
        self.unseen = {other: until for other, until in self.unseen.items() if until > self.now}
        self.collisions += len(self.unseen.keys() - {name})
        if self.visibility_s:
            self.unseen[name] = math.inf

    def restart(self, host: _Host) -> None:
        """Move as in Petals: stop serving, and choose anew after a short delay."""
        self.serve(host, range(0))
        host.target = None
        host.generation += 1
        self.list_later(host.server.server_id, None, self.visibility_s)
        self.choose_soon(host)

    def claim(self, host: _Host, window: range) -> None:
        """Announce a move for another server, which begins it once it sees the announcement."""
        kept = overlap(host.served, window) if self.policy.delta else range(0)
        host.generation += 1
        self.listed[host.server.server_id] = _listed(host.server, window, kept)
        self.at(
            self.now + self.conditions.visibility_s, self.unless_changed(host, lambda host: self.load(host, window))
        )

    def unless_changed(self, host: _Host, event: Callable[[_Host], None]) -> Callable[[], None]:
        """Wrap an event so that it does nothing if the server decides otherwise before."""
        generation = host.generation
        return lambda: event(host) if host.generation == generation else None

    # What is served, and what is seen.

    def serve(self, host: _Host, blocks: range, span: range | None = None) -> None:
        """Serve `blocks`, of a span that may be shorter than the server's room: then each gets more of its budget."""
        self.coverage.change(self.now, host.served, host.throughput, -1)
        host.throughput = host.server.over(span or host.target or blocks)
        self.coverage.change(self.now, blocks, host.throughput, 1)
        host.served = blocks

    def note_capacity(self) -> None:
        online = [
            Span(name, host.served.start, host.served.stop, host.server.passes)
            for name, host in self.hosts.items()
            if host.served
        ]
        self.capacities.append(routing_capacity(online, self.total_blocks) if self.coverage.hosts.all() else 0.0)
        self.at(self.now + CAPACITY_S, self.note_capacity)

    def announce(self, host: _Host) -> None:
        assert host.target is not None
        self.list_later(host.server.server_id, _listed(host.server, host.target, host.served), self.visibility_s)

    def list_later(self, name: str, listed: _Listed | None, delay_s: float) -> None:
        def happen() -> None:
            if (listed is None) == (name in self.listed):
                self.changed_s = self.now
            if listed is None:
                self.listed.pop(name, None)
            else:
                self.listed[name] = listed

        if delay_s:
            self.at(self.now + delay_s, happen)
        else:
            happen()

    def seen_by(self, local_id: str) -> Swarm:
        """The registry as seen now. With a visibility delay, a server still knows its own latest state."""
        listed = self.listed
        host = self.hosts.get(local_id)
        if self.visibility_s and host is not None and host.target is not None:
            listed = {**listed, local_id: _listed(host.server, host.target, host.served)}
        return Swarm(
            [entry.span for entry in listed.values()],
            [entry.online for entry in listed.values() if entry.online is not None],
            self.now - self.changed_s,
        )


def overlap(one: range, other: range) -> range:
    """The blocks that two windows have in common."""
    start = max(one.start, other.start)
    return range(start, max(start, min(one.stop, other.stop)))


def _listed(server: Server, target: range, served: range) -> _Listed:
    state = ServerState.ONLINE if served == target else ServerState.JOINING
    span = Span(server.server_id, target.start, target.stop, server.over(target), state)
    online = Span(server.server_id, served.start, served.stop, server.over(target)) if served else None
    return _Listed(span, online)


def simulate(
    trace: Sequence[Server],
    bound: Steps,
    policy: Policy,
    conditions: Conditions,
    *,
    hours: float,
    total_blocks: int,
    seed: int,
) -> Outcome:
    """Simulate one policy on one trace; `bound` is the trace's `bound_steps`."""
    end_s = hours * 3600
    swarm = _Swarm(trace, policy, conditions, total_blocks, seed)
    swarm.run(end_s)
    steps = swarm.coverage.steps
    return Outcome(
        policy=policy.name,
        throughput=mean(steps, end_s),
        bound=mean(bound, end_s),
        moves=swarm.moves,
        blocks_loaded=swarm.blocks_loaded,
        uncovered_s=uncovered_s(steps, room_steps(trace, total_blocks), end_s),
        server_hours=sum(min(server.leaves_s, end_s) - server.joins_s for server in trace) / 3600,
        collisions=swarm.collisions,
        capacity=float(np.mean(swarm.capacities)) if swarm.capacities else 0.0,
        passes=mean(passes_steps(trace, total_blocks), end_s),
        steps=steps,
    )
