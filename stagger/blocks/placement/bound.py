"""What no placement can beat, and what a placement can carry: two linear programmes, solved by HiGHS (scipy)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

from stagger.blocks.placement.petals import ServerState, Span, hosting

Source = TypeVar("Source", bound=Hashable)


def throughput_bound(spans: Iterable[Span], total_blocks: int) -> float:
    """The throughput of the slowest block that no placement of these servers exceeds, wherever their spans are now.

    A server may be divided among several spans of its length. The best placement of undivided servers, which is NP-hard
    to find, reaches at most this. Servers that are joining count, as in `compute_throughputs`.

    >>> throughput_bound([Span("a", 0, 2, 1.0), Span("b", 0, 2, 2.0)], total_blocks=3)
    1.5
    """
    throughputs: dict[int, float] = defaultdict(float)  # Servers of one length are as good as one.
    for span in hosting(spans, total_blocks):
        throughputs[span.length] += span.throughput
    windows = [
        (length, range(start, start + length)) for length in throughputs for start in range(total_blocks - length + 1)
    ]
    return _slowest_at_best(throughputs, windows, total_blocks)


def routing_capacity(spans: Iterable[Span], total_blocks: int) -> float:
    """The requests per second that a placement carries with the best routing, each request passing all blocks.

    Here `throughput` is what a server computes: passes of a block per second, which its blocks share (a transportation
    problem). Only servers that are online carry requests.

    >>> routing_capacity([Span("a", 0, 2, 3.0), Span("b", 1, 2, 1.0)], total_blocks=2)
    2.0
    """
    passes: dict[tuple[int, int], float] = defaultdict(float)  # Servers of one span are as good as one.
    for span in hosting(spans, total_blocks, ServerState.ONLINE):
        passes[span.start, span.end] += span.throughput
    shares = [(span, range(block, block + 1)) for span in passes for block in range(*span)]
    return _slowest_at_best(passes, shares, total_blocks)


def _slowest_at_best(
    supplies: Mapping[Source, float], uses: Sequence[tuple[Source, range]], total_blocks: int
) -> float:
    """What the slowest block gets when each supply is divided best among its uses, each of which serves some blocks.

    Variables: how much goes to each use, and last the throughput of the slowest block, which is as large as can be.
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
        raise RuntimeError(f"HiGHS did not solve {shape[0]} rows of {shape[1]} variables: {solution.message}")
    return max(0.0, float(-solution.fun * scale))
