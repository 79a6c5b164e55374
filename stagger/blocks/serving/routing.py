"""Which server a microbatch goes to next, and for how long its answer is waited for. Plain values decide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from typing import TypeVar

#: Seconds after which 63 % of the work that a server was sent is forgotten, in choosing the next one.
LATELY_S = 20.0

#: A hop must save the time of this many blocks.
HOP_BLOCKS = 4

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
    waited there at the last answer. `rests_until`: it is sent nothing before this time. `used`: seconds of work that it
    was sent lately, as of `used_at`.
    """

    start: int
    end: int
    credits: int
    rate: float = 0.0
    own: float = 0.0
    others: float = 0.0
    rests_until: float = 0.0
    used: float = 0.0
    used_at: float = 0.0

    def covers(self, block: int) -> bool:
        return self.start <= block < self.end

    def lately(self, now: float) -> float:
        """Seconds of work that it was sent lately: they are forgotten with a time constant of LATELY_S."""
        return self.used * exp((self.used_at - now) / LATELY_S)

    def send(self, work: float, rate: float, now: float) -> None:
        self.used, self.used_at = self.lately(now) + work / rate, now
        self.own += work
        self.credits -= 1

    def learn(self, work: float, seconds: float) -> None:
        """Take a finished microbatch into account: the mean forgets 30 % with each."""
        seen = work / max(seconds, 1e-6)
        self.rate = 0.7 * self.rate + 0.3 * seen if self.rate else seen


Name = TypeVar("Name")


def next_hop(
    loads: Mapping[Name, Load], blocks: range, tokens: int, now: float, transfer_s: float = 0.0
) -> tuple[Name, int] | None:
    """The server that `tokens` tokens are sent to from the first of `blocks` on, and the block at which it stops.

    It is the server that this client has used least lately, in seconds of work; None when none has a credit. It stops
    where another span begins whose server has been used less, by more than it takes to send the state (`transfer_s`),
    and to compute HOP_BLOCKS blocks. So each block is computed by the servers that are used least, as in the best
    division of the work: there, none can move to a server that is used less. If each server computed its whole span,
    those that cover its end would be left unused: 0.75 of the capacity in benchmarks/swarm, instead of 0.99.

    Queue lengths in answers of other clients add nothing, since they are old when they arrive.
    """
    able = [
        name
        for name, load in loads.items()
        if load.covers(blocks.start) and load.credits > 0 and load.rests_until <= now
    ]
    if not able:
        return None
    usual = mean_rate(loads.values())
    used = {name: load.lately(now) for name, load in loads.items()}
    chosen = min(able, key=lambda name: (used[name], -loads[name].end))
    block_s = tokens / (loads[chosen].rate or usual)
    end = min(loads[chosen].end, blocks.stop)
    later = [name for name, load in loads.items() if not load.covers(blocks.start)]
    for block in range(blocks.start + 1, end):
        here = used[chosen] + block_s * (block - blocks.start) - transfer_s
        for name in later:
            if loads[name].covers(block) and used[name] + HOP_BLOCKS * tokens / (loads[name].rate or usual) < here:
                return chosen, block
    return chosen, end


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
