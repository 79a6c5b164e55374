"""A microbatch on its way through the blocks, with the hidden state from which it can be sent again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stagger.blocks.serving.doubts import Doubts
from stagger.blocks.serving.wire import Buffer, Parts, Reply, size_of


@dataclass(frozen=True)
class Work:
    """A microbatch that is to pass all blocks.

    `key`: handed back with the result. `lengths`, `hidden`: as on the wire. `layers`: those whose states are wanted, in
    ascending order, from 0 (the hidden state itself) to the number of blocks.
    """

    key: Any
    shape: tuple[int, int, int]
    lengths: Buffer
    hidden: Parts
    layers: tuple[int, ...]


@dataclass
class Flight:
    """Where a microbatch is: its state behind block `at` - 1, which is held until a later one is there.

    `failures`: server -> why it could not compute it. `lost`: servers that were lost while they had it.
    `doubts`: its results that are not finite. `rests_until`: it is sent to nobody before this time.
    `end`, `work`, `deadline`: of the request that is under way.
    """

    microbatch: Work
    order: int
    at: int = 0
    hidden: Parts = ()
    states: dict[int, Parts] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    doubts: Doubts = field(default_factory=Doubts)
    rests_until: float = 0.0
    lost: int = 0
    end: int = 0
    work: float = 0.0
    deadline: float = 0.0

    def __post_init__(self) -> None:
        self.size = size_of(self.microbatch.hidden)  # In bytes; all blocks keep it.
        self._reach(0, self.microbatch.hidden)

    @property
    def tokens(self) -> int:
        return self.microbatch.shape[0] * self.microbatch.shape[1]

    def wanted(self, end: int) -> tuple[int, ...]:
        """The layers between here and `end` whose states are wanted."""
        return tuple(layer for layer in self.microbatch.layers if self.at < layer < end)

    def land(self, reply: Reply) -> None:
        """Take over what a server has computed."""
        self.states |= reply.states
        self._reach(reply.end, reply.hidden)

    def _reach(self, block: int, hidden: Parts) -> None:
        self.at, self.hidden = block, hidden
        if block in self.microbatch.layers:
            self.states[block] = hidden
