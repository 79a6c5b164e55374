"""What a swarm of block servers is doing, from its registry and what is known of its jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stagger.blocks.bound import throughput_bound
from stagger.blocks.placement import ServerState, compute_throughputs
from stagger.blocks.registry import Member, Registry, ServerRecord, View


@dataclass(frozen=True)
class ServerLine:
    """One server: `state` is ONLINE, JOINING (loading), LEAVING (its job still runs) or GONE.

    It hosts, or will, the blocks from `start` until before `end`, and serves `serving` of them now.
    """

    server: str
    state: str
    host: str
    port: int | None
    start: int
    end: int
    serving: tuple[int, int] | None
    throughput: float
    moves: int
    blocks_loaded: int
    job: str
    job_ends: float | None
    reason: str


@dataclass(frozen=True)
class SwarmStatus:
    """A look at a swarm. Throughputs are in requests per second, per block: `online` of what is served now, `target` of
    what will be when all have loaded; `bound` is what the slowest block could have at best with these servers.
    """

    total_blocks: int
    wanted: int
    servers: list[ServerLine]
    online: list[float]
    target: list[float]
    bound: float
    claims: int

    @property
    def weakest(self) -> int:
        """The block that is served least; the first of them."""
        return self.online.index(min(self.online))

    def count(self, state: str) -> int:
        return sum(server.state == state for server in self.servers)

    def document(self) -> dict[str, Any]:
        return {
            **vars(self),
            "servers": [vars(server) for server in self.servers],
            "weakest": {"block": self.weakest, "throughput": self.online[self.weakest]},
            "moves": sum(server.moves for server in self.servers),
        }


def swarm_status(registry: Registry, total_blocks: int, wanted: int, running: set[int]) -> SwarmStatus:
    """The swarm now, `running` being the ranks whose jobs run: who is not among them is gone, whatever it said last.

    Who looks once cannot judge a lease; who keeps the registry and looks again, does.
    """
    view = registry.refresh()
    dead = {name for name in view.members if rank_of(name) not in running}
    alive = View(view.claim, {name: member for name, member in view.members.items() if name not in dead})
    spans, online = alive.spans(), alive.online()
    lines = [_line(name, member) for name, member in alive.members.items()]
    records = [view.members[name].record for name in dead]
    lines += [_gone(record, "its job is not running") for record in records if record is not None]
    lines += [_gone(record, record.reason, leaving=rank_of(name) in running) for name, record in view.gone.items()]
    return SwarmStatus(
        total_blocks=total_blocks,
        wanted=wanted,
        servers=sorted(lines, key=lambda line: line.server),
        online=compute_throughputs(online, total_blocks).tolist(),
        target=compute_throughputs(spans, total_blocks).tolist(),
        bound=throughput_bound(spans, total_blocks),
        claims=view.claim,
    )


def rank_of(server_id: str) -> int:
    """A server's rank, by its id; -1 for an id of another make."""
    rank = server_id.partition(".")[0]
    return int(rank) if rank.isdecimal() else -1


def _line(name: str, member: Member) -> ServerLine:
    target = member.target
    known = _told(member.record) if member.record is not None else _SILENT
    place = {"start": target.start, "end": target.end, "throughput": target.throughput}
    return ServerLine(**{**known, **place, "server": name, "state": member.state.name, "reason": ""})


def _gone(record: ServerRecord, reason: str, leaving: bool = False) -> ServerLine:
    state = "LEAVING" if leaving and record.state == ServerState.OFFLINE else "GONE"
    return ServerLine(
        **{**_told(record), "server": record.server_id, "state": state, "serving": None, "reason": reason}
    )


def _told(record: ServerRecord) -> dict[str, Any]:
    """What a record says that is shown."""
    return {key: value for key, value in vars(record).items() if key in ServerLine.__annotations__}


#: Of a server that has claimed blocks, and not announced itself yet.
_SILENT: dict[str, Any] = {
    "host": "",
    "port": None,
    "serving": None,
    "moves": 0,
    "blocks_loaded": 0,
    "job": "",
    "job_ends": None,
}
