"""Loading slots: when servers that start together cover all blocks, from a store of limited bandwidth.

In a fluid model, and with real servers: processes that run the loop of a block server, and whose loads take turns at
one token bucket. The model has 80 blocks of 1.71 GB (70 billion parameters); the store sends 10 GB/s, a node takes 2
GB/s. Compared: all servers at once, floor(10 / 2) = 5 slots, and `auto`. Servers serve each block once it is loaded.
`least`: seconds that the store needs for one copy.
"""

from __future__ import annotations

import itertools
import math
import os
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.kit import measure
from stagger.blocks.host import Speed
from stagger.blocks.placement.loading_slots import Loader, Slots, ahead_of, loads_backwards, turns_ahead
from stagger.blocks.placement.petals import choose_best_blocks, compute_throughputs
from stagger.blocks.placement.spans import Span
from stagger.blocks.server.block_server import BlockServer, Identity
from stagger.blocks.server.records import server_id
from stagger.blocks.server.registry import Registry
from stagger.pipeline.task_context import StopFlag
from stagger.spec.block_settings import BlockSettings
from stagger.storage.storage import Storage
from tests.kit.claimants import TOTAL

BLOCK_GB, STORE_GB, NODE_GB = 1.71, 10.0, 2.0

#: Room of the servers, in turn: equal GPUs of 24 GB; and several kinds, of which the largest takes 17 s for its span.
ROOMS = {"equal": (13,), "mixed": (7, 10, 13, 20)}

#: Seconds from the end of a load until the next server notices it, in the model: half a look of a second.
NOTICED_S = 0.5

#: Parts of a block for which a real server waits at the bucket.
PARTS = 8


def claimed(servers: int, rooms: tuple[int, ...]) -> list[Span]:
    """The spans of servers that claim one after another."""
    spans: list[Span] = []
    for number in range(servers):
        window = choose_best_blocks(rooms[number % len(rooms)], spans, TOTAL)
        spans.append(Span(f"{number:05}", window.start, window.stop, 1.0))
    return spans


def in_the_model(servers: int, slots: Slots, rooms: tuple[int, ...]) -> dict[str, float]:
    """Seconds until all blocks are served once, each from when it is loaded, and until everything is loaded.

    The store divides its bandwidth evenly among the servers that load. `whole_spans`: the first, if servers served only
    whole spans.
    """
    spans = claimed(servers, rooms)
    left = {span.server_id: list(range(span.start, span.end)) for span in spans}
    part = dict.fromkeys(left, BLOCK_GB)  # What is missing of the block that each loads.
    begins: dict[str, float] = {}
    loaded: dict[str, set[int]] = {name: set() for name in left}
    now, times = 0.0, {"covered": 0.0, "whole_spans": 0.0}
    while any(left.values()):
        loaders = [Loader(n, s.server_id, range(s.start, s.end)) for n, s in enumerate(spans) if left[s.server_id]]
        served = [range(min(blocks), max(blocks) + 1) for blocks in loaded.values() if blocks]
        for one in loaders:
            ahead = ahead_of(one, loaders)
            if one.server_id not in begins and not turns_ahead(one, ahead, slots, total_blocks=TOTAL, served=served):
                begins[one.server_id] = now + (NOTICED_S if now else 0.0)
                if loads_backwards(one, ahead, slots, total_blocks=TOTAL, served=served):
                    left[one.server_id].reverse()
        active = [name for name in left if left[name] and begins.get(name, math.inf) <= now]
        rate = min(NODE_GB, STORE_GB / len(active)) if active else 0.0
        starts = [begin - now for begin in begins.values() if begin > now]
        step = min([*starts, *(part[name] / rate for name in active)])
        now += step
        for name in active:
            part[name] -= rate * step
            if part[name] <= 1e-9:
                loaded[name].add(left[name].pop(0))
                part[name] = BLOCK_GB
        whole = [blocks for name, blocks in loaded.items() if not left[name]]
        for key, found in (("covered", [*loaded.values()]), ("whole_spans", whole)):
            if len(set[int]().union(*found)) == TOTAL and not times[key]:
                times[key] = now
    return {**{key: round(value, 1) for key, value in times.items()}, "everything": round(now, 1)}


class Throttled:
    """A host whose loads wait at a token bucket: a socket on which each byte sent asks for a part of a block."""

    def __init__(self, room: int, bucket: socket.socket) -> None:
        self.room_for = room
        self.workload = f"throttled {self.room_for}"
        self._bucket = bucket

    def room(self) -> int:
        return self.room_for

    def measure(self) -> Speed:
        return Speed(1000.0 * (self.room_for + 1) / 2, 1000.0)

    def load(self, blocks: range) -> None:
        for _ in range(len(blocks) * PARTS):
            began = time.monotonic()
            self._bucket.send(b"x")
            self._bucket.recv(1)
            least_s = BLOCK_GB / PARTS / NODE_GB
            time.sleep(max(0.0, began + least_s - time.monotonic()))

    def unload(self, blocks: range) -> None:
        """There is nothing to drop."""

    def serve(self, stop: threading.Event) -> None:
        stop.wait()


def grant(buckets: list[socket.socket], ended: threading.Event) -> None:
    """The store: it grants the parts in the order in which they were asked for, at its bandwidth."""
    waiting: deque[socket.socket] = deque()
    free_at = time.monotonic()
    while not ended.is_set():
        asked, _, _ = select.select([one for one in buckets if one not in waiting], [], [], 0 if waiting else 0.05)
        for one in asked:
            one.recv(1)
            waiting.append(one)
        if waiting:
            now = time.monotonic()
            free_at = max(free_at, now - 0.05) + BLOCK_GB / PARTS / STORE_GB
            time.sleep(max(0.0, free_at - now))
            waiting.popleft().send(b"x")


def serve(folder: str, rank: int, room: int, settings: BlockSettings, bucket: socket.socket) -> None:
    """A block server's life, from its claim until it is killed."""
    name = server_id(rank, "1")
    registry = Registry(Storage(), folder, TOTAL, name)
    BlockServer(settings, Throttled(room, bucket), registry, Identity(name), StopFlag()).run()


@contextmanager
def started(folder: str, settings: BlockSettings, rooms: tuple[int, ...]) -> Iterator[None]:
    """The servers, as processes that are forked once everything is imported, and start together."""
    pairs, go = [socket.socketpair() for _ in range(settings.servers)], os.pipe()
    pids = []
    for rank, pair in enumerate(pairs):
        pid = os.fork()
        if pid == 0:
            try:
                os.close(go[1])
                os.dup2(os.open(os.devnull, os.O_RDWR), 1)
                os.dup2(1, 2)
                os.read(go[0], 1)
                serve(folder, rank, rooms[rank % len(rooms)], settings, pair[1])
            finally:
                os._exit(1)
        pids.append(pid)
    ended = threading.Event()
    store = threading.Thread(target=grant, args=([pair[0] for pair in pairs], ended))
    store.start()
    os.close(go[1])
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        ended.set()
        store.join()


def with_servers(servers: int, slots: Slots, rooms: tuple[int, ...]) -> dict[str, float]:
    """Seconds until a reader sees all blocks served, and the final coverage by that of one at a time."""
    with tempfile.TemporaryDirectory(prefix="stagger-loading-") as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        reader = Registry(Storage(), str(Path(folder, "registry")), TOTAL)
        settings = BlockSettings(
            total=TOTAL, servers=servers, rebalance="none", mean_block_selection_delay=0, loading_slots=slots
        )
        began = time.monotonic()
        with started(reader.folder, settings, rooms):
            covered = 0.0
            while True:
                view = reader.refresh()
                now = time.monotonic() - began
                online = view.online()
                if not covered and compute_throughputs(online, TOTAL).min() > 0:
                    covered = now
                if covered and len(view.members) == servers:
                    break
                if now > 3600:
                    raise RuntimeError(f"{servers} servers with {slots} slots do not cover all blocks")
                time.sleep(0.2)
        tempfile.tempdir = None
        order = sorted(view.members, key=lambda name: view.members[name].claim)
        spans: list[Span] = []
        for name in order:
            target = view.members[name].target
            window = choose_best_blocks(target.end - target.start, spans, TOTAL)
            spans.append(Span(name, window.start, window.stop, target.throughput))
        ratio = compute_throughputs(view.spans(), TOTAL).min() / compute_throughputs(spans, TOTAL).min()
        return {"covered": round(covered, 1), "coverage_by_one_at_a_time": float(ratio)}


def main() -> int:
    parser = measure.parser((__doc__ or "").partition("\n")[0], repeat=1)
    parser.add_argument("--servers", type=int, nargs="*", default=[12, 24, 64])
    options = parser.parse_args()
    results: dict[str, Any] = {}
    requirements = []
    for how, run in (("model", in_the_model), ("real servers", with_servers)):
        for kind, servers in itertools.product(ROOMS, options.servers):
            name = f"{how}, {servers} {kind} servers"
            ways: dict[str, Slots] = {"at once": servers, "5 slots": int(STORE_GB // NODE_GB), "auto": "auto"}
            found = {way: run(servers, slots, ROOMS[kind]) for way, slots in ways.items()}
            results[name] = {**found, "least": round(TOTAL * BLOCK_GB / min(STORE_GB, servers * NODE_GB), 1)}
            measure.say(f"{name}: {results[name]}")
            earlier = round(found["at once"]["covered"] / found["auto"]["covered"], 2)
            if servers >= 24:
                requirements.append(measure.at_least(f"{name}: times as early with auto", earlier, 2.0))
            if how == "real servers":
                worst = min(one["coverage_by_one_at_a_time"] for one in found.values())
                requirements.append(measure.at_least(f"{name}: coverage by one at a time", worst, 1.0))
    return measure.report(options, results, requirements)


if __name__ == "__main__":
    sys.exit(main())
