"""The records that servers write into the registry, and the view of the swarm that a reader builds from them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from stagger.blocks.placement.spans import ServerState, Span
from stagger.ranks import pad
from stagger.rundir.stage_folder import attempt_order


class Placed(NamedTuple):
    """Blocks `start` to `end` - 1 of one server, and its throughput for each, in requests per second."""

    start: int
    end: int
    throughput: float

    def fits(self, total_blocks: int) -> bool:
        """Whether the blocks lie in a model of `total_blocks` blocks, and the throughput is finite and not negative."""
        whole = type(self.start) is int and type(self.end) is int and 0 <= self.start < self.end <= total_blocks
        return whole and isinstance(self.throughput, (int, float)) and 0 <= self.throughput < float("inf")


class Decided(NamedTuple):
    """The span that a server should host, and the number of the claim that decided it."""

    placed: Placed
    claim: int


@dataclass(frozen=True)
class ServerRecord:
    """A server's own record in the registry.

    `start`, `end`: the span that it should host, `end` excluded. `serving`: the span that it serves now; None for none.
    `throughput`: requests per second, as placement counts them. `pass_throughput`: requests per second that run through
    the whole span; 0 if unknown. `claim`: number of the latest claim about itself that it knows.
    `sequence`: increases with each heartbeat. `job_ends`: when its job's time is up, in seconds since the epoch.
    `reason`: why it left, when it is OFFLINE. `about`, `counters`: what its host says about itself and counts
    (`stagger.blocks.host`). `more`: fields that this version does not know; they are kept.
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
    pass_throughput: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)
    counters: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        known = {name: value for name, value in vars(self).items() if name != "more"}
        return orjson.dumps({**self.more, **known, "state": self.state.name}, option=orjson.OPT_INDENT_2)

    @classmethod
    def decode(cls, data: bytes, total_blocks: int) -> ServerRecord:
        """Parse a record. Raises ValueError when it is damaged, or does not fit a model of `total_blocks` blocks."""
        content = orjson.loads(data)
        try:
            content["state"] = ServerState[content["state"]]
            serving = content["serving"]
            content["serving"] = None if serving is None else (int(serving[0]), int(serving[1]))
            known = cls.__dataclass_fields__.keys() - {"more"}
            more = {name: value for name, value in content.items() if name not in known}
            record = cls(**{name: content[name] for name in known if name in content}, more=more)
            sound = all(isinstance(getattr(record, name), kind) for name, kind in KINDS.items())
            sound = sound and all(0 <= getattr(record, name) < 2**63 for name, kind in KINDS.items() if kind is int)
            sound = sound and all(
                Placed(record.start, record.end, rate).fits(total_blocks)
                for rate in (record.throughput, record.pass_throughput)
            )
            if record.serving is not None:
                sound = sound and Placed(*record.serving, record.throughput).fits(total_blocks)
        except (KeyError, TypeError, IndexError, OverflowError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if not sound:
            raise ValueError("invalid value")
        return record


#: Field of a server's record -> the types of its value. The span and the throughput are checked together.
KINDS: dict[str, type | tuple[type, ...]] = {
    "server_id": str,
    "host": str,
    "port": (int, type(None)),
    "claim": int,
    "sequence": int,
    "job": str,
    "job_ends": (int, float, type(None)),
    "moves": int,
    "blocks_loaded": int,
    "reason": str,
    "about": dict,
    "counters": dict,
}


@dataclass(frozen=True)
class Claim:
    """One decision: the servers in `moves` change to the spans in `placements`.

    `placements` holds the spans of all servers, so a reader of the latest claim needs no earlier one. `by` is the
    server that decided; `time` is seconds since the epoch by its own clock.
    """

    number: int
    by: str
    time: float
    moves: list[str]
    placements: dict[str, Decided]

    def encode(self) -> bytes:
        placements = {name: [*decided.placed, decided.claim] for name, decided in self.placements.items()}
        # By the token, a server recognizes its own claim when the answer to its exclusive create was lost.
        content = {**vars(self), "placements": placements, "token": os.urandom(8).hex()}
        return orjson.dumps(content, option=orjson.OPT_INDENT_2)

    @classmethod
    def decode(cls, data: bytes, total_blocks: int) -> Claim:
        """Parse a claim. Raises ValueError when it is damaged, or does not fit a model of `total_blocks` blocks."""
        content = orjson.loads(data)
        try:
            placements = {
                name: Decided(Placed(int(start), int(end), float(throughput)), int(claim))
                for name, (start, end, throughput, claim) in content["placements"].items()
            }
            moves = [str(name) for name in content["moves"]]
            claim = cls(int(content["number"]), str(content["by"]), float(content["time"]), moves, placements)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if not all(decided.placed.fits(total_blocks) for decided in placements.values()):
            raise ValueError("invalid blocks")
        return claim


@dataclass(frozen=True)
class Member:
    """A server as a reader sees it: `target` is the span it should host, as decided by claim number `claim`.

    `record` is None until the server has announced itself.
    """

    target: Placed
    claim: int
    record: ServerRecord | None

    @property
    def serving(self) -> tuple[int, int] | None:
        return self.record.serving if self.record else None

    @property
    def keeps(self) -> tuple[int, int] | None:
        """The part of `serving` inside `target`: the server drops the rest once it learns of the latest claim."""
        if self.serving is None:
            return None
        start, end = max(self.serving[0], self.target.start), min(self.serving[1], self.target.end)
        return (start, end) if start < end else None

    @property
    def state(self) -> ServerState:
        """ONLINE or JOINING. A server that does not know yet that it has to move also counts as JOINING."""
        known = self.record is not None and self.record.claim >= self.claim
        online = known and self.record is not None and self.record.state == ServerState.ONLINE
        return ServerState.ONLINE if online else ServerState.JOINING


@dataclass(frozen=True)
class View:
    """The swarm at one look: the live servers, by id, and the number of the latest claim.

    `gone`: servers that left, failed, or sent no heartbeat for a lease, while their records still exist.
    """

    claim: int
    members: dict[str, Member]
    gone: dict[str, ServerRecord] = field(default_factory=dict)

    def spans(self) -> list[Span]:
        """The span that each server should host: the basis for choosing blocks."""
        return [
            Span(name, member.target.start, member.target.end, member.target.throughput, member.state)
            for name, member in sorted(self.members.items())
        ]

    def online(self) -> list[Span]:
        """The span that each server serves now. A moving server serves a part of its span."""
        return [
            Span(name, *member.serving, member.target.throughput)
            for name, member in sorted(self.members.items())
            if member.serving is not None
        ]

    def kept(self) -> list[Span]:
        """The span that each server serves now and keeps under the latest claim: the basis for giving up blocks."""
        return [
            Span(name, *member.keeps, member.target.throughput)
            for name, member in sorted(self.members.items())
            if member.keeps is not None
        ]


def server_id(rank: int, attempt: str) -> str:
    """The id of one attempt of a rank: a requeued job is a new server."""
    return f"{pad(rank)}.{attempt}"


def rank_of(server_id: str) -> int:
    """The rank in a server's id; -1 if the id has none."""
    rank = server_id.partition(".")[0]
    return int(rank) if rank.isdecimal() else -1


def attempt_of(server_id: str) -> tuple[int, int]:
    """The order of a server's attempt among those of its rank (`attempt_order`)."""
    return attempt_order(server_id.partition(".")[2])


def superseded(names: Iterable[str]) -> dict[str, str]:
    """Server id -> the latest attempt of its rank, for each of `names` that is an earlier attempt of its rank.

    >>> superseded(["00000.1", "00000.1r1", "00001.2", "00000.2"])
    {'00000.1': '00000.2', '00000.1r1': '00000.2'}
    """
    latest: dict[int, str] = {}
    names = [name for name in names if rank_of(name) >= 0]
    for name in names:
        rank = rank_of(name)
        if rank not in latest or attempt_of(name) > attempt_of(latest[rank]):
            latest[rank] = name
    return {name: latest[rank_of(name)] for name in names if attempt_of(name) < attempt_of(latest[rank_of(name)])}
