"""The client's side of the wire: microbatches through chains of servers, exactly once each, whatever servers do.

The client holds the state of each microbatch until a later one is there. A server that is lost therefore costs nothing
but the work that it had in hand, which goes to another server, the deepest microbatch first. A server that
disconnects, is silent, is late, fails, or leaves is given up for good: a later attempt of its rank is another server.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import inf
from random import Random
from typing import Any

import zmq

from stagger.blocks.serving import wire
from stagger.blocks.serving.connections import USUAL, Connections, Looked, Timing
from stagger.blocks.serving.flight import Flight, Work
from stagger.blocks.serving.keys import KeyPair
from stagger.blocks.serving.peer import LOST, READY, Peer
from stagger.blocks.serving.routing import Load, Uncovered, mean_rate, next_hop, patience, uncovered
from stagger.blocks.serving.span_server import CREDITS
from stagger.blocks.serving.wire import BadFrames, Buffer, Model, Parts, Refusal, Reply, Request, read_reply
from stagger.errors import StaggerError, counted
from stagger.ranks import format_ranks

#: Servers on which a microbatch may fail, and that may be lost while they have it, before the microbatch is to blame.
MOST_FAILURES = 2
MOST_LOST = 5

#: Bytes per second that a connection carries, with encryption: to a server and back is twice that (benchmarks/swarm).
TRANSFER = 5e8

#: Seconds that a server which was busy, or had moved, is sent nothing.
REST_S = 0.2

#: Longest wait, in milliseconds, for an event.
POLL_MS = 100


class MicrobatchFailed(StaggerError):
    """Several servers could not compute a microbatch, so it is not their fault."""

    exit_status = 1


def wait(_: Uncovered) -> None:
    """Wait for servers, however long it takes."""


class Client:
    """Sends microbatches through the servers that `look` returns.

    keys: the clients' keys of the run. None: no encryption.
    waits: called at each look while blocks that are needed have no server. It may raise, to end the waiting.
    tell: called with a line for the log.
    most_bytes: bytes of hidden states that the client holds at a time, or one microbatch.
    """

    def __init__(
        self,
        look: Callable[[], Looked],
        model: Model,
        keys: KeyPair | None,
        *,
        waits: Callable[[Uncovered], None] = wait,
        tell: Callable[[str], None] = print,
        timing: Timing = USUAL,
        most_bytes: int = 2**30,
    ) -> None:
        self.model = model
        self.counts: Counter[str] = Counter()
        self.connections = Connections(look, model, keys, tell, timing)
        self._waits = waits
        self._tell = tell
        self._timing = timing
        self._most_bytes = most_bytes
        self._random = Random()  # noqa: S311 - jitter.
        self._ids = itertools.count()
        self._waiting: list[Flight] = []
        self._polled = time.monotonic()
        self._resumed = -inf  # When this process last went on after a pause.
        self._end = model.total_blocks
        self._failed: dict[str, str] = {}  # Server -> why it failed, since the last microbatch that passed all blocks.
        self._stalled: float | None = None  # Since when blocks have no server.
        self._missing: list[int] = []

    @property
    def peers(self) -> Mapping[str, Peer]:
        return self.connections.peers

    @property
    def evicted(self) -> Mapping[str, str]:
        """Server -> why it was given up."""
        return self.connections.evicted

    # ---- The way of a microbatch ----

    def run(
        self, microbatches: Iterable[Work], blocks: int | None = None, may_take: Callable[[], bool] = lambda: True
    ) -> Iterator[tuple[Any, dict[int, Parts]]]:
        """Each microbatch's key, with the states of its layers, as they finish. `blocks`: pass only the first ones.

        A microbatch is taken when the servers have room for it, and `may_take` returns True.

        Raises MicrobatchFailed when several servers could not compute one, and whatever `waits` raises.
        """
        source, order = iter(microbatches), itertools.count()
        more, held = True, 0
        self._end = self.model.total_blocks if blocks is None else blocks
        self._polled = time.monotonic()
        try:
            while more or held:
                self._look_if_due()
                if takes := more and self._has_room(held) and may_take():
                    work = next(source, None)
                    more = work is not None
                    if work is not None:
                        self._waiting.append(Flight(work, next(order)))
                        held += 1
                self._send()
                self._check_coverage()
                landed = self._events(0 if takes else POLL_MS)
                held -= len(landed)
                for flight in landed:
                    yield flight.microbatch.key, flight.states
        finally:
            if held:
                self._forget_all()

    def close(self) -> None:
        self._forget_all()
        self.connections.close()

    def _has_room(self, held: int) -> bool:
        """Enough for every server to have its credits, as far as memory allows."""
        wanted = CREDITS * max(1, len(self.peers)) + 1
        return held < max(1, min(wanted, self._most_bytes // self.model.most_bytes))

    def _send(self) -> None:
        """Send what waits, the deepest first."""
        now, left = time.monotonic(), []
        full: set[int] = set()  # Blocks at which no server has a credit: it is the same for all that wait there.
        loads = {name: peer.load for name, peer in self.peers.items() if peer.ready}
        for flight in sorted(self._waiting, key=lambda flight: (-flight.at, flight.order)):
            blocks = range(flight.at, min(self._end, flight.doubts.question or self._end))
            able, hop = self._unasked(flight, loads, now), None
            if able is not loads or flight.at not in full:
                hop = next_hop(able, blocks, flight.tokens, now, flight.size / TRANSFER)
            if hop is None and able is loads:
                full.add(flight.at)
            if hop is None or not self._send_to(self.peers[hop[0]], flight, hop[1], now):
                left.append(flight)
        self._waiting = left

    def _unasked(self, flight: Flight, loads: dict[str, Load], now: float) -> dict[str, Load]:
        """The servers that may compute a microbatch: one that is in doubt goes to another server, if there is one."""
        if flight.rests_until > now:
            return {}
        if not flight.doubts.found or not flight.doubts.can_ask(self._covering(flight)):
            return loads
        asked = flight.doubts.asked
        return {name: load for name, load in loads.items() if name not in asked}

    def _covering(self, flight: Flight) -> list[str]:
        """The servers that have a microbatch's next block."""
        return [name for name, peer in self.peers.items() if peer.load.covers(flight.at)]

    def _send_to(self, peer: Peer, flight: Flight, end: int, now: float) -> bool:
        load, microbatch = peer.load, flight.microbatch
        flight.end = end
        work = flight.tokens * (end - flight.at)
        seconds = patience(load, work, self._timing.late_s, self._timing.first_late_s)
        flight.deadline = now + seconds
        request = Request(
            next(self._ids),
            flight.at,
            flight.end,
            self.model.dtype,
            microbatch.shape,
            round(seconds * 1000),
            microbatch.lengths,
            flight.hidden,
            flight.wanted(flight.end),
        )
        if not peer.send(request, flight, mean_rate(one.load for one in self.peers.values()), now):
            load.rests_until = now + REST_S
            return False
        self.counts["sent"] += 1
        return True

    # ---- What servers do ----

    def _events(self, timeout_ms: int) -> list[Flight]:
        """Wait for events; return the microbatches that have passed all blocks."""
        ready = self.connections.poll(timeout_ms)
        now, landed = time.monotonic(), list[Flight]()
        lost_after_s = self._timing.heartbeat.lost_after_s
        if now - self._polled > lost_after_s:
            self._resumed = now
        self._polled = now
        resumed = now - self._resumed < lost_after_s  # The connections that were closed meanwhile are told one by one.
        for peer in list(self.peers.values()):
            if peer.name not in self.peers:
                continue  # An answer of another server has shown that this one's are wrong.
            for frames in peer.messages() if peer.socket in ready else ():
                landed += self._answered(peer, frames)
                if peer.name not in self.peers:
                    break
            else:
                self._check(peer, now, resumed)
        return landed

    def _check(self, peer: Peer, now: float, resumed: bool) -> None:
        """Give up a server that is lost or late. While this process was paused, servers may have closed connections: it
        connects again.
        """
        for event in peer.events():
            if event == READY:
                peer.ready = True
            elif resumed and event == zmq.EVENT_DISCONNECTED:
                self._tell(f"connects to server {peer.name} again: the connection ended while this process was paused")
                self._waiting += self.connections.drop(peer)
                self.connections.look_soon()
                return
            else:
                self._evict(peer, LOST[event], lost=True)
                return
        if not resumed and any(flight.deadline < now for flight in peer.flights.values()):
            self._evict(peer, "it is late: its connection lives, but it does not answer", lost=True)

    def _answered(self, peer: Peer, frames: list[Buffer]) -> list[Flight]:
        """Take an answer; return its microbatch when it has passed all blocks."""
        flight = None
        try:
            flight = peer.back(wire.id_of(frames))
            if flight is None:
                return []
            answer = read_reply(frames, flight.size)
        except BadFrames as error:
            self._waiting += [] if flight is None else [flight]
            self._evict(peer, f"it breaks the rules of the wire: {error}")
            return []
        if isinstance(answer, Refusal):
            self._waiting.append(flight)
            self._refused(peer, flight, answer)
            return []
        return self._landed(peer, flight, answer)

    def _landed(self, peer: Peer, flight: Flight, reply: Reply) -> list[Flight]:
        if not flight.at < reply.end <= flight.end or set(reply.states) != set(flight.wanted(reply.end)):
            self._waiting.append(flight)
            self._evict(peer, "it breaks the rules of the wire: it answers for other blocks")
            return []
        blocks = reply.end - flight.at
        peer.load.learn(flight.tokens * blocks, reply.compute_ms / 1000)
        peer.load.others = reply.queue_tokens * (peer.load.end - peer.load.start)
        self.counts["hops"] += 1
        self.connections.saw_claim(reply.claim)
        if reply.nonfinite and self._doubts(peer, flight, reply):
            self.counts["doubted"] += 1
            self._waiting.append(flight)
            return []
        for name in flight.doubts.settle(reply):
            self._evict_wrong(name)
        flight.land(reply)
        flight.failures.clear()
        flight.lost = 0
        if flight.at == self._end:
            self._failed.clear()
            return [flight]
        self._waiting.append(flight)
        return []

    def _doubts(self, peer: Peer, flight: Flight, reply: Reply) -> bool:
        """Whether a result that is not finite may be the server's fault: another server is to compute it, too.

        Where there is none, one that has kept other microbatches finite is believed, and others after ALONE_S.
        """
        now = time.monotonic()
        if flight.doubts.note(peer.name, reply, now):
            return False
        if flight.doubts.can_ask(self._covering(flight)):
            return True
        flight.rests_until = now + REST_S
        return not flight.doubts.believes(reply, now)

    def _evict_wrong(self, name: str) -> None:
        if name in self.peers:
            self._evict(
                self.peers[name], "its results are not finite, but those of another server for the same states are"
            )

    def _refused(self, peer: Peer, flight: Flight, refusal: Refusal) -> None:
        self.counts[refusal.error] += 1
        if refusal.error == wire.LEAVING:
            self._evict(peer, "it leaves")
        elif refusal.error in (wire.FAILED, wire.BAD_REQUEST):
            flight.failures[peer.name] = self._failed[peer.name] = refusal.reason
            self._evict(peer, f"it failed: {refusal.reason}")
            if len(flight.failures) >= MOST_FAILURES:
                raise not_computed("a microbatch", flight.failures)
        else:
            peer.load.rests_until = time.monotonic() + REST_S * (0.5 + self._random.random())
            if refusal.error == wire.NOT_HERE and refusal.serving is not None:
                start, end = refusal.serving
                peer.load.start, peer.load.end = start, min(end, self.model.total_blocks)
                self.connections.look_soon()

    def _evict(self, peer: Peer, reason: str, lost: bool = False) -> None:
        """Give up a server for good, and put back what it had in hand."""
        flights = self.connections.evict(peer, reason)
        self._waiting += flights
        self.counts["replayed"] += len(flights)
        self._tell(f"gives up server {peer.name}: {reason}; {counted(len(flights), 'microbatch')} sent again")
        for flight in flights:
            flight.lost += lost
            if flight.lost >= MOST_LOST:
                raise MicrobatchFailed(f"{counted(MOST_LOST, 'server')} were lost while they computed one microbatch.")

    def _forget_all(self) -> None:
        for peer in list(self.peers.values()):
            self.connections.drop(peer)
        self._waiting = []

    # ---- Who serves ----

    def _look_if_due(self) -> None:
        if not self.connections.look_is_due:
            return
        if self._stalled is not None:
            self._waits(Uncovered(self._missing, time.monotonic() - self._stalled, self.evicted))
        self.connections.look(hurried=self._stalled is not None)

    def _check_coverage(self) -> None:
        """Note, and say once, when blocks that are needed have no server; and when they have one again."""
        now = time.monotonic()
        next_block = min((flight.at for flight in self._waiting), default=self._end)
        spans = [(peer.load.start, peer.load.end) for peer in self.peers.values()]
        self._missing = [block for block in uncovered(spans, self._end) if block >= next_block]
        if self._missing and self._stalled is None:
            if len(self._failed) >= MOST_FAILURES:  # Each another microbatch: new servers would fail, too.
                raise not_computed("microbatches", self._failed)
            self._stalled = now
            self.connections.look_soon()
            evicted = "".join(f"; {name} was given up: {why}" for name, why in list(self.evicted.items())[-3:])
            self._tell(f"no server serves blocks {format_ranks(self._missing)}: {waiting(self._waiting)}{evicted}")
        elif self._stalled is not None and not self._missing:
            self._tell(f"all blocks have servers again, after {now - self._stalled:.1f} s")
            self._stalled = None


def not_computed(what: str, failures: Mapping[str, str]) -> MicrobatchFailed:
    told = "; ".join(f"{name}: {why}" for name, why in failures.items())
    return MicrobatchFailed(f"{counted(len(failures), 'server')} could not compute {what}: {told}.")


def waiting(flights: Sequence[Flight]) -> str:
    return f"{counted(len(flights), 'microbatch')} {'waits' if len(flights) == 1 else 'wait'}"
