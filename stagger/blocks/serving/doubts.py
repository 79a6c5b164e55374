"""A microbatch whose results are not finite: is a document the reason, or the server? Plain values decide.

A document is, when two servers find the same. A server is, when another one makes finite states of the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from stagger.blocks.serving.wire import Reply

#: Seconds for which a microbatch waits for a second server, when the only one has computed nothing finite yet.
ALONE_S = 60.0


class Doubt(NamedTuple):
    """What a server found: behind block `end` - 1, the states of `tokens` tokens are not finite."""

    end: int
    tokens: int


@dataclass
class Doubts:
    """Server -> what it found, as long as nobody knows who is the reason; and since when, by a monotonic clock."""

    found: dict[str, Doubt] = field(default_factory=dict)
    since: float = 0.0

    @property
    def question(self) -> int | None:
        """The end of the blocks for which another server's result is wanted; None if nothing is in doubt."""
        return min((doubt.end for doubt in self.found.values()), default=None)

    @property
    def asked(self) -> set[str]:
        """The servers that have answered that question."""
        return {name for name, doubt in self.found.items() if doubt.end == self.question}

    def can_ask(self, able: Iterable[str]) -> bool:
        """Whether one of the servers that have the blocks has not answered it."""
        return bool(set(able) - self.asked)

    def note(self, server: str, reply: Reply, now: float) -> bool:
        """Note a result that is not finite. Returns whether another server has found the same."""
        doubt = Doubt(reply.end, reply.nonfinite)
        confirmed = any(name != server and other == doubt for name, other in self.found.items())
        self.since = self.since if self.found else now
        self.found[server] = doubt
        return confirmed

    def believes(self, reply: Reply, now: float) -> bool:
        """Whether a server is believed, where no other one has the blocks."""
        return reply.sound or now - self.since > ALONE_S

    def settle(self, reply: Reply) -> list[str]:
        """End the doubts that a result settles. Returns the servers whose results were wrong: this one is finite."""
        if reply.nonfinite:
            self.found = {}
            return []
        wrong = [name for name, doubt in self.found.items() if doubt.end <= reply.end]
        self.found = {name: doubt for name, doubt in self.found.items() if doubt.end > reply.end}
        return wrong
