"""What clients get of the capacity of unequal servers, and how fast a lost one is noticed. Computing is sleep."""

from __future__ import annotations

import itertools
import os
import signal
import statistics
import time
from typing import Any

from benchmarks.swarm.processes import client_of, servers, sleeping, started, told, work
from stagger.blocks.placement.bound import routing_capacity
from stagger.blocks.placement.spans import Span
from stagger.blocks.serving.keys import KeyPair
from stagger.blocks.serving.routing import Offer
from stagger.blocks.serving.wire import Model
from tests.kit.unequal_servers import UNEQUAL

MODEL = Model(12, 64, "float32", 256)
TOKENS = 256


def capacity() -> float:
    """Tokens per second that the servers carry with the best routing."""
    return routing_capacity([Span(str(number), *span) for number, span in enumerate(UNEQUAL)], MODEL.total_blocks)


def run_client(pipe: Any, offers: dict[str, Offer], keys: KeyPair) -> None:
    """Send microbatches until told to stop, and return when each came back: the clock is the machine's."""
    client = client_of(offers, MODEL, keys)
    running = client.run(itertools.takewhile(lambda _: not pipe.poll(), works()))
    next(running)
    pipe.send("under way")
    pipe.send([time.monotonic() for _ in running])


def works() -> Any:
    return (work(number, MODEL, TOKENS) for number in itertools.count())


def routed(clients: int, seconds: float) -> dict[str, Any]:
    """Tokens per second of all clients together, and of each, between the start and the end of the flow."""
    keys = KeyPair.new()
    with servers(sleeping, MODEL, keys, UNEQUAL) as (offers, _):
        running = [started(run_client, offers, keys) for _ in range(clients)]
        for one in running:
            told(*one)
        begin = time.monotonic() + seconds / 4
        time.sleep(seconds)
        end = time.monotonic()
        for _, pipe in running:
            pipe.send("stop")
        landed = [told(*one) for one in running]
    each = [TOKENS * sum(begin <= at < end for at in times) / (end - begin) for times in landed]
    return {
        "clients": clients,
        "tokens_per_s": sum(each),
        "least": min(each),
        "most": max(each),
        "share_of_capacity": sum(each) / capacity(),
    }


def lost(number: signal.Signals, repeat: int) -> dict[str, float]:
    """Seconds from a signal to a server until its microbatches are on their way to another."""
    found = []
    for _ in range(repeat):
        noticed: list[float] = []
        keys = KeyPair.new()
        with servers(sleeping, MODEL, keys, [(0, 12, 50000.0)] * 2) as (offers, processes):
            client = client_of(offers, MODEL, keys, tell=lambda _, at=noticed: at.append(time.monotonic()))
            running = client.run(works())
            for _ in range(20):
                next(running)
            while not client.peers["00000.1"].flights:
                next(running)
            os.kill(processes["00000.1"].pid, number)
            sent = time.monotonic()
            while not noticed:
                next(running)
            found.append(noticed[0] - sent)
    return {"median": statistics.median(found), "max": max(found)}


def measure(repeat: int, seconds: float) -> dict[str, Any]:
    one = [routed(1, seconds) for _ in range(repeat)]
    six = [routed(6, seconds) for _ in range(repeat)]
    return {
        "capacity_tokens_per_s": capacity(),
        "one_client": max(one, key=lambda run: float(run["share_of_capacity"])),
        "six_clients": max(six, key=lambda run: float(run["share_of_capacity"])),
    }


def failures() -> dict[str, Any]:
    return {
        "killed_to_sent_again_s": lost(signal.SIGKILL, 5),
        "stopped_to_sent_again_s": lost(signal.SIGSTOP, 1),
    }
