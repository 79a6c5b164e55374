"""When a server should move for its own move's sake, and when it must not move at all. Pure; scale-free.

Petals' rule 2 (petals.py) asks what the swarm would gain if all servers moved, and counts blocks that
are still being loaded as served. So a server may pay for a gain that others have to bring about, and may leave a block
that nobody else serves yet. The two answers here are about what this server does, and what is served now.

Source: this project's own, from simulating rule 2 with announcements that are seen late, and blocks that take seconds
to load (docs/block-placement.md). Throughputs count relative to the swarm's, so their unit changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stagger.blocks.placement.petals import ServerState, Span, best_start, compute_throughputs, hosting, position

#: By how much a server's own move must raise the throughput of the slowest block. Each move costs a reload.
MIN_GAIN = 0.05

#: Digits of a relative throughput that count: sums that are equal but for rounding are equal.
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
    """The blocks that server `local_id` should move to, or None where it should stay.

    `spans` are the blocks that servers host or are about to, joining or online; `online` those that each serves now,
    none for a server that is missing there. It moves when its move alone raises the throughput of the slowest block by
    the share `min_gain`, and no block is left that nobody else serves. With `delta` it goes on serving those blocks
    that it keeps; without, it serves none until all are loaded.

    Raises LookupError when the server is not among the spans, as when its announcement has expired.

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
    """Whether a block that a server serves now, and would not keep, is served by nobody else.

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
    """That of a block on average: what the slowest has at the very best. Relative to it, no unit matters.

    >>> mean_throughput([Span("a", 0, 4, 30.0), Span("b", 0, 1, 40.0)], total_blocks=4)
    40.0
    """
    return sum(span.throughput * span.length for span in hosts) / total_blocks


def _with(throughputs: NDArray[np.float64], blocks: range, throughput: float) -> float:
    """The slowest block's throughput, with one more server on some blocks."""
    added = throughputs.copy()
    added[blocks.start : blocks.stop] += throughput
    return float(added.min())
