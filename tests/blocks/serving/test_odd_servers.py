"""Servers that answer otherwise than they should lose nothing of a client's work, and do not stop it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import zmq

from stagger.blocks.serving.client import Client
from stagger.blocks.serving.connections import Looked
from stagger.blocks.serving.routing import Offer
from stagger.blocks.serving.span_server import SpanServer
from stagger.blocks.serving.wire import Reply, read_request
from tests.blocks.serving.conftest import QUICK
from tests.kit.span_servers import HEARTBEAT, MODEL, SHAPE, Blocks, Faults, hidden_state, passed, work

#: What a server sends for a sound answer's frames.
Odd = Callable[[list[Any]], list[list[Any]]]


def changed(**fields: Any) -> Odd:
    """The header has other fields."""
    return lambda frames: [[json.dumps({**json.loads(frames[0]), **fields}).encode(), *frames[1:]]]


def refusal(**fields: Any) -> Odd:
    return lambda frames: [[json.dumps({"v": 1, "id": json.loads(frames[0])["id"], **fields}).encode()]]


GARBAGE: Odd = lambda frames: [[b"\xff" * 50, *frames[1:]]]  # noqa: E731 - a value of the tables below.

#: A client goes on with such a server.
BORNE: dict[str, Odd] = {
    "each answer twice": lambda frames: [frames, frames],
    "an answer to nothing beside each": lambda frames: [*changed(id=999)(frames), frames],
    "fields of a later version": changed(later={"a": [1]}, more="x" * 100),
}

#: A client gives such a server up.
GIVEN_UP: dict[str, Odd] = {
    "a state too short": lambda frames: [[frames[0], frames[1][:-4]]],
    "no state": lambda frames: [frames[:1]],
    "one state too many": lambda frames: [[*frames, frames[1]]],
    "no JSON": GARBAGE,
    "another version": changed(v=2),
    "another layer": changed(layers=[3]),
    "blocks that were not asked for": changed(to=13),
    "no block at all": changed(to=0),
    "a time that is none": changed(compute_ms=-1),
    "an unknown error": refusal(error="tired"),
    "an error of another kind": refusal(error=["busy"]),
    "no span": refusal(error="not_here", serving=[1]),
    "only answers to nothing": changed(id=999),
}


@pytest.fixture
def odd() -> Iterator[Callable[[Odd], Offer]]:
    """Start a server that answers in an odd way."""
    stop, threads, context = threading.Event(), list[threading.Thread](), zmq.Context()

    def begin(way: Odd) -> Offer:
        router = context.socket(zmq.ROUTER)
        router.linger = 0
        port = router.bind_to_random_port("tcp://127.0.0.1")
        blocks = Blocks(0, 12, Faults())

        def serve() -> None:
            while not stop.is_set():
                if router.poll(20):
                    peer, *frames = router.recv_multipart()
                    request = read_request(frames, MODEL)
                    done = blocks(request)
                    for answer in way([bytes(part) for part in Reply(request.id, done.end, done.hidden).frames()]):
                        router.send_multipart([peer, *answer])
            router.close()

        threads.append(threading.Thread(target=serve, daemon=True))
        threads[-1].start()
        return Offer("00000.1", f"tcp://127.0.0.1:{port}", b"", 0, 12)

    yield begin
    stop.set()
    for thread in threads:
        thread.join()
    context.term()


@pytest.fixture
def sound() -> Iterator[Offer]:
    stop = threading.Event()
    server = SpanServer(Blocks(0, 12, Faults()), MODEL, "127.0.0.1", None, heartbeat=HEARTBEAT)
    thread = threading.Thread(target=server.serve, args=(stop,), daemon=True)
    thread.start()
    yield Offer("00001.1", server.address, b"", 0, 12)
    stop.set()
    thread.join()


def through(offers: list[Offer], count: int = 12) -> Client:
    """Pass microbatches; each comes back once, as it should be."""
    client = Client(lambda: Looked({one.server_id: one for one in offers}), MODEL, None, timing=QUICK)
    seen = set()
    for number, states in client.run(work(number) for number in range(count)):
        assert number not in seen
        seen.add(number)
        found = np.frombuffer(b"".join(states[12]), np.float32).reshape(SHAPE)
        assert np.array_equal(found, passed(hidden_state(number), 0, 12))
    assert seen == set(range(count))
    client.close()
    return client


@pytest.mark.parametrize("way", BORNE.values(), ids=BORNE)
def test_what_does_no_harm_is_borne(odd: Callable[[Odd], Offer], way: Odd) -> None:
    assert through([odd(way)]).evicted == {}


@pytest.mark.parametrize("way", GIVEN_UP.values(), ids=GIVEN_UP)
def test_what_breaks_the_rules_costs_no_microbatch(odd: Callable[[Odd], Offer], sound: Offer, way: Odd) -> None:
    assert list(through([odd(way), sound]).evicted) == ["00000.1"]


def test_a_server_that_claims_all_numbers_as_its_blocks_takes_no_memory(
    odd: Callable[[Odd], Offer], sound: Offer
) -> None:
    assert through([odd(refusal(error="not_here", serving=[1, 2**50])), sound]).evicted == {}
