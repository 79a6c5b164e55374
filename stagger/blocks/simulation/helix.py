"""Helix' placement of blocks, for comparison: the placement whose flow is largest. Pure.

Source: Mei et al., "Helix: Serving Large Language Models over Heterogeneous GPUs and Network via Max-Flow" (2024, arXiv
2406.01566), written anew from its description. A request enters at a server that hosts the first block and passes on,
at the end of each server's span, to one that hosts the next block; a server carries its throughput, whatever part of
its span a request needs. The largest flow through this graph is a placement's throughput. Helix finds a placement by a
mixed integer linear programme, which takes hours for 24 servers; `optimal` solves it for few. For more,
`flows_searched` changes the window of one server at a time while the flow grows, from the present placement on.

Helix places the servers of a fixed cluster once. Searching anew after each arrival and departure is ours, and so is
placing new servers by rule 1 until then. Network capacities are left out, as for all policies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import maximum_flow

from stagger.blocks.simulation.allocation import Resource, moves

#: Windows that a search tries.
TRIED = 150

#: Flows are integers in scipy: the unit is this share of the sum of all throughputs.
UNIT = 2e-6

#: Share of the flow that a search must gain for any move: each costs a reload.
GAIN = 0.02

Ints = NDArray[np.int64]


def flows_searched(
    servers: Sequence[Resource], total_blocks: int, changed: bool, rng: np.random.Generator
) -> dict[str, range]:
    """The moves to a placement with a larger flow, searched after each arrival and departure; none if none pays."""
    if not changed or sum(server.room for server in servers) < total_blocks:
        return {}
    before = flow(servers, {server.server_id: server.span for server in servers}, total_blocks)
    spans, after = searched(servers, total_blocks, rng)
    return moves(servers, spans) if after > before * (1 + GAIN) else {}


def searched(
    servers: Sequence[Resource], total_blocks: int, rng: np.random.Generator, tried: int = TRIED
) -> tuple[dict[str, range], float]:
    """A placement with as large a flow as a local search finds, and its flow."""
    spans = {server.server_id: server.span for server in servers}
    best, covered = _worth(servers, spans, total_blocks)
    for _ in range(tried):
        server = servers[int(rng.integers(len(servers)))]
        others = [span for name, span in spans.items() if name != server.server_id]
        borders = [0, *(span.stop for span in others if span.stop < total_blocks)]
        start = borders[int(rng.integers(len(borders)))]
        stops = [span.start for span in others if start < span.start <= start + server.room]
        stop = min(total_blocks, start + server.room)
        if stops and rng.random() < 0.5:
            stop = stops[int(rng.integers(len(stops)))]
        window = range(start, stop)
        other = {**spans, server.server_id: window}
        found = _worth(servers, other, total_blocks)
        if found > (best, covered):
            spans, (best, covered) = other, found
    return spans, best


def _worth(servers: Sequence[Resource], spans: Mapping[str, range], total_blocks: int) -> tuple[float, int]:
    """The flow, and the number of blocks that are hosted, which guides the search while there is no flow."""
    blocks = {block for span in spans.values() for block in span}
    return (flow(servers, spans, total_blocks), total_blocks) if len(blocks) == total_blocks else (0.0, len(blocks))


def flow(servers: Sequence[Resource], spans: Mapping[str, range], total_blocks: int) -> float:
    """The largest flow of requests per second through the servers.

    >>> pair = [Resource("a", 2, 4.0, range(2)), Resource("b", 2, 2.0, range(1, 3))]
    >>> round(flow(pair, {"a": range(2), "b": range(1, 3)}, 3), 3)
    1.0
    """
    rates = np.array([server.over(spans[server.server_id]) for server in servers])
    starts = np.array([spans[server.server_id].start for server in servers])
    ends = np.array([spans[server.server_id].stop for server in servers])
    unit, count = rates.sum() * UNIT, len(servers)
    # Nodes: the source, an entry and an exit of each server, the sink. Edges within a server have its capacity.
    follows = np.argwhere((starts[None, :] <= ends[:, None]) & (ends[:, None] < ends[None, :]))
    first, last = np.flatnonzero(starts == 0), np.flatnonzero(ends == total_blocks)
    entry, leave, sink = 1 + np.arange(count), 1 + count + np.arange(count), 1 + 2 * count
    tails = np.concatenate((np.zeros(len(first), int), entry, leave[follows[:, 0]], leave[last]))
    heads = np.concatenate((entry[first], leave, entry[follows[:, 1]], np.full(len(last), sink)))
    most = np.concatenate((rates[first], rates, rates[follows[:, 0]], rates[last]))
    capacities = np.maximum(1, np.floor(most / unit)).astype(np.int32)
    graph = csr_array(coo_array((capacities, (tails, heads)), shape=(sink + 1, sink + 1)))
    return float(maximum_flow(graph, 0, sink).flow_value * unit)


def optimal(servers: Sequence[Resource], total_blocks: int, seconds: float) -> tuple[dict[str, range], bool] | None:
    """Helix' programme for windows as long as the rooms, and whether the answer is proven; None if none was found.

    Variables: the start of each window; the flow and whether it is possible on each edge (from the source, between two
    servers, to the sink). HiGHS solves it in up to `seconds` seconds.
    """
    count, scale = len(servers), sum(server.passes for server in servers) / total_blocks
    rooms = np.array([server.room for server in servers])
    rates = np.array([server.passes / server.room for server in servers]) / scale
    edges = [(-1, i) for i in range(count)]
    edges += [(i, j) for i in range(count) for j in range(count) if i != j]
    edges += [(i, count) for i in range(count)]
    size, flows, opens = count + 2 * len(edges), count, count + len(edges)
    rows: list[NDArray[np.float64]] = []
    limits: list[float] = []

    def at_most(limit: float, **parts: float) -> None:
        row = np.zeros(size)
        for key, value in parts.items():
            row[int(key[1:])] += value
        rows.append(row)
        limits.append(limit)

    for number, (i, j) in enumerate(edges):
        f, v = f"x{flows + number}", f"x{opens + number}"
        rate = float(min(rates[k] for k in (i, j) if 0 <= k < count))
        at_most(0.0, **{f: 1.0, v: -rate})
        if i < 0:  # The window starts at block 0.
            at_most(float(total_blocks), **{f"x{j}": 1.0, v: float(total_blocks)})
        elif j == count:  # The window ends at the last block.
            at_most(float(rooms[i]), **{f"x{i}": -1.0, v: float(total_blocks)})
        else:
            at_most(float(total_blocks + rooms[i]), **{f"x{j}": 1.0, f"x{i}": -1.0, v: float(total_blocks)})
            at_most(
                float(2 * total_blocks - 1 + rooms[j] - rooms[i]),
                **{f"x{i}": 1.0, f"x{j}": -1.0, v: float(2 * total_blocks)},
            )
    for server in range(count):
        inward = [number for number, (_, j) in enumerate(edges) if j == server]
        outward = [number for number, (i, _) in enumerate(edges) if i == server]
        at_most(float(rates[server]), **{f"x{flows + number}": 1.0 for number in inward})
        for sign in (1.0, -1.0):
            parts = {f"x{flows + number}": sign for number in inward}
            at_most(0.0, **{**parts, **{f"x{flows + number}": -sign for number in outward}})
    goal = np.zeros(size)
    goal[[flows + number for number, (i, _) in enumerate(edges) if i < 0]] = -1
    upper = np.concatenate((total_blocks - rooms, np.full(len(edges), np.inf), np.ones(len(edges))))
    solution = milp(
        goal,
        integrality=np.concatenate((np.ones(count), np.zeros(len(edges)), np.ones(len(edges)))),
        bounds=Bounds(np.zeros(size), upper),
        constraints=LinearConstraint(csr_array(np.array(rows)), ub=np.array(limits)),
        options={"time_limit": seconds},
    )
    if solution.x is None:
        return None
    starts: Ints = np.round(solution.x[:count]).astype(np.int64)
    spans = {one.server_id: range(int(s), int(s) + one.room) for one, s in zip(servers, starts, strict=True)}
    return spans, bool(solution.status == 0)
