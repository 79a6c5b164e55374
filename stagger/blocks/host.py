"""What a server does with its blocks: the interface that a host implements."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class HostContext:
    """What a host is told of its place: the model's number of blocks and its path, and the server's rank.

    `stopping` says whether the process has been told to stop: what takes long looks at it.
    """

    total_blocks: int
    model: str | None
    rank: int
    stopping: Callable[[], bool]


@dataclass(frozen=True)
class Speed:
    """What a host can do, in requests (hidden states of one token) per second.

    `forward_rps`: of one block, computed; `network_rps`: what the network takes, of which a relay leaves a part.
    """

    forward_rps: float
    network_rps: float
    behind_relay: bool = False


class Host(Protocol):
    """Loads and serves blocks: made once per server as `Class(context, **host_options)`.

    All but `serve` are called one at a time, from one thread; `serve` runs in another from when the first blocks are
    loaded. Whatever one of them raises ends the server: its blocks are taken out of the registry at once, and its rank
    fails with that error. Optional: `port` (an int, or None), told to whoever looks for the server; `workload`, a text
    that says what `measure` depends on, by default the class and its options.
    """

    def room(self) -> int:
        """How many blocks fit."""

    def measure(self) -> Speed:
        """How fast it is. Called once per machine, device and workload; other servers there wait for the answer."""

    def load(self, blocks: range) -> None:
        """Load blocks beside those that are there. Called for a few at a time, so that a signal can come between."""

    def unload(self, blocks: range) -> None:
        """Drop blocks. Those that stay are served meanwhile; what is being computed with these may end first."""

    def serve(self, stop: threading.Event) -> None:
        """Serve whatever blocks are loaded, until `stop` is set; then finish what has begun, and return."""
