"""What strangers and broken clients send costs a server nothing: it goes on, with bounded memory, and nothing leaks."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from stagger.blocks.serving.client import Client
from stagger.blocks.serving.connections import Looked
from stagger.blocks.serving.keys import VARIABLE, KeyPair, client_keys, key_path, remove_client_keys
from stagger.blocks.serving.routing import Offer, Uncovered
from stagger.blocks.serving.span_server import CREDITS, SpanServer
from stagger.blocks.serving.wire import MOST_HEADER_BYTES, Model, Request, write_lengths
from stagger.errors import StaggerError
from tests.blocks.serving.conftest import QUICK
from tests.conftest import until
from tests.kit.span_servers import HEARTBEAT, MODEL, SHAPE, Blocks, Faults, Servers, hidden_state, passed, work
from tests.kit.tcp_proxy import Proxy

Start = Callable[..., SpanServer]


@pytest.fixture
def start(keys: KeyPair) -> Iterator[Start]:
    """Start servers in threads of the test. Each must serve to the end."""
    stop, threads = threading.Event(), list[threading.Thread]()

    def begin(clients: bytes | None = keys.public, model: Model = MODEL) -> SpanServer:
        server = SpanServer(Blocks(0, 12, Faults()), model, "127.0.0.1", clients, heartbeat=HEARTBEAT)
        threads.append(threading.Thread(target=server.serve, args=(stop,), daemon=True))
        threads[-1].start()
        return server

    yield begin
    stop.set()
    for thread in threads:
        thread.join()


@pytest.fixture
def context() -> Iterator[Any]:
    with zmq.Context() as one:
        yield one
        one.destroy(0)


def asks(server: SpanServer, keys: KeyPair | None, address: str = "") -> None:
    """A sound client gets its answer."""
    offer = Offer("00000.1", address or server.address, server.public_key, 0, 12)
    one = Client(lambda: Looked({"00000.1": offer}), MODEL, keys, timing=QUICK)
    ((number, states),) = one.run([work(7)])
    one.close()
    assert number == 7
    assert np.array_equal(
        np.frombuffer(b"".join(states[12]), np.float32).reshape(SHAPE), passed(hidden_state(7), 0, 12)
    )


def dealer(context: Any, server: SpanServer, keys: KeyPair | None) -> Any:
    """A client's socket, as others may make it."""
    one = context.socket(zmq.DEALER)
    one.get_monitor_socket().rcvtimeo = 100_000  # Before it connects, so that no event is missed.
    one.linger = 0
    one.rcvtimeo = 100_000
    if keys is not None:
        one.curve_serverkey = server.public_key
        one.curve_publickey, one.curve_secretkey = keys.public, keys.secret
    one.connect(server.address)
    return one


def refused(one: Any, wanted: int) -> None:
    """Wait until an event has happened to a client's socket that is connecting."""
    watch = one.get_monitor_socket()
    while recv_monitor_message(watch)["event"] != wanted:
        pass


def test_without_the_key_of_the_run_nobody_is_let_in(start: Start, keys: KeyPair, context: Any) -> None:
    server = start()
    plain = dealer(context, server, None)
    plain.send_multipart(Request(0, 0, 12, "float32", SHAPE, 1000, write_lengths([8] * 4), [bytes(2048)]).frames())
    refused(plain, zmq.EVENT_DISCONNECTED)
    refused(dealer(context, server, KeyPair.new()), zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    assert server.counts["strangers"] >= 1
    asks(server, keys)
    assert server.counts["computed"] == 1
    assert server.counts["bad_request"] == 0


def test_a_server_that_does_not_own_its_published_key_is_told_nothing(start: Start, keys: KeyPair) -> None:
    server = start()
    wrong = Offer("00000.1", server.address, KeyPair.new().public, 0, 12)
    right = Offer("00001.1", server.address, server.public_key, 0, 12)
    seen = [Looked({"00000.1": wrong})]

    def no_more(_: Uncovered) -> None:
        seen[0] = Looked({"00001.1": right})

    one = Client(lambda: seen[0], MODEL, keys, timing=QUICK, waits=no_more)
    assert len(list(one.run([work(1)]))) == 1
    one.close()
    assert list(one.evicted) == ["00000.1"]
    assert server.counts["computed"] == 1


def test_garbage_and_what_others_have_recorded_is_not_answered(start: Start, keys: KeyPair) -> None:
    server = start()
    proxy = Proxy(server.address)
    asks(server, keys, proxy.address)
    host, _, port = server.address.removeprefix("tcp://").rpartition(":")
    recorded = bytes(proxy.sent[0])
    assert len(recorded) > 2048
    for data in (os.urandom(4096), b"GET / HTTP/1.1\r\n\r\n" * 40, recorded, recorded[:64] + os.urandom(4096)):
        with socket.create_connection((host, int(port))) as stranger:
            stranger.sendall(data)
            try:
                while stranger.recv(1 << 16):
                    pass
            except ConnectionResetError:
                pass
    proxy.close()
    assert server.counts["computed"] == 1
    asks(server, keys)
    assert server.counts["computed"] == 2


GOOD = {"v": 1, "id": 5, "from": 0, "to": 12, "dtype": "float32", "shape": SHAPE, "deadline_ms": 9999, "want": []}
LENGTHS, HIDDEN = write_lengths([8] * 4), bytes(2048)


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([b""], "the header is not JSON"),
        ([b"\xff" * 100, LENGTHS, HIDDEN], "the header is not JSON"),
        ([b"[" * 1000, LENGTHS, HIDDEN], "the header is not JSON"),
        ([b"x" * (MOST_HEADER_BYTES + 1), LENGTHS, HIDDEN], "a message begins with a header of at most 1024 bytes"),
        ([b"[1]", LENGTHS, HIDDEN], "the header is not a JSON object"),
        ([{}, LENGTHS, HIDDEN], "version 1 of the wire is spoken here"),
        ([{**GOOD, "v": 2}, LENGTHS, HIDDEN], "version 1 of the wire is spoken here"),
        ([GOOD], "a request has at least 3 frames, not 1"),
        ([GOOD, LENGTHS, HIDDEN, b""], "a hidden state of 2,048 bytes has too many parts: 2"),
        (
            [GOOD, LENGTHS, HIDDEN[:8], HIDDEN[8:]],
            "a hidden state of 2,048 bytes has too many parts: 2",
        ),
        ([{**GOOD, "id": -1}, LENGTHS, HIDDEN], "id must be a whole number"),
        ([{**GOOD, "id": "5"}, LENGTHS, HIDDEN], "id must be a whole number"),
        ([{**GOOD, "from": None}, LENGTHS, HIDDEN], "from must be a whole number"),
        ([{**GOOD, "from": 12}, LENGTHS, HIDDEN], "blocks 12 to 11 are not in this model, which has 12 blocks"),
        ([{**GOOD, "to": 13}, LENGTHS, HIDDEN], "blocks 0 to 12 are not in this model, which has 12 blocks"),
        ([{**GOOD, "dtype": "float16"}, LENGTHS, HIDDEN], "the hidden states of this swarm are float32"),
        ([{**GOOD, "shape": [4, 8]}, LENGTHS, HIDDEN], "the shape must be [rows, length, 16]"),
        ([{**GOOD, "shape": [4, 8, 32]}, LENGTHS, HIDDEN], "the shape must be [rows, length, 16]"),
        ([{**GOOD, "shape": [0, 8, 16]}, LENGTHS, HIDDEN], "the shape must be [rows, length, 16]"),
        ([{**GOOD, "shape": [4, 1e3, 16]}, LENGTHS, HIDDEN], "shape must be a list of whole numbers"),
        ([{**GOOD, "shape": [2**24, 1, 16]}, LENGTHS, HIDDEN], "a request has at most 256 tokens, padding included"),
        ([GOOD, LENGTHS, HIDDEN[1:]], "the hidden state has 2,047 bytes, which is not that of its shape"),
        ([GOOD, LENGTHS[1:], HIDDEN], "the lengths of 4 rows take 4 bytes each, but have 15"),
        ([GOOD, write_lengths([8, 8, 9, 8]), HIDDEN], "each row has 0 to 8 tokens"),
        ([GOOD, write_lengths([8, 8, -1, 8]), HIDDEN], "each row has 0 to 8 tokens"),
        ([{**GOOD, "want": [3, 3]}, LENGTHS, HIDDEN], "the wanted layers must ascend between the ends"),
        ([{**GOOD, "want": [12]}, LENGTHS, HIDDEN], "the wanted layers must ascend between the ends"),
        ([{**GOOD, "deadline_ms": 1e400}, LENGTHS, HIDDEN], "the header is not JSON"),
    ],
)
def test_a_bad_header_is_answered(bad: Callable[[list[Any]], Any], frames: list[Any], reason: str) -> None:
    answer = bad([json.dumps(frame).encode() if isinstance(frame, dict) else frame for frame in frames])
    assert (answer["error"], answer["reason"]) == ("bad_request", reason)


@pytest.fixture(scope="module")
def bad() -> Iterator[Callable[[list[Any]], Any]]:
    """Send frames to one server, by one connection that has the key; return the answer's header."""
    keys, stop = KeyPair.new(), threading.Event()
    server = SpanServer(Blocks(0, 12, Faults()), MODEL, "127.0.0.1", keys.public, heartbeat=HEARTBEAT)
    thread = threading.Thread(target=server.serve, args=(stop,), daemon=True)
    thread.start()
    with zmq.Context() as context:
        one = dealer(context, server, keys)

        def ask(frames: list[Any]) -> Any:
            one.send_multipart(frames)
            return json.loads(one.recv_multipart()[0])

        yield ask
        asks(server, keys)
        stop.set()
        thread.join()
        context.destroy(0)


@contextlib.contextmanager
def by_hand(server: SpanServer) -> Iterator[socket.socket]:
    """A connection that speaks ZMTP 3.1 without a library; nothing is encrypted, so that anybody may send frames."""
    host, _, port = server.address.removeprefix("tcp://").rpartition(":")
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
    ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
    with socket.create_connection((host, int(port))) as stranger:
        stranger.sendall(greeting + b"\x04" + bytes([len(ready)]) + ready)
        stranger.recv(64, socket.MSG_WAITALL)
        stranger.recv(stranger.recv(2, socket.MSG_WAITALL)[1], socket.MSG_WAITALL)
        yield stranger


def send(stranger: socket.socket, part: bytes, most: int) -> None:
    for _ in range(most // len(part)):
        stranger.sendall(part)


def test_a_frame_that_claims_a_gigabyte_ends_its_connection(start: Start) -> None:
    server = start(clients=None)
    with by_hand(server) as stranger:
        stranger.sendall(b"\x02" + struct.pack(">Q", 2**30))
        while stranger.recv(1 << 16):
            pass
    asks(server, None)


@pytest.mark.parametrize("part", [b"\x01\0" * 8192, b"\x03" + struct.pack(">Q", 16000) + bytes(16000)])
def test_a_message_that_never_ends_fills_no_memory(start: Start, part: bytes) -> None:
    """Empty parts, or large ones, each of which says that more parts follow. A client that waits is not disturbed."""
    server = start(clients=None)
    with by_hand(server) as stranger, pytest.raises(ConnectionError):
        send(stranger, part, 2**30)
    assert server.inflow.ended == 1
    asks(server, None)


def test_clients_that_never_read_fill_no_memory(servers: Servers, keys: KeyPair, context: Any) -> None:
    servers.start("00000.1", 0, 12)
    until(servers.are_there, "the server")
    (offer,) = servers.look().offers.values()
    before = servers.memory_mb("00000.1")
    frames = Request(0, 0, 12, "float32", (4, 64, 16), 60_000, write_lengths([64] * 4), [bytes(16384)]).frames()
    for _ in range(4):
        deaf = context.socket(zmq.DEALER)
        deaf.linger, deaf.sndtimeo, deaf.rcvhwm = 0, 2000, 1
        deaf.curve_serverkey, deaf.curve_publickey, deaf.curve_secretkey = offer.public_key, keys.public, keys.secret
        deaf.connect(offer.address)
        with contextlib.suppress(zmq.Again):  # The server may hang up on one that sends without waiting.
            for _ in range(5000):
                deaf.send_multipart(frames)  # 80 MB in all.
    one = Client(servers.look, MODEL, keys, timing=QUICK)
    assert len(list(one.run(work(index) for index in range(20)))) == 20
    one.close()
    assert one.evicted == {}
    assert servers.memory_mb("00000.1") - before < 60


def test_more_than_its_credits_is_refused_to_a_client(keys: KeyPair, context: Any) -> None:
    held, stop = threading.Event(), threading.Event()
    blocks = Blocks(0, 12, Faults())

    def compute(request: Request) -> Any:
        held.wait()
        return blocks(request)

    server = SpanServer(compute, MODEL, "127.0.0.1", keys.public, heartbeat=HEARTBEAT)
    thread = threading.Thread(target=server.serve, args=(stop,), daemon=True)
    thread.start()
    one = dealer(context, server, keys)
    for number in range(5):
        one.send_multipart(Request(number, 0, 12, "float32", SHAPE, 60_000, LENGTHS, [HIDDEN]).frames())
    refused = [json.loads(one.recv_multipart()[0]) for _ in range(5 - CREDITS)]
    assert [(answer["id"], answer["error"]) for answer in refused] == [(2, "busy"), (3, "busy"), (4, "busy")]
    stop.set()
    assert json.loads(one.recv_multipart()[0]) == {
        "v": 1,
        "id": 1,
        "error": "leaving",
        "reason": "",
        "serving": None,
    }
    held.set()
    assert json.loads(one.recv_multipart()[0])["to"] == 12
    thread.join()


def test_the_clients_key_is_one_file_that_its_owner_alone_can_read(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    path = key_path(str(folder))
    found: list[KeyPair] = []
    threads = [threading.Thread(target=lambda: found.append(client_keys(path, {}))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert len({pair.secret for pair in found}) == 1
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert found[0].secret.decode() not in repr(found[0])
    file.chmod(0o640)
    with pytest.raises(StaggerError, match="must be a file that you alone can read"):
        client_keys(path, {})
    file.chmod(0o600)
    file.write_text("short")
    with pytest.raises(StaggerError, match="holds no key of a swarm: a key has 40 characters"):
        client_keys(path, {})
    assert client_keys("s3://bucket/run/swarm.key", {VARIABLE: found[0].secret.decode()}) == found[0]
    with pytest.raises(StaggerError, match="a bucket has no files that only you may read"):
        client_keys("s3://bucket/run/swarm.key", {})
    remove_client_keys(path)
    remove_client_keys(path)
    assert list(folder.iterdir()) == []
    assert key_path("s3://bucket/a", str(tmp_path)) != key_path("s3://bucket/b", str(tmp_path))
