"""A microbatch on its way through the blocks, with the hidden state from which it can be sent again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stagger.blocks.serving.wire import Buffer, Reply


@dataclass(frozen=True)
class Work:
    """A microbatch that is to pass all blocks.

    `key`: handed back with the result. `lengths`, `hidden`: as on the wire. `layers`: those whose states are wanted, in
    ascending order, from 0 (the hidden state itself) to the number of blocks.
    """

    key: Any
    shape: tuple[int, int, int]
    lengths: Buffer
    hidden: Buffer
    layers: tuple[int, ...]


class Doubt(NamedTuple):
    """What a server found whose result is not finite: behind block `end` - 1, in the states of `tokens` tokens."""

    end: int
    tokens: int


@dataclass
class Flight:
    """Where a microbatch is: its state behind block `at` - 1, which is held until a later one is there.

    `failures`: server -> why it could not compute it. `lost`: servers that were lost while they had it.
    `doubts`: server -> its result that was not finite, as long as nobody knows whether the server or a document is why;
    `doubted_at`: since when. `rests_until`: it is sent to nobody before this time.
    `end`, `work`, `deadline`: of the request that is under way.
    """

    microbatch: Work
    order: int
    at: int = 0
    hidden: Buffer = b""
    states: dict[int, Buffer] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    doubts: dict[str, Doubt] = field(default_factory=dict)
    doubted_at: float = 0.0
    rests_until: float = 0.0
    lost: int = 0
    end: int = 0
    work: float = 0.0
    deadline: float = 0.0

    def __post_init__(self) -> None:
        self._reach(0, self.microbatch.hidden)

    @property
    def tokens(self) -> int:
        return self.microbatch.shape[0] * self.microbatch.shape[1]

    def wanted(self, end: int) -> tuple[int, ...]:
        """The layers between here and `end` whose states are wanted."""
        return tuple(layer for layer in self.microbatch.layers if self.at < layer < end)

    # ---- Results that are not finite ----

    @property
    def question(self) -> int | None:
        """The end of the blocks for which another server's result is wanted; None if nothing is in doubt."""
        return min((doubt.end for doubt in self.doubts.values()), default=None)

    @property
    def asked(self) -> set[str]:
        """The servers that have answered that question."""
        return {name for name, doubt in self.doubts.items() if doubt.end == self.question}

    def doubt(self, server: str, reply: Reply, now: float) -> bool:
        """Note a result that is not finite. Returns whether no other server has found the same."""
        found = Doubt(reply.end, reply.nonfinite)
        confirmed = any(name != server and doubt == found for name, doubt in self.doubts.items())
        self.doubted_at = self.doubted_at if self.doubts else now
        self.doubts[server] = found
        return not confirmed

    def settle(self, reply: Reply) -> list[str]:
        """End the doubts that a result settles. Returns the servers whose results were wrong: this one is finite."""
        if reply.nonfinite:
            self.doubts = {}
            return []
        wrong = [name for name, doubt in self.doubts.items() if doubt.end <= reply.end]
        self.doubts = {name: doubt for name, doubt in self.doubts.items() if doubt.end > reply.end}
        return wrong

    def land(self, reply: Reply) -> None:
        """Take over what a server has computed."""
        self.states |= reply.states
        self._reach(reply.end, reply.hidden)

    def _reach(self, block: int, hidden: Buffer) -> None:
        self.at, self.hidden = block, hidden
        if block in self.microbatch.layers:
            self.states[block] = hidden
