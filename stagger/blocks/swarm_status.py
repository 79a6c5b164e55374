"""The state of a swarm of block servers, from its registry and the state of its jobs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from stagger.blocks.placement.bound import routing_capacity, throughput_bound
from stagger.blocks.placement.petals import compute_throughputs
from stagger.blocks.placement.spans import ServerState, Span
from stagger.blocks.server.records import Placed, ServerRecord, View, rank_of, superseded
from stagger.blocks.server.registry import Registry


@dataclass(frozen=True)
class ServerLine:
    """One server: `state` is ONLINE, JOINING (loading), LEAVING (its job still runs) or GONE.

    `start`, `end`: the span that it hosts or loads, `end` excluded. `serving`: the span that it serves now.
    `throughput`: requests per second; `pass_throughput`: of those, the ones that run through the whole span.
    `job_ends`: seconds since the epoch. `reason`: why it leaves or is gone. `about`, `counters`: what its host says
    about itself and counts (`stagger.blocks.host`).
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
    pass_throughput: float
    about: dict[str, Any]
    counters: dict[str, Any]


@dataclass(frozen=True)
class SwarmStatus:
    """The state of a swarm at one moment. Throughputs are in requests per second.

    `wanted`: number of servers in the pipeline file. `online`, `target`: throughput of each block now, and once all
    servers have loaded. `bound`: upper bound of the slowest block's throughput for any placement of these servers.
    `capacity`: requests per second that the blocks served now carry with the best routing, if each request passes all
    of them. `claims`: number of the latest claim.
    """

    total_blocks: int
    wanted: int
    servers: list[ServerLine]
    online: list[float]
    target: list[float]
    bound: float
    capacity: float
    claims: int

    @property
    def weakest(self) -> int:
        """The block with the lowest throughput; the first if there are several."""
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


def swarm_status(registry: Registry, wanted: int, running: set[int]) -> SwarmStatus:
    """The swarm's state now. `running`: the ranks whose jobs run; all other servers are GONE, whatever they recorded.

    A single call cannot detect an expired lease; repeated calls with the same registry do.
    """
    view, total_blocks = registry.refresh(), registry.total_blocks
    dead = {name for name in view.members if rank_of(name) not in running}
    alive = View(view.claim, {name: member for name, member in view.members.items() if name not in dead})
    spans, online = alive.spans(), alive.online()
    lines = [
        _line(member.record or _unannounced(name, member.target), member.state.name, target=member.target)
        for name, member in alive.members.items()
    ]
    records = [view.members[name].record for name in dead]
    lines += [_line(record, "GONE", "its job is not running") for record in records if record is not None]
    hidden = superseded([*view.members, *view.gone])
    for name, record in view.gone.items():
        if name in hidden:
            continue
        leaving = record.state == ServerState.OFFLINE and rank_of(name) in running
        lines.append(_line(record, "LEAVING" if leaving else "GONE", record.reason))
    return SwarmStatus(
        total_blocks=total_blocks,
        wanted=wanted,
        servers=sorted(lines, key=lambda line: line.server),
        online=compute_throughputs(online, total_blocks).tolist(),
        target=compute_throughputs(spans, total_blocks).tolist(),
        bound=throughput_bound(spans, total_blocks),
        capacity=routing_capacity(passing(alive), total_blocks),
        claims=view.claim,
    )


def passing(view: View) -> list[Span]:
    """The spans that servers serve now, each with the blocks per second that the server computes in passes."""
    spans = []
    for span in view.online():
        record = view.members[span.server_id].record
        assert record is not None
        spans.append(replace(span, throughput=record.pass_throughput * (record.end - record.start)))
    return spans


def _line(record: ServerRecord, state: str, reason: str = "", target: Placed | None = None) -> ServerLine:
    shown = {key: value for key, value in vars(record).items() if key in ServerLine.__annotations__}
    if target is not None:
        shown |= target._asdict()
    else:
        shown["serving"] = None
    return ServerLine(**{**shown, "server": record.server_id, "state": state, "reason": reason})


def _unannounced(name: str, target: Placed) -> ServerRecord:
    """A placeholder for the record of a server that has claimed blocks but not announced itself yet."""
    start, end, throughput = target
    return ServerRecord(name, "", None, ServerState.JOINING, start, end, None, throughput, claim=0)
