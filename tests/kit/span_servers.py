"""Servers of spans in processes of their own: each block is a line of numpy, so that nothing hides a wrong path.

Passing a block twice, or not at all, or blocks in another order, gives another result.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stagger.blocks.serving.connections import Looked
from stagger.blocks.serving.flight import Work
from stagger.blocks.serving.routing import Offer
from stagger.blocks.serving.span_server import Computed, Heartbeat, NotFinite, NotHere, SpanServer
from stagger.blocks.serving.wire import Model, Request, write_lengths

MODEL = Model(total_blocks=12, hidden_size=16, dtype="float32", most_tokens=256)
SHAPE = (4, 8, 16)
HEARTBEAT = Heartbeat(every_s=0.2, lost_after_s=1.5)

#: A number that block 4 makes infinite, in row 1 of the microbatches from this one on.
LARGE, OVERFLOWS = np.float32(3e38), 1000

Array = np.ndarray[Any, np.dtype[np.float32]]


def passed(hidden: Array, start: int, end: int) -> Array:
    """The hidden state behind block `end` - 1, of the one before block `start`."""
    with np.errstate(over="ignore"):
        for block in range(start, end):
            hidden = hidden * np.float32(1 + block / 64) + np.float32(block)
    return hidden


def spoilt(before: Array, after: Array) -> int:
    """Tokens whose states are not finite, in rows that were finite before."""
    bad = np.asarray(~np.isfinite(after).all(-1))
    sound = np.asarray(np.isfinite(before).all((1, 2)))
    return int((bad & sound[:, None]).sum())


def hidden_state(seed: int) -> Array:
    state = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    if seed >= OVERFLOWS:
        state[1, 2:4, 5] = LARGE
    return state


def work(number: int, layers: tuple[int, ...] = (12,)) -> Work:
    return Work(number, SHAPE, write_lengths([SHAPE[1]] * SHAPE[0]), [hidden_state(number).tobytes()], layers)


@dataclass
class Faults:
    """What goes wrong from request number `after` on, counted from 0.

    nan: nothing that is computed is finite. spoils: row 0 is not, and the server does not know why. hang: computing
    never ends. `delay_s`: of every computation.
    moves: the spans that the server has in turn, one request each.
    """

    after: int = 0
    nan: bool = False
    spoils: bool = False
    hang: bool = False
    delay_s: float = 0.0
    moves: list[tuple[int, int]] = field(default_factory=list)


class Blocks:
    """The computation of one server."""

    def __init__(self, start: int, end: int, faults: Faults, note: Callable[[str], None] = lambda _: None) -> None:
        self.span = (start, end)
        self.faults = faults
        self.note = note
        self.number = 0
        self.sound = False

    def __call__(self, request: Request) -> Computed:
        number, faults = self.number, self.faults
        self.number += 1
        self.note(f"{request.start} {request.end}")
        if faults.moves:
            self.span = faults.moves[number % len(faults.moves)]
        start, end = self.span
        if not start <= request.start < end:
            raise NotHere
        time.sleep(faults.delay_s)
        if faults.hang and number >= faults.after:
            threading.Event().wait()
        if faults.nan and number >= faults.after:
            raise NotFinite("4 values of row 0 are not finite")
        end = min(end, request.end)
        hidden = np.frombuffer(b"".join(request.hidden), np.float32).reshape(request.shape)
        states = {layer: [passed(hidden, request.start, layer).tobytes()] for layer in request.layers if layer < end}
        result = passed(hidden, request.start, end)
        if faults.spoils and number >= faults.after:
            result[0] = np.nan
        bad = spoilt(hidden, result)
        self.sound = self.sound or not bad
        return Computed(end, [result.tobytes()], states, bad, self.sound)


def run_server(folder: str, name: str, start: int, end: int, clients: bytes | None, faults: Faults) -> None:
    """A server's process: it publishes itself in `folder`, notes its requests, and leaves on SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    notes = open(f"{folder}/{name}.requests", "a", buffering=1)  # noqa: SIM115 - as long as the process.
    blocks = Blocks(start, end, faults, lambda text: print(text, file=notes))
    server = SpanServer(blocks, MODEL, "127.0.0.1", clients, span=lambda: blocks.span, heartbeat=HEARTBEAT)
    offer = {"address": server.address, "public_key": server.public_key.decode(), "start": start, "end": end}
    new = f"{folder}/.{name}"
    Path(new).write_text(json.dumps({**offer, "pid": os.getpid()}))
    os.rename(new, f"{folder}/{name}.json")
    server.serve(stop)
    print("left", dict(server.counts), file=notes)


class Servers:
    """Servers of one swarm, and the folder where they publish themselves."""

    def __init__(self, folder: Path, clients: bytes | None) -> None:
        self.folder = folder
        self.clients = clients
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self.processes: dict[str, Any] = {}

    def start(self, name: str, start: int, end: int, **faults: Any) -> None:
        arguments = (str(self.folder), name, start, end, self.clients, Faults(**faults))
        process = self._context.Process(target=run_server, args=arguments, daemon=True)
        process.start()
        self.processes[name] = process

    def look(self) -> Looked:
        offers = {}
        for path in self.folder.glob("*.json"):
            offer = json.loads(path.read_text())
            key = offer["public_key"].encode()
            offers[path.stem] = Offer(path.stem, offer["address"], key, offer["start"], offer["end"])
        return Looked(offers)

    def are_there(self) -> bool:
        return len(self.look().offers) == len(self.processes)

    def signal(self, name: str, number: int) -> None:
        os.kill(self.processes[name].pid, number)

    def requests(self, name: str) -> int:
        """How many requests the server has begun to compute."""
        return sum("left" not in line for line in (self.folder / f"{name}.requests").read_text().splitlines())

    def memory_mb(self, name: str) -> float:
        return int(Path(f"/proc/{self.processes[name].pid}/statm").read_text().split()[1]) * 4096 / 1e6

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.join()
            process.close()
