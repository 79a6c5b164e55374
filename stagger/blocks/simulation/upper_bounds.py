"""What no placement of the servers of a trace exceeds, from each arrival and departure on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from stagger.blocks.placement.bound import throughput_bound
from stagger.blocks.placement.spans import Span
from stagger.blocks.simulation.steps import Steps
from stagger.blocks.simulation.traces import Server


def bound_steps(trace: Sequence[Server], end_s: float, total_blocks: int) -> Steps:
    """The upper bound for any placement of the present servers, from each arrival and departure on."""
    known: dict[tuple[tuple[int, float], ...], float] = {}
    steps = []
    for time, there in presences(trace):
        if time >= end_s:
            break
        key = tuple(sorted((server.length, server.throughput) for server in there))
        if key not in known:
            spans = [Span(server.server_id, 0, server.length, server.throughput) for server in there]
            known[key] = throughput_bound(spans, total_blocks)
        steps.append((time, known[key]))
    return steps


def room_steps(trace: Sequence[Server], total_blocks: int) -> Steps:
    """Whether the present servers have room for all blocks, as 1 or 0."""
    return [(time, float(sum(server.length for server in there) >= total_blocks)) for time, there in presences(trace)]


def passes_steps(trace: Sequence[Server], total_blocks: int) -> Steps:
    """The budgets of the present servers for each block: no placement has a larger routing capacity."""
    room = dict(room_steps(trace, total_blocks))
    return [
        (time, room[time] * sum(server.passes for server in there) / total_blocks) for time, there in presences(trace)
    ]


def presences(trace: Sequence[Server]) -> Iterator[tuple[float, list[Server]]]:
    """The present servers, from each arrival and departure on."""
    for time in sorted({time for server in trace for time in (server.joins_s, server.leaves_s)} - {math.inf}):
        yield time, [server for server in trace if server.joins_s <= time < server.leaves_s]
