"""A TCP connection that the test can record and cut."""

from __future__ import annotations

import contextlib
import socket
import threading


class Proxy:
    """Forwards connections to `address` (tcp://host:port). `sent`: the bytes of clients, per connection."""

    def __init__(self, address: str) -> None:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent: list[bytearray] = []
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self.sent.append(bytearray())
                self._open += [near, far]
                threading.Thread(target=self._forward, args=(near, far, self.sent[-1]), daemon=True).start()
                threading.Thread(target=self._forward, args=(far, near, None), daemon=True).start()

    @staticmethod
    def _forward(source: socket.socket, target: socket.socket, record: bytearray | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if record is not None:
                    record += data
                target.sendall(data)
        close(source, target)

    def cut(self) -> None:
        """End all connections. New ones are taken."""
        close(*self._open)
        self._open = []

    def close(self) -> None:
        self._listener.close()
        self.cut()


def close(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
