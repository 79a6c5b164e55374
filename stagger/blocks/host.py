"""The interface of a host: the class that loads and serves a server's blocks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class HostContext:
    """First argument of every host: the model's number of blocks, its path (or None), and the server's rank.

    `stopping()` returns True once a signal has asked the process to stop; long calls should poll it.
    """

    total_blocks: int
    model: str | None
    rank: int
    stopping: Callable[[], bool]


@dataclass(frozen=True)
class Speed:
    """A host's measured speed, in requests (hidden states of one token) per second.

    `forward_rps`: requests that one block computes. `network_rps`: requests that the network carries; `behind_relay`
    reduces them.
    """

    forward_rps: float
    network_rps: float
    behind_relay: bool = False


class Host(Protocol):
    """Loads and serves blocks: created once per server as `Class(context, **host_options)`.

    `serve` runs in its own thread, which starts once the first block is loaded. The other methods are called one at a
    time. An exception from any of them ends the server: it removes its span from the registry at once, and its rank
    fails with that error.

    Optional attributes: `port` (int or None), published to clients that look for the server; `workload`, a text that
    identifies what `measure` depends on (by default the class, its options and the model); `loads_from_storage`: False
    if `load` reads nothing from shared storage, so that it needs no loading slot.
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
