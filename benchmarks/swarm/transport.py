"""Hidden states to a server and back: raw sockets, the wire in the clear, and the wire with CURVE, in turn.

All connections are open at once, and each has passed some messages before the first one that counts: a process that is
new gets the memory of its first messages from the kernel. Raw sockets receive into one buffer that they keep, which is
the least that can be done. The wire is a client and a server of a swarm, one microbatch at a time.
"""

from __future__ import annotations

import itertools
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks.swarm.processes import client_of, cpu_s, echo, servers, started, told, work
from stagger.blocks.serving.keys import KeyPair
from stagger.blocks.serving.wire import Model, size_of

#: 4096 values in float32 a token. 16 MB are 1024 tokens.
HIDDEN = 4096

#: Messages of each connection that do not count.
WARM = 5

#: One round trip, and the process at its other end.
Way = tuple[Callable[[], None], int]


def raw_echo(pipe: Any, size: int) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    pipe.send(listener.getsockname()[1])
    peer, _ = listener.accept()
    buffer = bytearray(size)
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


@contextmanager
def raw(size: int) -> Iterator[Way]:
    process, pipe = started(raw_echo, size)
    data, back = bytes(size), bytearray(size)
    with socket.create_connection(("127.0.0.1", told(process, pipe))) as peer:

        def once() -> None:
            peer.sendall(data)
            receive(peer, memoryview(back))

        yield once, process.pid
    process.kill()
    process.join()


@contextmanager
def wire(size: int, keys: KeyPair | None) -> Iterator[Way]:
    model = Model(2, HIDDEN, "float32", size // HIDDEN // 4)
    with servers(echo, model, keys, [(0, 2, 0.0)]) as (offers, processes):
        client = client_of(offers, model, keys, most_bytes=size)
        one = work(0, model, model.most_tokens)
        running = client.run(itertools.repeat(one))
        (process,) = processes.values()
        yield lambda: check(next(running), size), process.pid
        client.close()


def check(landed: Any, size: int) -> None:
    _, states = landed
    assert size_of(states[2]) == size


def measure(repeat: int, megabytes: int = 16) -> dict[str, Any]:
    """Of round trips of 2^20 bytes times `megabytes`: wall and CPU seconds, of both processes, and their ratios to raw.

    Ratios are medians of those of each turn, since other processes of a shared machine disturb some turns.
    """
    size = megabytes * 2**20
    with ExitStack() as stack:
        ways = {
            "raw": stack.enter_context(raw(size)),
            "zmq": stack.enter_context(wire(size, None)),
            "curve": stack.enter_context(wire(size, KeyPair.new())),
        }
        for (once, _), _ in itertools.product(ways.values(), range(WARM)):
            once()
        turns = [{name: timed(*way) for name, way in ways.items()} for _ in range(repeat)]
    found: dict[str, Any] = {"bytes": size}
    for name in ways:
        walls, cpus = zip(*(turn[name] for turn in turns), strict=True)
        found[name] = {
            "wall_s": min(walls),
            "median_wall_s": statistics.median(walls),
            "cpu_s": statistics.median(cpus),
            "bytes_per_s": 2 * size / min(walls),
            "wall_to_raw": min(walls) / min(turn["raw"][0] for turn in turns),
            "median_wall_to_raw": statistics.median(turn[name][0] / turn["raw"][0] for turn in turns),
            "cpu_to_raw": statistics.median(turn[name][1] / turn["raw"][1] for turn in turns),
        }
    return found


def timed(once: Callable[[], None], pid: int) -> tuple[float, float]:
    """Wall seconds of one round trip, and CPU seconds of both processes."""
    began, started = cpu_s(pid) + cpu_s(os.getpid()), time.perf_counter()
    once()
    wall = time.perf_counter() - started
    return wall, cpu_s(pid) + cpu_s(os.getpid()) - began
