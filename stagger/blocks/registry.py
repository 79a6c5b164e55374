"""Where the servers of a swarm find one another: a folder that all of them see (Lustre, NFS, S3), and no other service.

    server.<id>.json    what a server says of itself: replaced whole at each heartbeat, removed some time after its end
    claim.<n>.json      the n-th decision about who hosts what: created once, never changed

Nobody holds a lock. To claim blocks is to create the next claim exclusively (a hard link on a file system,
`If-None-Match` on S3), having seen all claims before it: of several that decide on the same view one succeeds, and the
others look again and decide anew. So all decisions come one after another, as if under a lock, but one who is killed in
the middle of deciding holds up nobody.

Whether a server is alive, each reader judges by its own clock: as long as the sequence number changes within `lease_s`.
Clocks need not agree. (Gray and Cheriton, "Leases", SOSP 1989, with the reader's clock alone.)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import NamedTuple

import orjson

from stagger.blocks.placement import ServerState, Span
from stagger.blocks.settings import LEASE_S
from stagger.rundir import pad
from stagger.storage import Storage, join

#: Before a claim is tried again: U(0, 2^n) times as long as the try took (full jitter), and never longer than this.
LONGEST_WAIT_S = 5.0


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
        """What is served right now. A server that moves serves a part meanwhile."""
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


class Registry:
    """A reader of a swarm's folder, and, as server `server_id`, a writer. For one thread.

    Files that are damaged, or tell of blocks beyond the model's, do not count: one must not stop all servers. `clock`
    gives seconds that only go forward; `tell` is told of each such file once.
    """

    def __init__(
        self,
        storage: Storage,
        folder: str,
        total_blocks: int,
        server_id: str = "",
        *,
        lease_s: float = LEASE_S,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[[str], None] = print,
    ) -> None:
        self.storage = storage
        self.folder = folder
        self.total_blocks = total_blocks
        self.server_id = server_id
        self.lease_s = lease_s
        self._clock = clock
        self._tell = tell
        self._random = Random()  # noqa: S311 - jitter, seeded by the system in each process.
        self._versions: dict[str, str] = {}
        self._records: dict[str, ServerRecord] = {}
        self._claim: Claim | None = None  # The latest that can be read.
        self._taken = 0  # A number that another's claim was found to have: NFS may list it late.
        self._seen: dict[int, float] = {}  # When a claim was first seen, by its number.
        #: Who has claimed (the claim's number, and when it was seen), and has not announced itself yet.
        self._waiting: dict[str, tuple[int, float]] = {}
        self._heard: dict[str, float] = {}  # When a server's sequence number was last seen to change.
        self._gone_since: dict[str, float] = {}
        self._damaged: set[str] = set()

    # ---- Reading ----

    def refresh(self) -> View:
        """The swarm as it is now: one listing, and a read of the latest claim and each record that is new."""
        entries = {entry.name: entry.version for entry in self.storage.list(self.folder)}
        now = self._clock()
        numbers = {int(_key(name)) for name in entries if _kind(name) == "claim"} | {self._taken}
        self._seen = {number: self._seen.get(number, now) for number in numbers}
        latest = _claim_name(max(numbers))
        # File systems tell no version: there each record is read, at each look. Claims never change.
        changed = [n for n, v in entries.items() if _kind(n) == "server" and (not v or self._versions.get(n) != v)]
        unread = [*changed, *([latest] if latest not in self._versions and max(numbers) else [])]
        contents = self.storage.read_many([join(self.folder, name) for name in unread])
        self._versions = {name: v for name, v in self._versions.items() if name in entries or name == latest}
        for name, data in zip(unread, contents, strict=True):
            if data is not None:  # Removed since it was listed.
                self._versions[name] = entries.get(name, "")
                self._take(name, data, now)
        servers = {_key(name) for name in self._versions if _kind(name) == "server"}
        self._records = {name: record for name, record in self._records.items() if name in servers}
        return self._view(now)

    def _take(self, name: str, data: bytes, now: float) -> None:
        """Note what a file says. One that is damaged does not count; of a claim, its number is taken all the same."""
        key = _key(name)
        try:
            if _kind(name) == "claim":
                self._claim = Claim.decode(data, self.total_blocks)
                return
            record = ServerRecord.decode(data, self.total_blocks)
            if record.server_id != key:
                raise ValueError(f"it is of {record.server_id}")
        except ValueError as error:  # orjson's too.
            if name not in self._damaged:
                self._damaged.add(name)
                self._tell(f"{join(self.folder, name)} is damaged ({error}), and does not count")
            self._records.pop(key, None)
            return
        before = self._records.get(key)
        if before is None or before.sequence != record.sequence:
            self._heard[key] = now
        self._records[key] = record

    def _view(self, now: float) -> View:
        decided = self._claim.placements if self._claim is not None else {}
        members: dict[str, Member] = {}
        gone: dict[str, ServerRecord] = {}
        for name, record in self._records.items():
            lost = name != self.server_id and now - self._heard[name] > self.lease_s
            if lost or record.state == ServerState.OFFLINE:
                gone[name] = record if record.reason else replace(record, reason="not heard of any more")
                continue
            target = Placed(record.start, record.end, record.throughput), record.claim
            if name in decided and decided[name].claim > record.claim:
                target = decided[name]
            members[name] = Member(*target, record)
        waiting = {name: claim for name, (_, claim) in decided.items() if name not in self._records}
        known = self._waiting
        self._waiting = {
            name: known[name] if name in known and known[name][0] == claim else (claim, now)
            for name, claim in waiting.items()
        }
        for name, (claim, since) in self._waiting.items():
            if now - since <= self.lease_s:
                members[name] = Member(decided[name].placed, claim, None)
        self._gone_since = {name: self._gone_since.get(name, now) for name in gone}
        return View(max(self._seen), members, gone)

    # ---- Writing ----

    def claim(
        self, decide: Callable[[View], Mapping[str, Placed]], pause: Callable[[float], None] = time.sleep
    ) -> Claim | None:
        """Announce what `decide` makes of the swarm, if by then nobody has decided anything else: then it looks again.

        None when `decide` finds nothing to do. `pause` waits before that. Raises what these raise.
        """
        failures = 0
        while True:
            looked = self._clock()
            view = self.refresh()
            moves = dict(decide(view))
            if not moves:
                return None
            number = view.claim + 1
            placements = {name: Decided(member.target, member.claim) for name, member in view.members.items()}
            placements |= {name: Decided(placed, number) for name, placed in moves.items()}
            claim = Claim(number, self.server_id, time.time(), sorted(moves), placements)
            path = join(self.folder, _claim_name(number))
            if self.storage.create(path, claim.encode()):
                if self._clock() - looked <= self.lease_s / 2 or self.refresh().claim == number:
                    return claim
                # Old claims are removed after a lease: this one came so late that its number had been another's.
                self.storage.remove(path)
            else:
                self._taken = max(self._taken, number)
            failures += 1
            longest = min(LONGEST_WAIT_S, (self._clock() - looked) * 2.0**failures)
            pause(self._random.random() * longest)

    def announce(self, record: ServerRecord) -> ServerRecord:
        """Replace the own record; a new sequence number says that it is alive. Returns it with that one."""
        record = replace(record, sequence=record.sequence + 1)
        self.storage.write(self._server_path(record.server_id), record.encode())
        self._records[record.server_id] = record
        self._heard[record.server_id] = self._clock()
        return record

    def retire(self, record: ServerRecord, reason: str) -> None:
        """Say of another server that it is gone, because this one knows."""
        gone = replace(record, state=ServerState.OFFLINE, serving=None, sequence=record.sequence + 1, reason=reason)
        self.storage.write(self._server_path(record.server_id), gone.encode())

    def sweep(self) -> None:
        """Remove what nobody needs any more, after a `refresh`: all claims but the latest, records of who is gone.

        Only what this reader has known for a lease to be of no use, so that no one can be surprised by it.
        """
        now, latest = self._clock(), max(self._seen, default=0)
        for number, since in self._seen.items():
            if number not in (0, latest) and now - since > self.lease_s:
                self.storage.remove(join(self.folder, _claim_name(number)))
        named = self._claim.placements if self._claim is not None else {}
        for name, since in self._gone_since.items():
            if name not in named and now - since > self.lease_s:
                self.storage.remove(self._server_path(name))

    def _server_path(self, server_id: str) -> str:
        return join(self.folder, f"server.{server_id}.json")


def server_id(rank: int, attempt: str) -> str:
    """The id of one attempt of a rank: what a job that begins again was before is another server."""
    return f"{pad(rank)}.{attempt}"


def rank_of(server_id: str) -> int:
    """A server's rank, by its id; -1 for an id of another make."""
    rank = server_id.partition(".")[0]
    return int(rank) if rank.isdecimal() else -1


def _claim_name(number: int) -> str:
    return f"claim.{number:09d}.json"


def _kind(name: str) -> str:
    """`server` or `claim`, by the name of a file of the registry; empty for any other."""
    kind, _, rest = name.partition(".")
    if kind == "claim" and rest.endswith(".json") and rest.removesuffix(".json").isdecimal():
        return kind
    return kind if kind == "server" and rest.endswith(".json") and rest != ".json" else ""


def _key(name: str) -> str:
    return name.partition(".")[2].removesuffix(".json")


def jittered(seconds: float, random: Random) -> float:
    """U(0.5, 1.5) times `seconds`: what is done by many every so often must not be done in step."""
    return seconds * (0.5 + random.random())


def as_moves(windows: Mapping[str, range], view: View) -> dict[str, Placed]:
    """Windows for members of a swarm, as a claim holds them."""
    return {
        name: Placed(window.start, window.stop, view.members[name].target.throughput)
        for name, window in windows.items()
    }
