"""What servers write into the registry, and how one server sees all of them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from stagger.blocks.placement.petals import ServerState, Span
from stagger.ranks import pad


class Placed(NamedTuple):
    """The blocks from `start` until before `end`, and at how many requests per second a server serves each."""

    start: int
    end: int
    throughput: float

    def fits(self, total_blocks: int) -> bool:
        """Whether there can be such a thing in a model of so many blocks."""
        whole = type(self.start) is int and type(self.end) is int and 0 <= self.start < self.end <= total_blocks
        return whole and isinstance(self.throughput, (int, float)) and 0 <= self.throughput < float("inf")


class Decided(NamedTuple):
    """Where a server is to be, and the number of the claim that says so."""

    placed: Placed
    claim: int


@dataclass(frozen=True)
class ServerRecord:
    """What a server says of itself.

    `start` to `end` is what it is to host, `serving` what it serves right now, None for nothing; `claim` the number of
    the latest claim that it knows of itself; `job_ends` when its job's time is up, in seconds since the epoch. When it
    is OFFLINE, `reason` says why.
    """

    server_id: str
    host: str
    port: int | None
    state: ServerState
    start: int
    end: int
    serving: tuple[int, int] | None
    throughput: float
    claim: int
    sequence: int = 0
    job: str = ""
    job_ends: float | None = None
    moves: int = 0
    blocks_loaded: int = 0
    reason: str = ""

    def encode(self) -> bytes:
        return orjson.dumps({**vars(self), "state": self.state.name}, option=orjson.OPT_INDENT_2)

    @classmethod
    def decode(cls, data: bytes, total_blocks: int) -> ServerRecord:
        """Raises ValueError for a record that is damaged, or none of a model of so many blocks."""
        content = orjson.loads(data)
        try:
            content["state"] = ServerState[content["state"]]
            serving = content["serving"]
            content["serving"] = None if serving is None else (int(serving[0]), int(serving[1]))
            record = cls(**content)
            sound = all(type(number) is int for number in (record.claim, record.sequence))
            sound &= Placed(record.start, record.end, record.throughput).fits(total_blocks)
            if record.serving is not None:
                sound &= Placed(*record.serving, record.throughput).fits(total_blocks)
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if not sound:
            raise ValueError("a value that cannot be")
        return record


@dataclass(frozen=True)
class Claim:
    """One decision: `moves` names the servers that are to host other blocks from now on.

    `placements` is where all servers are to be then: who reads the latest claim needs none before it. `by` made it, at
    `time` by its own clock.
    """

    number: int
    by: str
    time: float
    moves: list[str]
    placements: dict[str, Decided]

    def encode(self) -> bytes:
        placements = {name: [*decided.placed, decided.claim] for name, decided in self.placements.items()}
        # The token makes it this caller's: an exclusive create whose answer was lost is told from another's.
        content = {**vars(self), "placements": placements, "token": os.urandom(8).hex()}
        return orjson.dumps(content, option=orjson.OPT_INDENT_2)

    @classmethod
    def decode(cls, data: bytes, total_blocks: int) -> Claim:
        """Raises ValueError for a claim that is damaged, or none of a model of so many blocks."""
        content = orjson.loads(data)
        try:
            placements = {
                name: Decided(Placed(int(start), int(end), float(throughput)), int(claim))
                for name, (start, end, throughput, claim) in content["placements"].items()
            }
            moves = [str(name) for name in content["moves"]]
            claim = cls(int(content["number"]), str(content["by"]), float(content["time"]), moves, placements)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if not all(decided.placed.fits(total_blocks) for decided in placements.values()):
            raise ValueError("blocks that cannot be")
        return claim


@dataclass(frozen=True)
class Member:
    """A server as a reader sees it: `target` is what it is to host, as the claim of number `claim` says."""

    target: Placed
    claim: int
    record: ServerRecord | None

    @property
    def serving(self) -> tuple[int, int] | None:
        return self.record.serving if self.record else None

    @property
    def keeps(self) -> tuple[int, int] | None:
        """What it serves and is to go on serving: it drops the rest as soon as it hears of the latest claim."""
        if self.serving is None:
            return None
        start, end = max(self.serving[0], self.target.start), min(self.serving[1], self.target.end)
        return (start, end) if start < end else None

    @property
    def state(self) -> ServerState:
        """JOINING also of one that has not heard yet that it is to move."""
        known = self.record is not None and self.record.claim >= self.claim
        online = known and self.record is not None and self.record.state == ServerState.ONLINE
        return ServerState.ONLINE if online else ServerState.JOINING


@dataclass(frozen=True)
class View:
    """The swarm at one look: the servers that are alive, by id, and the number of the latest claim.

    `gone`: servers that left, failed, or have not been heard of for a lease, as far as their records are still there.
    """

    claim: int
    members: dict[str, Member]
    gone: dict[str, ServerRecord] = field(default_factory=dict)

    def spans(self) -> list[Span]:
        """What each server is to host: what counts for choosing blocks."""
        return [
            Span(name, member.target.start, member.target.end, member.target.throughput, member.state)
            for name, member in sorted(self.members.items())
        ]

    def online(self) -> list[Span]:
        """What is served right now: what counts for leaving blocks. A server that moves serves a part meanwhile."""
        return [
            Span(name, *member.serving, member.target.throughput)
            for name, member in sorted(self.members.items())
            if member.serving is not None
        ]

    def kept(self) -> list[Span]:
        """What is served, and will be when all have heard of the latest claim: what counts for leaving blocks."""
        return [
            Span(name, *member.keeps, member.target.throughput)
            for name, member in sorted(self.members.items())
            if member.keeps is not None
        ]


def server_id(rank: int, attempt: str) -> str:
    """The id of one attempt of a rank: what a job that begins again was before is another server."""
    return f"{pad(rank)}.{attempt}"


def rank_of(server_id: str) -> int:
    """A server's rank, by its id; -1 for an id of another make."""
    rank = server_id.partition(".")[0]
    return int(rank) if rank.isdecimal() else -1
