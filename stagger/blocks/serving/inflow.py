"""Ends connections whose messages never end. libzmq keeps the parts of a message until its last one has come.

It limits the size of a part, but not their number, so memory would be without a bound. Here the kernel's count of the
bytes that a connection has received is compared with what it was when the last whole message came.
"""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

#: Seconds between two looks at all connections.
EVERY_S = 0.25

#: Bytes for the handshake and what else is sent once, and bytes per second for heartbeats.
SPARE_BYTES, HEARTBEAT_BYTES_PER_S = 2**20, 1024

#: Place of the u64 tcpi_bytes_received in struct tcp_info of linux/tcp.h, since Linux 4.1, and bytes up to its end.
PLACE, SIZE = 128, 136


@dataclass
class _Seen:
    """Bytes that a connection had received when a whole message came last, and when that was."""

    received: int
    at: float


class Inflow:
    """Watches the connections of a socket that listens.

    most_bytes: what a client sends at most before it has its next answer.
    """

    def __init__(self, listening: Any, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.ended = 0
        self._listening = listening
        self._seen: dict[int, _Seen] = {}
        self._next = time.monotonic()
        self._events = listening.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)

    def message(self, frame: Any) -> None:
        """A whole message has come, of which `frame` is the last part."""
        number = frame.get(zmq.SRCFD)
        self._seen[number] = _Seen(received_bytes(number), time.monotonic())

    def check(self) -> None:
        """Shut down the connections that have received too much since their last message."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + EVERY_S
        while self._events.poll(0):
            event = recv_monitor_message(self._events)
            if event["event"] == zmq.EVENT_ACCEPTED:
                self._seen.setdefault(int(event["value"]), _Seen(0, now))
            else:
                self._seen.pop(int(event["value"]), None)
        for number, seen in self._seen.items():
            allowed = self.most_bytes + SPARE_BYTES + HEARTBEAT_BYTES_PER_S * (now - seen.at)
            if received_bytes(number) - seen.received > allowed:
                self.ended += 1
                shut_down(number)

    def close(self) -> None:
        self._listening.disable_monitor()
        self._events.close(0)


def received_bytes(number: int) -> int:
    """Bytes that the connection with this descriptor has received. 0 when it is gone, or the kernel counts none."""
    try:
        with _Borrowed(number) as connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SIZE)
    except (OSError, AttributeError):
        return 0
    return int(struct.unpack_from("Q", info, PLACE)[0]) if len(info) >= SIZE else 0


def shut_down(number: int) -> None:
    """End a connection as if its other end had: libzmq drops what it has of it. The other end hears of it at once."""
    try:
        with _Borrowed(number) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


class _Borrowed:
    """A connection of libzmq as a socket of Python, which does not close it."""

    def __init__(self, number: int) -> None:
        self._socket = socket.socket(fileno=number)

    def __enter__(self) -> socket.socket:
        return self._socket

    def __exit__(self, *_: object) -> None:
        self._socket.detach()
