"""Parallax' allocation of blocks, for comparison: balanced pipelines from a dynamic programme. Pure.

Source: Tong et al., "Parallax: Efficient LLM Inference Service over Decentralized Environment" (2025, arXiv
2509.26182), phase 1, written anew from its description: servers, the largest first, are divided into pipelines that
each hold the whole model; water-filling gives the blocks of a pipeline to its servers in proportion to their speed, as
far as their memory goes; a server that joins later takes the weakest blocks; everything is allocated anew when a block
has no server, or the blocks' loads differ too much.

Not in the description that we have, and decided here in its favour: the number of pipelines is the one whose slowest
block is fastest (the paper weighs latency too); the servers of a pipeline are ordered by what they host, so that they
load less; servers that no pipeline needs take the weakest blocks; VARIATION is the best of 0.1, 0.15, 0.25 and 0.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np

from stagger.blocks.placement.petals import best_start
from stagger.blocks.simulation.allocation import Resource, moves, throughputs

#: Allocate anew when the standard deviation of the blocks' throughputs exceeds this share of their mean.
VARIATION = 0.1

#: States that the dynamic programme keeps for each server: those that waste least room. For few servers it is exact.
KEPT = 24


def pipelines_balanced(
    servers: Sequence[Resource], total_blocks: int, changed: bool, rng: np.random.Generator
) -> dict[str, range]:
    """The moves of a new allocation; none while the present one is in balance, or while there is too little room."""
    now = throughputs(servers, {server.server_id: server.span for server in servers}, total_blocks)
    if sum(server.room for server in servers) < total_blocks:
        return {}
    if now.min() > 0 and now.std() <= VARIATION * now.mean():
        return {}
    best, slowest = {server.server_id: server.span for server in servers}, float(now.min())
    for spans in allocations(servers, total_blocks):
        found = float(throughputs(servers, spans, total_blocks).min())
        if found > slowest * (1 + 1e-9):
            best, slowest = spans, found
    return moves(servers, best)


def allocations(servers: Sequence[Resource], total_blocks: int) -> Iterator[dict[str, range]]:
    """An allocation for each possible number of pipelines."""
    ordered = sorted(servers, key=lambda server: (-server.room, -server.passes, server.server_id))
    rooms = tuple(server.room for server in ordered)
    for number in range(1, sum(rooms) // total_blocks + 1):
        groups = pipelines(rooms, number, total_blocks)
        if groups is None:
            return
        spans: dict[str, range] = {}
        for group in range(number):
            members = [server for server, of in zip(ordered, groups, strict=False) if of == group]
            spans |= filled(sorted(members, key=lambda one: (one.span.start, one.server_id)), total_blocks)
        yield with_others(ordered, spans, total_blocks)


@lru_cache(maxsize=4096)
def pipelines(rooms: tuple[int, ...], number: int, total_blocks: int) -> tuple[int, ...] | None:
    """The pipeline of each server, in the order of `rooms` (descending); the fewest that fill `number` pipelines.

    If any m servers fill them, the m largest do. A state is what each pipeline still lacks. None if none fill them.

    >>> pipelines((6, 5, 4, 3, 2), 2, 9), pipelines((6, 5), 2, 6)
    ((1, 0, 0, 1), None)
    """
    states: dict[tuple[int, ...], tuple[int, ...]] = {(total_blocks,) * number: ()}
    for room in rooms:
        found: dict[tuple[int, ...], tuple[int, ...]] = {}
        for lacking, groups in states.items():
            for group in {lack: place for place, lack in enumerate(lacking) if lack > 0}.values():
                after = (*lacking[:group], max(0, lacking[group] - room), *lacking[group + 1 :])
                found.setdefault(after, (*groups, group))
                if not any(after):
                    return found[after]
        alike = {tuple(sorted(lacking)): lacking for lacking in found}
        kept = sorted(alike.values(), key=lambda lacking: (sum(lacking), lacking))[:KEPT]
        states = {lacking: found[lacking] for lacking in kept}
    return None


def filled(members: Sequence[Resource], total_blocks: int) -> dict[str, range]:
    """Water-filling: blocks in proportion to the servers' speeds, up to the room of each, one server after another."""
    level = _level(members, total_blocks)
    shares = [min(float(one.room), level * one.passes) for one in members]
    counts = [int(share + 1e-9) for share in shares]
    for index in sorted(range(len(members)), key=lambda i: counts[i] - shares[i]):
        if sum(counts) < total_blocks and counts[index] < members[index].room:
            counts[index] += 1
    while sum(counts) < total_blocks:
        index = max(range(len(members)), key=lambda i: members[i].room - counts[i])
        counts[index] += 1
    spans, start = {}, 0
    for one, count in zip(members, counts, strict=True):
        if count:
            spans[one.server_id] = range(start, start + count)
        start += count
    return spans


def _level(members: Sequence[Resource], total_blocks: int) -> float:
    """Blocks for each unit of speed, so that all blocks are given."""
    left, speed = float(total_blocks), sum(one.passes for one in members)
    level = left / speed
    for one in sorted(members, key=lambda one: one.room / one.passes):
        level = left / speed
        if one.room >= level * one.passes:
            return level
        left -= one.room
        speed -= one.passes
        if speed <= 0:
            break
    return max(one.room / one.passes for one in members)


def with_others(servers: Sequence[Resource], spans: Mapping[str, range], total_blocks: int) -> dict[str, range]:
    """The spans, and those of the servers that no pipeline needs: each takes the weakest blocks, by rule 1."""
    found = dict(spans)
    for server in servers:
        if server.server_id not in found:
            start = best_start(throughputs(servers, found, total_blocks), server.room)
            found[server.server_id] = range(start, start + server.room)
    return found
