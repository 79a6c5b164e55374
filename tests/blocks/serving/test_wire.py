"""Hidden states larger than a part arrive as they were sent, encrypted or not."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from stagger.blocks.serving.client import Client
from stagger.blocks.serving.connections import Looked
from stagger.blocks.serving.flight import Work
from stagger.blocks.serving.keys import KeyPair
from stagger.blocks.serving.routing import Offer
from stagger.blocks.serving.span_server import Computed, SpanServer
from stagger.blocks.serving.wire import (
    PART,
    PLAIN_PART,
    BadFrames,
    Model,
    Reply,
    Request,
    read_reply,
    read_request,
    write_lengths,
)

LARGE = Model(total_blocks=2, hidden_size=1024, dtype="float32", most_tokens=5000)
SIZE = LARGE.most_bytes
STATES = [bytes([number]) * SIZE for number in range(3)]


def request() -> Request:
    return Request(7, 0, 2, "float32", (1, 5000, 1024), 1000, write_lengths([5000]), [STATES[0]])


@pytest.mark.parametrize(("part", "frames"), [(PART, 10), (PLAIN_PART, 2)])
def test_states_are_cut_and_joined(part: int, frames: int) -> None:
    sent = request().frames(part)
    assert len(sent) == 2 + frames
    assert b"".join(read_request(sent, LARGE).hidden) == STATES[0]
    assert read_request(sent, LARGE).frames(part) == sent
    answer = Reply(7, 2, [STATES[0]], {3: [STATES[1]], 5: [STATES[2]]}).frames(part)
    assert len(answer) == 1 + 3 * frames
    back = read_reply(answer, SIZE)
    assert isinstance(back, Reply)
    assert [b"".join(state) for state in (back.hidden, back.states[3], back.states[5])] == STATES


@pytest.mark.parametrize(
    "wrong",
    [
        lambda frames: frames[:-1],
        lambda frames: [*frames, b"x"],
        lambda frames: [*frames, b""],
        lambda frames: [frames[0], frames[1][1:], *frames[2:], b"x"],
        lambda frames: [
            frames[0],
            *(bytes(frames[1])[place : place + 999] for place in range(0, PART, 999)),
            *frames[2:],
        ],
        lambda frames: frames[:1],
    ],
)
def test_an_answer_whose_parts_are_no_states_breaks_the_rules(wrong: Any) -> None:
    answer = Reply(7, 2, [STATES[0]], {3: [STATES[1]]}).frames()
    with pytest.raises(BadFrames, match="do not have the sizes of hidden states"):
        read_reply(wrong(answer), SIZE)


@pytest.mark.parametrize("encrypt", [True, False])
def test_a_large_state_passes_a_server(encrypt: bool) -> None:
    keys, stop = KeyPair.new(), threading.Event()
    server = SpanServer(lambda asked: Computed(2, asked.hidden), LARGE, "127.0.0.1", keys.public if encrypt else None)
    thread = threading.Thread(target=server.serve, args=(stop,), daemon=True)
    thread.start()
    offer = Offer("00000.1", server.address, server.public_key, 0, 2)
    client = Client(lambda: Looked({"00000.1": offer}), LARGE, keys if encrypt else None)
    given = [Work(number, (1, 5000, 1024), write_lengths([5000]), [STATES[number]], (2,)) for number in range(3)]
    assert {number: b"".join(states[2]) for number, states in client.run(given)} == dict(enumerate(STATES))
    client.close()
    stop.set()
    thread.join()
