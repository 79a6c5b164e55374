"""Hidden states of 16 MB to a server and back: raw sockets, the wire in the clear, and the wire with CURVE."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import zmq

from benchmarks.swarm.processes import cpu_s, echo, servers, started, told
from stagger.blocks.serving.keys import KeyPair
from stagger.blocks.serving.wire import Model, Request, write_lengths

#: 1024 tokens of 4096 values in float32.
TOKENS, HIDDEN = 1024, 4096
BYTES = TOKENS * HIDDEN * 4

#: Longest wait, in milliseconds, for a server.
MOST_MS = 60_000

MODEL = Model(2, HIDDEN, "float32", TOKENS)


def raw_echo(pipe: Any) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    pipe.send(listener.getsockname()[1])
    peer, _ = listener.accept()
    buffer = bytearray(BYTES)
    while receive(peer, memoryview(buffer)):
        peer.sendall(buffer)


def receive(peer: socket.socket, into: memoryview) -> bool:
    done = 0
    while done < len(into):
        got = peer.recv_into(into[done:])
        if not got:
            return False
        done += got
    return True


def raw(repeat: int) -> dict[str, float]:
    process, pipe = started(raw_echo)
    data, back = bytes(BYTES), bytearray(BYTES)
    with socket.create_connection(("127.0.0.1", told(process, pipe))) as peer:

        def once() -> None:
            peer.sendall(data)
            receive(peer, memoryview(back))

        found = timed(once, repeat, process.pid or 0)
    process.kill()
    process.join()
    return found


def wire(repeat: int, keys: KeyPair | None) -> dict[str, float]:
    """One connection, one request at a time."""
    with servers(echo, MODEL, keys, [(0, 2, 0.0)]) as (offers, processes), zmq.Context() as context:
        (offer,) = offers.values()
        dealer = context.socket(zmq.DEALER)
        dealer.linger = 0
        dealer.rcvtimeo = dealer.sndtimeo = MOST_MS  # A server that has died does not answer.
        if keys:
            dealer.curve_serverkey = offer.public_key
            dealer.curve_publickey, dealer.curve_secretkey = keys.public, keys.secret
        dealer.connect(offer.address)
        request = Request(0, 0, 2, "float32", (1, TOKENS, HIDDEN), MOST_MS, write_lengths([TOKENS]), bytes(BYTES))

        def once() -> None:
            dealer.send_multipart(request.frames(), copy=False)
            frames = dealer.recv_multipart(copy=False)
            assert len(frames[1].buffer) == BYTES

        (process,) = processes.values()
        found = timed(once, repeat, process.pid)
        dealer.close()
    return found


def timed(once: Callable[[], None], repeat: int, pid: int) -> dict[str, float]:
    """Of one round trip: seconds of the fastest, CPU seconds of both processes, and bytes per second each way."""
    once()
    began, walls = cpu_s(pid) + cpu_s(os.getpid()), []
    for _ in range(repeat):
        started = time.perf_counter()
        once()
        walls.append(time.perf_counter() - started)
    spent = cpu_s(pid) + cpu_s(os.getpid()) - began
    return {"wall_s": min(walls), "cpu_s": spent / repeat, "bytes_per_s": 2 * BYTES / min(walls)}


def measure(repeat: int) -> dict[str, Any]:
    """The three in turn, `repeat` round trips each, three times; the best of each."""
    rounds: dict[str, list[dict[str, float]]] = {"raw": [], "zmq": [], "curve": []}
    for _ in range(3):
        rounds["raw"].append(raw(repeat))
        rounds["zmq"].append(wire(repeat, None))
        rounds["curve"].append(wire(repeat, KeyPair.new()))
    best = {name: min(found, key=lambda one: one["wall_s"]) for name, found in rounds.items()}
    return {
        "bytes": BYTES,
        "best": best,
        "zmq_wall_to_raw": best["zmq"]["wall_s"] / best["raw"]["wall_s"],
        "zmq_cpu_to_raw": best["zmq"]["cpu_s"] / best["raw"]["cpu_s"],
        "curve_wall_to_raw": best["curve"]["wall_s"] / best["raw"]["wall_s"],
        "curve_bytes_per_s": best["curve"]["bytes_per_s"],
    }
