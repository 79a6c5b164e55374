"""The interface of a host: the class that loads and serves a server's blocks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from stagger.storage.storage import Storage

if TYPE_CHECKING:
    from stagger.blocks.server.records import View


@dataclass(frozen=True)
class HostContext:
    """First argument of every host.

    `total_blocks` and `model` are the model's number of blocks and its path (None if there is none); `rank` is the
    server's. `stopping()` returns True once a signal has asked the process to stop; long calls should poll it.

    `server_id` names this attempt of the rank: a job that starts again is another server. `storage` reads and writes
    any path of the run, with its `storage_options`. `run_dir` and `stage_dir` are the folders of the run and of the
    servers' stage. `view()` returns the swarm as this server saw it last (at most a heartbeat ago), for hosts that
    look for other servers; it may be called from any thread, and does not touch the storage. `drain_s` is how many
    seconds `serve` has to finish once `stop` is set.
    """

    total_blocks: int
    model: str | None
    rank: int
    stopping: Callable[[], bool]
    server_id: str = ""
    storage: Storage = field(default_factory=Storage)
    run_dir: str = ""
    stage_dir: str = ""
    view: Callable[[], View | None] = lambda: None
    drain_s: float = 30.0


@dataclass(frozen=True)
class Speed:
    """A host's measured speed, in requests (hidden states of one token) per second.

    `forward_rps`: requests that one block computes. `network_rps`: requests that the network carries; `behind_relay`
    reduces them.

    `pass_rps` is for a host that serves passes, whose requests run through the server's whole span (as whole
    microbatches of a scoring run do): requests that one block computes in them. A server of n blocks then counts with
    `pass_rps` / n, not with `forward_rps` / ((n + 1) / 2) as where requests enter a span at any block.
    """

    forward_rps: float
    network_rps: float
    behind_relay: bool = False
    pass_rps: float | None = None


class Host(Protocol):
    """Loads and serves blocks: created once per server as `Class(context, **host_options)`.

    `serve` runs in its own thread, which starts once the first block is loaded. The other methods are called one at a
    time. An exception from any of them ends the server: it removes its span from the registry at once, and its rank
    fails with that error.

    Optional attributes: `port` (int or None), published to clients that look for the server; `device`, the name of the
    device that computes, such as `NVIDIA A100-SXM4-40GB` (by default as the driver names it); `workload`, a text that
    identifies what `measure` depends on besides the device (by default the class, its options and the model);
    `loads_from_storage`: False if `load` reads nothing from shared storage, so that it needs no loading slot.

    Optional methods, see `OptionalHost`.
    """

    def room(self) -> int:
        """Number of blocks that fit."""

    def measure(self) -> Speed:
        """Measure the speed. Called once per machine, device and workload; other servers there wait for the result."""

    def load(self, blocks: range) -> None:
        """Load these blocks beside the loaded ones. Called for a few at a time; signals are handled in between."""

    def unload(self, blocks: range) -> None:
        """Drop these blocks. The others are served meanwhile; requests in flight on these may finish first."""

    def serve(self, stop: threading.Event) -> None:
        """Serve the loaded blocks until `stop` is set; then finish the requests in flight, and return."""


class OptionalHost(Protocol):
    """Methods that a host may have, and need not."""

    def plan(self, blocks: Sequence[int]) -> None:
        """The blocks that `load` will be called for next, in this order. Must return at once.

        Called before each series of loads, so that the host can read a block while it converts or copies another.
        """

    def about(self) -> dict[str, Any]:
        """Who this server is, for its record in the registry: JSON values that `ABOUT` explains, or any others.

        Called before each announcement, at the latest at each heartbeat, between the calls of the other methods or
        beside them. Must return at once.
        """

    def counters(self) -> dict[str, Any]:
        """How the server is doing, for its record in the registry: `COUNTERS` explains the known ones.

        Called as `about` is, and must return at once. A counter named as a field of `Speed`, measured on requests that
        were served, refines the measured speed.
        """


#: Known keys of `about`.
ABOUT = {
    "address": "where clients reach the server, such as tcp://10.0.0.7:31330",
    "public_key": "the key by which clients know the server",
    "dtype": "the type of the numbers that it computes with, such as bfloat16",
    "fingerprint": "identifies the model's files: clients compare it",
    "device": "the name of the device",
}

#: Known keys of `counters`.
COUNTERS = {
    "queue": "requests that wait, in tokens",
    "tokens_per_s": "tokens per second that passed the server lately",
    "busy": "share of the time, 0 to 1, in which it computed lately",
    "bytes_loaded": "bytes of weights that it has read",
}
