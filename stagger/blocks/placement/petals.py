"""Petals' load balancing: which server hosts which transformer blocks. Pure.

A swarm of servers serves a model of `total_blocks` blocks; each server hosts a contiguous span. A block's throughput is
the sum over its hosts, and the swarm's throughput is that of its slowest block. A new server takes the window with the
lowest throughputs (rule 1), and checks from time to time whether the swarm gains enough if it moves (rule 2).

Source: Borzunov et al., "Distributed Inference and Fine-tuning of Large Language Models Over The Internet" (NeurIPS
2023, arXiv 2312.08361), appendix D; thresholds and guards as in the code of Petals 2.3 (2024). Reimplemented from the
rules; tests/kit/blocks_oracle.py is a plain reference, and tests/data holds results of the original.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import sub

import numpy as np
from numpy.typing import NDArray

from stagger.blocks.placement.spans import Span, hosting
from stagger.errors import counted

#: Smaller differences between throughputs, or between their ratios, are noise.
EPS = 1e-3

#: Move if the slowest block has less than this share of its possible throughput. The paper's p = 1 % means 0.99.
BALANCE_QUALITY = 0.75

#: Mean seconds between two checks of the balance. The paper: 60.
MEAN_BALANCE_CHECK_PERIOD = 120.0

#: Mean seconds before a new server chooses its blocks.
MEAN_BLOCK_SELECTION_DELAY = 5.0

#: Share of the network's throughput that is left behind a relay.
RELAY_PENALTY = 0.2

#: Most sweeps of `_balance`. Each move increases the sorted throughputs, so sweeps end; only rounding could make
#: placements alternate for ever. The largest number seen in 100,000 random swarms is 13.
SWEEPS_AT_MOST = 1000


def position(local_id: str, hosts: Sequence[Span]) -> int:
    """Index of a server in `hosts`. Raises LookupError when it is missing, e.g. because its announcement expired."""
    for index, span in enumerate(hosts):
        if span.server_id == local_id:
            return index
    raise LookupError(f"server {local_id} is not among the {len(hosts)} that are joining or online: announce it again")


def compute_throughputs(spans: Iterable[Span], total_blocks: int) -> NDArray[np.float64]:
    """Requests per second of each block, shape (total_blocks,): the sum over its hosts that are joining or online.

    The sum is in order of server id, so that all servers with the same view compute the same bits.
    """
    return _sums(hosting(spans, total_blocks), total_blocks)


def _sums(hosts: Sequence[Span], total_blocks: int) -> NDArray[np.float64]:
    throughputs = np.zeros(total_blocks)
    for span in hosts:
        hosted = throughputs[span.start : span.end]
        hosted += span.throughput
    return throughputs


def choose_best_blocks(num_blocks: int, spans: Iterable[Span], total_blocks: int) -> range:
    """Rule 1: the window of `num_blocks` blocks that a new server should host.

    Raises ValueError when `num_blocks` is less than 1 or more than `total_blocks`.
    """
    if not 1 <= num_blocks <= total_blocks:
        raise ValueError(f"a server hosts 1 to {total_blocks} of {counted(total_blocks, 'block')}, not {num_blocks}")
    start = best_start(compute_throughputs(spans, total_blocks), num_blocks)
    return range(start, start + num_blocks)


def should_choose_other_blocks(
    local_id: str,
    spans: Iterable[Span],
    total_blocks: int,
    balance_quality: float = BALANCE_QUALITY,
    *,
    rng: np.random.Generator,
    stop_early: bool = False,
) -> bool:
    """Rule 2: whether server `local_id` should give up its blocks and choose again.

    True if the server would move, and the slowest block now has less than the share `balance_quality` of the throughput
    that the slowest block would have after all servers had moved, in random order from `rng`, until none gains. Always
    True if `balance_quality` is above 1. False if a block would be left without a host.

    A server's own throughput is subtracted slightly enlarged (by EPS), so that rounding causes no move. `stop_early`
    stops once the answer is known: no move makes the slowest block slower, and it never exceeds the mean block.

    Raises LookupError when the local server is not among the spans, e.g. because its announcement expired.
    """
    if balance_quality > 1:
        return True
    hosts = hosting(spans, total_blocks)
    local = position(local_id, hosts)
    throughputs: list[float] = _sums(hosts, total_blocks).tolist()
    initial = min(throughputs)
    if stop_early and initial >= (balance_quality - EPS) * (sum(throughputs) / total_blocks) * (1 + EPS):
        return False
    span = hosts[local]
    without = _without(throughputs, span, span.start)
    if initial > EPS and min(without) <= 0:
        return False  # all blocks are served, and would not be without this server
    start = _best_exchanges(without[: -span.length], without[span.length :])
    if start == span.start:
        return False
    starts = [host.start for host in hosts]
    _move(throughputs, span, span.start, start)
    starts[local] = start
    enough = max(EPS, initial / (balance_quality - EPS)) * (1 + EPS) if stop_early else math.inf
    _balance(throughputs, hosts, starts, rng, enough)
    converged = min(throughputs)
    return converged >= EPS and initial / converged < balance_quality - EPS


def best_start(throughputs: NDArray[np.float64], length: int) -> int:
    """First block of the window with the lexicographically smallest sorted throughputs; the lowest of equal ones.

    Sorted lists of equal length compare like the counts of their values, the smallest value first: like numbers with
    these counts as digits. The digits that fit into 63 bits leave few windows to compare exactly.

    >>> best_start(np.array([5.0, 1.0, 3.0, 1.0, 2.0, 1.0]), 3)
    3
    """
    bits = length.bit_length()
    places = 63 // bits
    distinct = np.unique(throughputs)
    smallest = distinct[:places]
    worth = np.zeros(len(smallest) + 1, dtype=np.int64)
    worth[:-1] = 1 << bits * np.arange(places)[::-1][: len(smallest)]
    # The sums may overflow; their differences are right, since that of a window is below 2 ** 63.
    until = np.concatenate(([0], np.cumsum(worth[np.searchsorted(smallest, throughputs)])))
    worse = until[length:] - until[:-length]
    (candidates,) = np.nonzero(worse == worse.max())
    low, high = int(candidates[0]), int(candidates[-1])
    if len(distinct) <= places:
        return low
    values: list[float] = throughputs[low : high + length].tolist()
    return low + _best_exchanges(values[:-length], values[length:])


def _best_exchanges(left: list[float], right: list[float]) -> int:
    """Fewest exchanges of `left[i]` for `right[i]`, from i = 0 on, that give the window with the lowest throughputs.

    Moving a window by one block exchanges its first block for the block after its end; the blocks in between do not
    matter. Windows that have all smallest values of `right` and still all of `left`, if there are any, have the most.
    """
    done = 0
    while left:
        left_least, right_least = min(left), min(right)
        kept = left.index(left_least) if left_least <= right_least else len(left)
        got = len(right) - right[::-1].index(right_least) if right_least <= left_least else 0
        if got > kept:
            return done + _count_exchanges(left, right)
        done += got
        left, right = left[got:kept], right[got:kept]
    return done


def _count_exchanges(left: list[float], right: list[float]) -> int:
    """`_best_exchanges` for any values: compare the counts of all values, as digits (see `best_start`)."""
    bits = len(left).bit_length()
    worth = {value: 1 << bits * place for place, value in enumerate(sorted({*left, *right}, reverse=True))}
    gains = map(sub, map(worth.__getitem__, right), map(worth.__getitem__, left))
    worse = list(accumulate(gains, initial=0))
    return worse.index(max(worse))


def _balance(
    throughputs: list[float], hosts: Sequence[Span], starts: list[int], rng: np.random.Generator, enough: float
) -> None:
    """Move each server to its best window, in random order, until none moves or the slowest block exceeds `enough`.

    Changes `throughputs` and `starts`.
    """
    settled: set[tuple[int, int, float]] = set()  # spans that stay where they are until a server moves
    for _ in range(SWEEPS_AT_MOST):
        moved = False
        for index in rng.permutation(len(hosts)).tolist():
            host, start = hosts[index], starts[index]
            alike = (start, host.length, host.throughput)
            if alike in settled:
                continue
            without = _without(throughputs, host, start)
            best = _best_exchanges(without[: -host.length], without[host.length :])
            if best == start:
                settled.add(alike)
                continue
            _move(throughputs, host, start, best)
            starts[index] = best
            settled.clear()
            moved = True
            if min(throughputs) > enough:
                return
        if not moved:
            return


def _without(throughputs: list[float], host: Span, start: int) -> list[float]:
    """The throughputs minus that of a server at `start`, enlarged by EPS."""
    end, part = start + host.length, host.throughput * (1 + EPS)
    return [*throughputs[:start], *[value - part for value in throughputs[start:end]], *throughputs[end:]]


def _move(throughputs: list[float], host: Span, old: int, new: int) -> None:
    """Move a server's throughput from its old window to the new one, in place."""
    length, part = host.length, host.throughput
    throughputs[old : old + length] = [value - part for value in throughputs[old : old + length]]
    throughputs[new : new + length] = [value + part for value in throughputs[new : new + length]]


def balance_check_delay(rng: np.random.Generator, mean_s: float = MEAN_BALANCE_CHECK_PERIOD) -> float:
    """Seconds until the next check of the balance: U(0, 2 * `mean_s`), so that servers do not act in step."""
    return float(rng.uniform(0, 2 * mean_s))


def block_selection_delay(rng: np.random.Generator, mean_s: float = MEAN_BLOCK_SELECTION_DELAY) -> float:
    """Seconds before choosing blocks: U(0, 2 * `mean_s`), so that servers that start together see earlier choices."""
    return float(rng.uniform(0, 2 * mean_s))


def server_throughput(
    forward_rps: float,
    network_rps: float,
    num_blocks: int,
    *,
    behind_relay: bool = False,
    relay_penalty: float = RELAY_PENALTY,
) -> float:
    """Throughput of a server with `num_blocks` blocks, in requests per second.

    `forward_rps`: requests that one block computes; a request uses (num_blocks + 1) / 2 blocks on average, if all first
    blocks are equally likely. `network_rps`: requests that the network carries; a relay leaves the share
    `relay_penalty` of them.

    >>> server_throughput(forward_rps=1000, network_rps=300, num_blocks=9)
    200.0
    >>> server_throughput(forward_rps=1000, network_rps=300, num_blocks=9, behind_relay=True)
    60.0
    """
    return min(forward_rps / ((num_blocks + 1) / 2), network_rps * (relay_penalty if behind_relay else 1))
