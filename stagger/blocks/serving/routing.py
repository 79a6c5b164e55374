"""Which server a microbatch goes to next, and for how long its answer is waited for. Plain values decide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

#: A server has failed when an answer takes this many times as long as expected.
LATE = 10.0


@dataclass(frozen=True)
class Offer:
    """A server that serves: where it is, the public key that it must prove to own (none: no encryption), its span.

    `rate`: tokens times blocks that it computes per second, as far as it is known; 0 if not.
    """

    server_id: str
    address: str
    public_key: bytes
    start: int
    end: int
    rate: float = 0.0


@dataclass
class Load:
    """What a client knows of a server's work. Work is counted in tokens times blocks.

    `credits`: microbatches that may still be sent. `own`: this client's work there. `others`: work of all clients that
    waited there at the last answer. `rests_until`: it is sent nothing before this time.
    """

    start: int
    end: int
    credits: int
    rate: float = 0.0
    own: float = 0.0
    others: float = 0.0
    rests_until: float = 0.0

    def covers(self, block: int) -> bool:
        return self.start <= block < self.end

    def seconds(self, work: float, otherwise: float) -> float:
        """Until `work` is done, after what this client has queued there. `otherwise` is the rate if none is known."""
        return (self.own + work) / (self.rate or otherwise)

    def learn(self, work: float, seconds: float) -> None:
        """Take a finished microbatch into account: the mean forgets 30 % with each."""
        seen = work / max(seconds, 1e-6)
        self.rate = 0.7 * self.rate + 0.3 * seen if self.rate else seen


Name = TypeVar("Name")


def shortest_queue(loads: Mapping[Name, Load], blocks: range, tokens: int, now: float) -> Name | None:
    """The server that finishes its part of `tokens` tokens through `blocks` first; None when none can take them now.

    Each counts with the work that this client has queued there: queue lengths in answers of many clients add nothing,
    since they are old when they arrive. Of equal ones, the one that goes furthest.
    """
    usual = mean_rate(loads.values())

    def cost(name: Name) -> tuple[float, int]:
        load = loads[name]
        span = min(load.end, blocks.stop) - blocks.start
        return load.seconds(tokens * span, usual), -span

    able = [
        name
        for name, load in loads.items()
        if load.covers(blocks.start) and load.credits > 0 and load.rests_until <= now
    ]
    return min(able, key=cost, default=None)


def mean_rate(loads: Iterable[Load]) -> float:
    known = [load.rate for load in loads if load.rate]
    return sum(known) / len(known) if known else 1.0


def patience(load: Load, work: float, least_s: float, unknown_s: float) -> float:
    """Seconds after which a server that has not answered has failed: LATE times the expected ones, or more.

    `least_s` is the least of a server whose rate is known, `unknown_s` that of one that has answered nothing yet.
    """
    if not load.rate:
        return unknown_s
    return max(least_s, LATE * (load.own + load.others + work) / load.rate)


def uncovered(spans: Iterable[tuple[int, int]], total_blocks: int) -> list[int]:
    """The blocks that are in none of the spans.

    >>> uncovered([(0, 3), (5, 6)], 7)
    [3, 4, 6]
    """
    covered = {block for start, end in spans for block in range(start, end)}
    return [block for block in range(total_blocks) if block not in covered]


@dataclass(frozen=True)
class Uncovered:
    """Blocks that no server serves: since how many seconds, and which servers were given up, with the reasons."""

    blocks: Sequence[int]
    since_s: float
    evicted: Mapping[str, str] = field(default_factory=dict)
