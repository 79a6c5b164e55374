"""A plain implementation of the block placement rules; `stagger.blocks.placement` must match it to the bit.

Source: Borzunov et al. 2023 (arXiv 2312.08361), appendix D. Slow; benchmarks/blocks/placement.py also compares
with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from stagger.blocks.placement.spans import ServerState, Span

EPS = 1e-3


def that_count(spans: Iterable[Span]) -> list[Span]:
    return sorted((span for span in spans if span.state != ServerState.OFFLINE), key=lambda span: span.server_id)


def compute_throughputs(spans: Iterable[Span], total_blocks: int) -> NDArray[np.float64]:
    throughputs = np.zeros(total_blocks)
    for span in that_count(spans):
        throughputs[span.start : span.end] += span.throughput
    return throughputs


def best_start(throughputs: NDArray[np.float64], length: int) -> int:
    """The start of the window whose sorted throughputs are lexicographically smallest; of equal ones, the lowest."""
    starts = range(len(throughputs) - length + 1)
    return min((sorted(throughputs[start : start + length]), start) for start in starts)[1]


def choose_best_blocks(num_blocks: int, spans: Iterable[Span], total_blocks: int) -> range:
    start = best_start(compute_throughputs(spans, total_blocks), num_blocks)
    return range(start, start + num_blocks)


def should_choose_other_blocks(
    local_id: str,
    spans: Iterable[Span],
    total_blocks: int,
    balance_quality: float,
    rng: np.random.Generator,
    best_start: Callable[[NDArray[np.float64], int], int] = best_start,
) -> bool:
    if balance_quality > 1:
        return True
    hosts = that_count(spans)
    throughputs = compute_throughputs(hosts, total_blocks)
    initial = throughputs.min()
    starts = {span.server_id: span.start for span in hosts}

    def best_start_of(span: Span) -> int:
        start = starts[span.server_id]
        without = throughputs.copy()
        without[start : start + span.length] -= span.throughput * (1 + EPS)
        return best_start(without, span.length)

    def move(span: Span, new: int) -> None:
        old = starts[span.server_id]
        throughputs[old : old + span.length] -= span.throughput
        throughputs[new : new + span.length] += span.throughput
        starts[span.server_id] = new

    (local,) = [span for span in hosts if span.server_id == local_id]
    without = throughputs.copy()
    without[local.start : local.end] -= local.throughput * (1 + EPS)
    if initial > EPS and without.min() <= 0:
        return False
    if best_start_of(local) == local.start:
        return False
    move(local, best_start_of(local))

    moved = True
    while moved:
        moved = False
        for index in rng.permutation(len(hosts)):
            span = hosts[index]
            best = best_start_of(span)
            if best != starts[span.server_id]:
                move(span, best)
                moved = True

    new = throughputs.min()
    if new < initial or new < EPS:
        return False
    return bool(initial / new < balance_quality - EPS)
