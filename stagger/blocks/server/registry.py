"""The registry where a swarm's servers find one another: a folder that all can access (Lustre, NFS, S3), no service.

    server.<id>.json    a server's own record: replaced atomically at each heartbeat, removed some time after its end
    claim.<n>.json      the n-th decision about which server hosts which blocks: created once, never changed
    tend.<n>.json       the n-th time that a server looked after lost ones (`stagger.blocks.server.tending`)
    began.json          when the first server began
    end.json            why the swarm has ended (`stagger.launch.swarms`)

No server holds a lock. A server that has seen all earlier claims may create the next one exclusively (by a hard link on
a file system, with `If-None-Match` on S3). If several servers decide on the same view, one succeeds; the others look
again and decide anew. Decisions therefore follow one another as under a lock, but a server that is killed in the middle
of deciding delays nobody.

Each reader judges by its own clock whether a server is alive: its sequence number must change within `lease_s` seconds.
Clocks need not agree. (Gray and Cheriton, "Leases", SOSP 1989, with the reader's clock alone.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random

import orjson

from stagger.blocks.placement.spans import ServerState
from stagger.blocks.server.records import Claim, Decided, Member, Placed, ServerRecord, View, superseded
from stagger.errors import StaggerError
from stagger.spec.block_settings import LEASE_S
from stagger.storage import MTIME, Entry
from stagger.storage.storage import Storage, join

#: Bytes of the largest record and the largest claim that are read. A record has fewer than 1,000 bytes, a claim about
#: 100 for each server.
MOST_BYTES = {"server": 2**16, "claim": 2**24}

#: The file with the time at which the swarm's first server began.
BEGAN = "began.json"

#: Longest wait before a claim is retried, in seconds: it is U(0, 2^n) times the duration of the n-th try (full jitter).
LONGEST_WAIT_S = 5.0


class Registry:
    """A reader of a swarm's folder, and a writer for the server `server_id`. For use by one thread.

    It ignores files that are damaged or hold invalid blocks, so that one bad file does not stop all servers, and calls
    `tell` with a message about each, once. `clock` is a monotonic clock, in seconds.
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
        #: The view of the last `refresh`. Any thread may read it.
        self.latest = View(0, {})
        #: Names of the other files that were there then.
        self.others: set[str] = set()
        #: Number of the latest claim that was there then; 0 if there was none.
        self.listed_claim = 0
        self._clock = clock
        self._tell = tell
        self._random = Random()  # noqa: S311 - jitter, seeded by the system in each process.
        self._versions: dict[str, str] = {}
        self._records: dict[str, ServerRecord] = {}
        self._claim: Claim | None = None  # The latest that could be read.
        self._taken = 0  # Highest number found taken when claiming: NFS may list it late.
        self._seen: dict[int, float] = {}  # When a claim was first seen, by its number.
        #: Servers that have claimed but not announced themselves yet -> the claim's number, and when it was first seen.
        self._waiting: dict[str, tuple[int, float]] = {}
        self._heard: dict[str, float] = {}  # When a server's sequence number was last seen to change.
        self._gone_since: dict[str, float] = {}
        self._damaged: set[str] = set()

    # ---- Reading ----

    def refresh(self) -> View:
        """Read the swarm's current state: one listing, then one read of the latest claim and of each changed record."""
        found = self.storage.list(self.folder)
        listed = [entry for entry in found if _kind(entry.name)]
        self.others = {entry.name for entry in found} - {entry.name for entry in listed}
        now = self._clock()
        huge = {entry.name for entry in listed if entry.size > MOST_BYTES[_kind(entry.name)]}
        for name in huge:
            self._ignore(name, f"it has more than {MOST_BYTES[_kind(name)]:,} bytes")
        entries = {entry.name: _version(entry) for entry in listed if entry.name not in huge}
        there = {int(_key(entry.name)) for entry in listed if _kind(entry.name) == "claim"}
        self.listed_claim = max(there, default=0)
        numbers = there | {self._taken}
        self._seen = {number: self._seen.get(number, now) for number in numbers}
        latest = _claim_name(max(numbers))
        # File systems list only times, so each record is read at each look there. Claims never change.
        changed = [n for n, v in entries.items() if _kind(n) == "server" and (not v or self._versions.get(n) != v)]
        is_new = latest not in self._versions and latest not in huge and max(numbers) > 0
        unread = [*changed, *([latest] if is_new else [])]
        contents = self.storage.read_many([join(self.folder, name) for name in unread])
        self._versions = {name: v for name, v in self._versions.items() if name in entries or name == latest}
        for name, data in zip(unread, contents, strict=True):
            if data is not None:  # None: removed since the listing.
                self._versions[name] = entries.get(name, "")
                self._take(name, data, now)
        servers = {_key(name) for name in self._versions if _kind(name) == "server"}
        self._records = {name: record for name, record in self._records.items() if name in servers}
        self.latest = self._view(now)
        return self.latest

    def _take(self, name: str, data: bytes, now: float) -> None:
        """Take over the content of a file. Damaged files are ignored; the number of a damaged claim still counts."""
        key = _key(name)
        try:
            if _kind(name) == "claim":
                self._claim = Claim.decode(data, self.total_blocks)
                return
            record = ServerRecord.decode(data, self.total_blocks)
            if record.server_id != key:
                raise ValueError(f"it describes server {record.server_id}")
        except ValueError as error:  # Also orjson.JSONDecodeError.
            self._ignore(name, str(error))
            self._records.pop(key, None)
            return
        before = self._records.get(key)
        if before is None or before.sequence != record.sequence:
            self._heard[key] = now
        self._records[key] = record

    def _ignore(self, name: str, reason: str) -> None:
        """Report a damaged file, once."""
        if name not in self._damaged:
            self._damaged.add(name)
            self._tell(f"{join(self.folder, name)} is damaged ({reason}); it is ignored")

    def _view(self, now: float) -> View:
        decided = self._claim.placements if self._claim is not None else {}
        members: dict[str, Member] = {}
        gone: dict[str, ServerRecord] = {}
        old = superseded({*self._records, *decided})
        for name, record in self._records.items():
            if name in old:
                gone[name] = replace(record, reason=record.reason or f"its rank started again as {old[name]}")
                continue
            lost = name != self.server_id and now - self._heard[name] > self.lease_s
            if lost or record.state == ServerState.OFFLINE:
                gone[name] = record if record.reason else replace(record, reason="no heartbeat within its lease")
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
            if now - since <= self.lease_s and name not in old:
                members[name] = Member(decided[name].placed, claim, None)
        self._gone_since = {name: self._gone_since.get(name, now) for name in gone}
        return View(max(self._seen), members, gone)

    # ---- Writing ----

    def claim(
        self, decide: Callable[[View], Mapping[str, Placed]], pause: Callable[[float], None] = time.sleep
    ) -> Claim | None:
        """Claim the spans that `decide` returns for the current view; return the claim, or None when it returns none.

        If another server has claimed meanwhile, look and decide again, after `pause` has waited. Raises whatever
        `decide` or `pause` raises.
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
                # Old claims are removed after a lease. This try took so long that its number had belonged to another.
                self.storage.remove(path)
            else:
                self._taken = max(self._taken, number)
            failures += 1
            longest = min(LONGEST_WAIT_S, (self._clock() - looked) * 2.0**failures)
            pause(self._random.random() * longest)

    def announce(self, record: ServerRecord) -> ServerRecord:
        """Replace this server's record; return it with its new sequence number, which proves that it is alive."""
        record = replace(record, sequence=record.sequence + 1)
        self.storage.write(self._server_path(record.server_id), record.encode())
        self._records[record.server_id] = record
        self._heard[record.server_id] = self._clock()
        return record

    def began(self, now: float) -> float:
        """When the swarm's first server began, in seconds since the epoch: now, if this is the first."""
        path = join(self.folder, BEGAN)
        if self.storage.create(path, orjson.dumps({"time": now})):
            return now
        try:
            return float(orjson.loads(self.storage.read(path))["time"])
        except (ValueError, KeyError, TypeError) as error:
            raise StaggerError(f"{path} is damaged ({error}).") from error

    def retire(self, record: ServerRecord, reason: str) -> None:
        """Mark another server as OFFLINE; for callers that know that it has ended."""
        gone = replace(record, state=ServerState.OFFLINE, serving=None, sequence=record.sequence + 1, reason=reason)
        self.storage.write(self._server_path(record.server_id), gone.encode())

    def sweep(self) -> None:
        """Remove old files; call it after `refresh`. These are all claims but the latest, and records of gone servers.

        A file is removed only one lease after this reader first saw it as old, so that slower readers can still use it.
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


def _claim_name(number: int) -> str:
    return f"claim.{number:09d}.json"


def _version(entry: Entry) -> str:
    """The version of a record; empty where only its time tells it: two writes may fall into one tick of the clock."""
    return "" if entry.version.startswith(MTIME) else entry.version


def _kind(name: str) -> str:
    """`server` or `claim`, from a file's name; empty for any other file."""
    kind, _, rest = name.partition(".")
    if kind == "claim" and rest.endswith(".json") and rest.removesuffix(".json").isdecimal():
        return kind
    return kind if kind == "server" and rest.endswith(".json") and rest != ".json" else ""


def _key(name: str) -> str:
    return name.partition(".")[2].removesuffix(".json")


def jittered(seconds: float, random: Random) -> float:
    """U(0.5, 1.5) times `seconds`, so that many servers do not act in step."""
    return seconds * (0.5 + random.random())


def as_moves(windows: Mapping[str, range], view: View) -> dict[str, Placed]:
    """Convert windows of members to the spans of a claim, with each member's throughput."""
    return {
        name: Placed(window.start, window.stop, view.members[name].target.throughput)
        for name, window in windows.items()
    }
