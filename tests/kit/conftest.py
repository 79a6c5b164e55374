"""Fixtures: the S3 server of the load and fault tests, and raw connections to it."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from urllib.parse import quote, urlsplit

import pytest
import s3fs

from tests.kit.s3_server import S3Server, running


@pytest.fixture(scope="module")
def shared() -> Iterator[S3Server]:
    with running("--virtual", "virtual/small/:40:1000", "--virtual", "virtual/large/:1:256M") as server:
        yield server


@pytest.fixture
def server(shared: S3Server) -> S3Server:
    """The module's server without faults, with its counts reset and an empty bucket `data`."""
    shared.set_faults()
    files = s3fs.S3FileSystem(endpoint_url=shared.endpoint, key="key", secret="secret", skip_instance_cache=True)
    if files.exists("data"):
        files.rm("data", recursive=True)
    files.mkdir("data")
    shared.reset()
    return shared


class Wire:
    """Sends raw requests, each on its own connection."""

    def __init__(self, server: S3Server) -> None:
        self.address = (urlsplit(server.endpoint).hostname, urlsplit(server.endpoint).port)

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        connection = socket.socket()
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.connect(self.address)
        return connection

    def ask(
        self, method: str, path: str, body: bytes | Iterator[bytes] | None = None, **headers: str
    ) -> tuple[int, bytes]:
        """Status and body of the response. Write `_` for `-` in names of headers."""
        connection = http.client.HTTPConnection(*self.address, timeout=60)  # type: ignore[arg-type]
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, quote(path, safe="/?&="), body, named, encode_chunked=True)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def outcome(self, method: str, path: str, body: bytes | None = None) -> str:
        """The outcome as seen by a client that does not retry."""
        try:
            return str(self.ask(method, path, body)[0])
        except http.client.IncompleteRead:
            return "truncated"
        except ConnectionError:
            return "reset"


@pytest.fixture
def wire(server: S3Server) -> Wire:
    return Wire(server)
