"""An upper bound for all placements, and the capacity of one: two linear programmes, solved by HiGHS (scipy)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

from stagger.blocks.placement.spans import ServerState, Span, hosting
from stagger.errors import counted

Source = TypeVar("Source", bound=Hashable)


def throughput_bound(spans: Iterable[Span], total_blocks: int) -> float:
    """Upper bound of the slowest block's throughput for any placement of these servers, wherever their spans are now.

    The bound lets a server be divided among several windows of its length. The best placement of undivided servers,
    which is NP-hard to find, cannot exceed it. Joining servers count, as in `compute_throughputs`.

    >>> throughput_bound([Span("a", 0, 2, 1.0), Span("b", 0, 2, 2.0)], total_blocks=3)
    1.5
    """
    throughputs: dict[int, float] = defaultdict(float)  # Servers of equal length count as one.
    for span in hosting(spans, total_blocks):
        throughputs[span.length] += span.throughput
    windows = [
        (length, range(start, start + length)) for length in throughputs for start in range(total_blocks - length + 1)
    ]
    return _slowest_at_best(throughputs, windows, total_blocks)


def routing_capacity(spans: Iterable[Span], total_blocks: int) -> float:
    """Requests per second that a placement carries with the best routing, if each request passes all blocks.

    Here `throughput` is the number of block passes per second that a server computes, shared by its blocks (a
    transportation problem). Only ONLINE servers carry requests.

    >>> routing_capacity([Span("a", 0, 2, 3.0), Span("b", 1, 2, 1.0)], total_blocks=2)
    2.0
    """
    passes: dict[tuple[int, int], float] = defaultdict(float)  # Servers with the same span count as one.
    for span in hosting(spans, total_blocks, ServerState.ONLINE):
        passes[span.start, span.end] += span.throughput
    shares = [(span, range(block, block + 1)) for span in passes for block in range(*span)]
    return _slowest_at_best(passes, shares, total_blocks)


def _slowest_at_best(
    supplies: Mapping[Source, float], uses: Sequence[tuple[Source, range]], total_blocks: int
) -> float:
    """The slowest block's throughput if each supply is divided optimally among its uses, each for a range of blocks.

    Variables: the amount for each use, and last the slowest block's throughput, which is maximized.
    """
    scale = sum(supplies.values()) / total_blocks  # The solver's tolerances are absolute.
    if not scale:
        return 0.0
    rows = [block for _, blocks in uses for block in blocks]
    columns = [column for column, (_, blocks) in enumerate(uses) for _ in blocks]
    served = [-1.0] * len(rows)
    rows += range(total_blocks)
    columns += [len(uses)] * total_blocks
    served += [1.0] * total_blocks
    number = {source: total_blocks + index for index, source in enumerate(supplies)}
    rows += [number[source] for source, _ in uses]
    columns += range(len(uses))
    served += [1.0] * len(uses)
    limits = np.array([0.0] * total_blocks + [supply / scale for supply in supplies.values()])
    shape = total_blocks + len(supplies), len(uses) + 1
    matrix = coo_array((served, (rows, columns)), shape=shape).tocsr()
    slowest = np.zeros(len(uses) + 1)
    slowest[-1] = -1
    solution = linprog(slowest, A_ub=matrix, b_ub=limits, method="highs")
    if not solution.success:
        raise RuntimeError(
            f"HiGHS did not solve {counted(shape[0], 'row')} of {counted(shape[1], 'variable')}: {solution.message}"
        )
    return max(0.0, float(-solution.fun * scale))
