"""A client's connection to one server: its socket, the socket's events, and what the server has in hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from stagger.blocks.serving.flight import Flight
from stagger.blocks.serving.keys import KeyPair
from stagger.blocks.serving.routing import Load, Offer
from stagger.blocks.serving.span_server import CREDITS, Heartbeat
from stagger.blocks.serving.wire import Buffer, Request, part_of

#: Events of a socket after which its server is lost, in words.
LOST = {
    zmq.EVENT_DISCONNECTED: "its connection is gone",
    zmq.EVENT_CLOSED: "it cannot be reached",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "it refuses the key of this run",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "it does not own the key that it published",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "it did not finish the handshake",
}

#: The event after which requests may be sent.
READY = zmq.EVENT_HANDSHAKE_SUCCEEDED


class Peer:
    """A server, connected to once: a connection that is lost does not come back."""

    def __init__(self, context: Any, offer: Offer, keys: KeyPair | None, most_frame: int, heartbeat: Heartbeat) -> None:
        self.offer = offer
        self.load = Load(offer.start, offer.end, CREDITS, offer.rate)
        self.ready = False
        self.sent = 0
        self.flights: dict[int, Flight] = {}
        self._part = part_of(keys is not None)
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.sndhwm = self.socket.rcvhwm = 2 * CREDITS
        self.socket.maxmsgsize = most_frame
        self.socket.reconnect_ivl = -1
        self.socket.connect_timeout = round(heartbeat.lost_after_s * 1000)
        heartbeat.set(self.socket)
        if keys is not None:
            self.socket.curve_serverkey = offer.public_key
            self.socket.curve_publickey, self.socket.curve_secretkey = keys.public, keys.secret
        self.monitor = self.socket.get_monitor_socket(READY | sum(LOST))
        self.socket.connect(offer.address)

    @property
    def name(self) -> str:
        return self.offer.server_id

    def send(self, request: Request, flight: Flight, rate: float, now: float) -> bool:
        """Send without waiting; return whether the connection took it. It takes none once it is lost."""
        try:
            self.socket.send_multipart(request.frames(self._part), zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        self.flights[request.id] = flight
        flight.work = request.tokens * (request.end - request.start)
        self.load.send(flight.work, self.load.rate or rate, now)
        self.sent += 1
        return True

    def back(self, identifier: int) -> Flight | None:
        """The microbatch of an answer, which the server has no more in hand; None if it never had it."""
        flight = self.flights.pop(identifier, None)
        if flight is not None:
            self.load.own -= flight.work
            self.load.credits += 1
        return flight

    def events(self) -> Iterator[int]:
        """What has happened to the connection since the last call."""
        while self.monitor.poll(0):
            yield recv_monitor_message(self.monitor)["event"]

    def messages(self) -> Iterator[list[Buffer]]:
        """The answers that have arrived. Their buffers stay valid."""
        while self.socket.poll(0):
            yield [frame.buffer for frame in self.socket.recv_multipart(copy=False)]

    def close(self) -> list[Flight]:
        """End the connection; return the microbatches that the server had in hand."""
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(0)
        flights, self.flights = list(self.flights.values()), {}
        return flights
