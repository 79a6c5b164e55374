"""When one server's move pays by itself, and when moving would leave a block unserved. Pure; scale-free.

Petals' rule 2 (petals.py) considers the gain if all servers moved, and counts blocks that are still loading as served.
A server may therefore pay for a gain that depends on others, and may give up a block that no other server serves yet.
The functions here consider only this server's move, and the blocks served now.

Source: this project, from simulating rule 2 with late announcements and blocks that take seconds to load
(docs/block-placement.md). Throughputs are relative to the swarm's, so their unit does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stagger.blocks.placement.petals import best_start, compute_throughputs, position
from stagger.blocks.placement.spans import ServerState, Span, hosting

#: Share by which a server's own move must raise the slowest block's throughput: each move costs a reload.
MIN_GAIN = 0.05

#: Decimals to which relative throughputs are rounded, so that sums that differ only by rounding are equal.
DIGITS = 9


def own_move(
    local_id: str,
    spans: Sequence[Span],
    online: Sequence[Span],
    total_blocks: int,
    *,
    min_gain: float = MIN_GAIN,
    delta: bool = True,
) -> range | None:
    """The window that server `local_id` should move to, or None if it should stay.

    `spans`: the blocks that joining and online servers host or are about to host. `online`: the blocks that each server
    serves now; a server that is missing there serves none.

    The server moves if its move alone raises the slowest block's throughput by the share `min_gain`, and it gives up no
    block that no other server serves. With `delta` it continues to serve the blocks that it keeps; without, it serves
    none until all are loaded.

    Raises LookupError when the server is not among the spans, e.g. because its announcement expired.

    >>> crowd = [Span("a", 0, 2, 1.0), Span("b", 0, 2, 1.0), Span("c", 2, 4, 0.1)]
    >>> own_move("a", crowd, crowd, total_blocks=4), own_move("c", crowd, crowd, total_blocks=4)
    (range(2, 4), None)
    """
    hosts = hosting(spans, total_blocks)
    index = position(local_id, hosts)
    local, others = hosts[index], hosts[:index] + hosts[index + 1 :]
    mean = mean_throughput(hosts, total_blocks)
    if not mean:
        return None
    without = np.round(compute_throughputs(others, total_blocks) / mean, DIGITS)
    start = best_start(without, local.length)
    window = range(start, start + local.length)
    now, then = (_with(without, blocks, local.throughput / mean) for blocks in (range(local.start, local.end), window))
    if start == local.start or then <= 0 or then < now * (1 + min_gain) - 10**-DIGITS:
        return None
    served = next((span for span in online if span.server_id == local_id), None)
    if served and uncovered_by(served, window if delta else range(0), online, total_blocks):
        return None
    return window


def uncovered_by(served: Span, kept: range, online: Sequence[Span], total_blocks: int) -> bool:
    """Whether a block that a server serves now, but would not keep, is served by no other server.

    >>> online = [Span("a", 0, 3, 1.0), Span("b", 2, 4, 1.0)]
    >>> uncovered_by(online[0], range(1, 4), online, 4), uncovered_by(online[0], range(0, 2), online, 4)
    (True, False)
    """
    others = [span for span in online if span.server_id != served.server_id]
    hosts = np.zeros(total_blocks, dtype=np.int64)
    for span in hosting(others, total_blocks, ServerState.ONLINE):
        hosts[span.start : span.end] += 1
    return any(not hosts[block] for block in range(served.start, served.end) if block not in kept)


def mean_throughput(hosts: Sequence[Span], total_blocks: int) -> float:
    """Mean throughput of a block, which the slowest block cannot exceed: the unit of relative throughputs.

    >>> mean_throughput([Span("a", 0, 4, 30.0), Span("b", 0, 1, 40.0)], total_blocks=4)
    40.0
    """
    return sum(span.throughput * span.length for span in hosts) / total_blocks


def _with(throughputs: NDArray[np.float64], blocks: range, throughput: float) -> float:
    """The slowest block's throughput with one more server on `blocks`."""
    added = throughputs.copy()
    added[blocks.start : blocks.stop] += throughput
    return float(added.min())
