"""The servers that a client is connected to: found by looks at the registry, left when they are lost or given up."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import zmq

from stagger.blocks.serving.flight import Flight
from stagger.blocks.serving.keys import KeyPair
from stagger.blocks.serving.peer import Peer
from stagger.blocks.serving.routing import Offer
from stagger.blocks.serving.span_server import Heartbeat
from stagger.blocks.serving.wire import Model


@dataclass(frozen=True)
class Timing:
    """Seconds. `look_s`: least and longest time between two looks at the registry. `late_s`: least time after which an
    answer is late; `first_late_s`: that of a server whose speed is not known.
    """

    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    look_s: tuple[float, float] = (1.0, 60.0)
    late_s: float = 15.0
    first_late_s: float = 180.0


USUAL = Timing()


@dataclass(frozen=True)
class Looked:
    """One look at the registry: the servers that serve now, by id, and the number of the latest claim."""

    offers: Mapping[str, Offer]
    claim: int = 0


class Connections:
    """Connects to the servers that `look` returns, but for those that were given up.

    peers: the connections, by server. evicted: server -> why it was given up, for good.
    keys: the clients' keys of the run. None: no encryption.
    tell: called with a line for the log.
    """

    def __init__(
        self,
        look: Callable[[], Looked],
        model: Model,
        keys: KeyPair | None,
        tell: Callable[[str], None],
        timing: Timing,
    ) -> None:
        self.peers: dict[str, Peer] = {}
        self.evicted: dict[str, str] = {}
        self._look = look
        self._model = model
        self._keys = keys
        self._tell = tell
        self._timing = timing
        self._context = zmq.Context()
        self._ended = weakref.finalize(self, end, self.peers, self._context)
        self._ended.atexit = False
        self._poller = zmq.Poller()
        self._random = Random()  # noqa: S311 - jitter.
        self._claim = 0
        self._changed = self._look_at = time.monotonic()

    def close(self) -> None:
        self._ended()

    def poll(self, timeout_ms: int) -> Mapping[Any, int]:
        """Wait for something to happen; return the sockets at which it has."""
        if not self.peers:
            time.sleep(timeout_ms / 1000)  # A poller without sockets does not wait.
        return dict(self._poller.poll(timeout_ms))

    # ---- Looks ----

    @property
    def look_is_due(self) -> bool:
        return time.monotonic() >= self._look_at

    def look_soon(self) -> None:
        self._look_at = min(self._look_at, time.monotonic() + self._timing.look_s[0] * self._random.random())

    def saw_claim(self, claim: int) -> None:
        """Look soon if this claim is later than those of the last look."""
        if claim > self._claim:
            self._changed = time.monotonic()
            self.look_soon()

    def look(self, *, hurried: bool) -> None:
        """Look at the registry. The next look is due soon if `hurried` or after a change, and else later and later."""
        now = time.monotonic()
        looked = self._look()
        self._claim = looked.claim
        if self._take_over(looked.offers):
            self._changed = now
        least, longest = self._timing.look_s
        after = least if hurried else min(longest, max(least, (now - self._changed) / 2))
        self._look_at = time.monotonic() + after * (0.5 + self._random.random())

    def _take_over(self, offers: Mapping[str, Offer]) -> bool:
        """Connect to new servers, and leave those that are not listed any more; return whether anything changed."""
        changed = False
        for name, offer in offers.items():
            peer = self.peers.get(name)
            if peer is None and name not in self.evicted:
                self._connect(offer)
                changed = True
            elif peer is not None and (peer.offer.start, peer.offer.end) != (offer.start, offer.end):
                peer.offer = offer
                peer.load.start, peer.load.end = offer.start, offer.end
                changed = True
        for peer in list(self.peers.values()):
            if peer.name not in offers and not peer.flights:
                self._tell(
                    f"uses server {peer.name} no more: it is not in the registry any more, and had nothing in hand"
                )
                self.drop(peer)
                changed = True
        return changed

    # ---- One server ----

    def _connect(self, offer: Offer) -> None:
        peer = Peer(self._context, offer, self._keys, self._model.most_frame, self._timing.heartbeat)
        self.peers[peer.name] = peer
        self._poller.register(peer.socket, zmq.POLLIN)
        self._poller.register(peer.monitor, zmq.POLLIN)

    def drop(self, peer: Peer) -> list[Flight]:
        """End a connection; return what the server had in hand."""
        del self.peers[peer.name]
        self._poller.unregister(peer.socket)
        self._poller.unregister(peer.monitor)
        return peer.close()

    def evict(self, peer: Peer, reason: str) -> list[Flight]:
        """Give up a server for good; return what it had in hand."""
        self.evicted[peer.name] = reason
        self.look_soon()
        return self.drop(peer)


def end(peers: dict[str, Peer], context: Any) -> None:
    """End all connections, also of a client that nobody closes: libzmq waits for sockets of a context without end."""
    for peer in peers.values():
        peer.close()
    context.term()
