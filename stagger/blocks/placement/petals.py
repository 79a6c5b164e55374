"""Which server hosts which transformer blocks: Petals' load balancing. Pure.

A model of `total_blocks` blocks is served by a swarm of servers, each hosting a contiguous span of blocks. A block is
as fast as its hosts together, and the swarm as fast as its slowest block. A server that joins takes the span that is
worst off (rule 1), and now and then asks whether the swarm gains enough when it moves (rule 2).

Source: Borzunov et al., "Distributed Inference and Fine-tuning of Large Language Models Over The Internet" (NeurIPS
2023, arXiv 2312.08361), appendix D; thresholds and guards as in the code of Petals 2.3 (2024). Written anew from the
rules; tests/kit/blocks_oracle.py holds them in plain words, and answers of the original are in tests/data.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from operator import attrgetter, sub
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Of throughputs, and of their ratios: differences below it are noise.
EPS = 1e-3

#: Move when the slowest block now is below this share of what it would be. The paper's p = 1 % corresponds to 0.99.
BALANCE_QUALITY = 0.75

#: Seconds between two checks of the balance, on average. The paper: 60.
MEAN_BALANCE_CHECK_PERIOD = 120.0

#: Seconds before a server chooses its blocks, on average.
MEAN_BLOCK_SELECTION_DELAY = 5.0

#: What is left of the network's throughput behind a relay.
RELAY_PENALTY = 0.2

#: Each move makes the sorted throughputs larger, so sweeps end; only rounding could make placements alternate for ever.
#: The most that was seen in 100,000 random swarms is 13.
SWEEPS_AT_MOST = 1000


class ServerState(enum.IntEnum):
    """How far a server is. Those that join count as hosts: they will be when the next one has loaded its blocks."""

    OFFLINE = 0
    JOINING = 1
    ONLINE = 2


@dataclass(frozen=True)
class Span:
    """The blocks from `start` until before `end` that a server hosts, each at `throughput` (requests per second)."""

    server_id: str
    start: int
    end: int
    throughput: float
    state: ServerState = ServerState.ONLINE

    @property
    def length(self) -> int:
        return self.end - self.start


class BlockRecord(NamedTuple):
    """What a server announced about one block; `start` and `end` are the whole span, where it is told."""

    block: int
    server_id: str
    state: ServerState
    throughput: float
    start: int | None = None
    end: int | None = None


def compute_spans(
    records: Iterable[BlockRecord], total_blocks: int, min_state: ServerState = ServerState.JOINING
) -> list[Span]:
    """The span of each server that has reached `min_state`, in order of server id.

    Of several records of one server those of its highest state count. The one of the lowest block tells the span, which
    reaches at least to the highest block that has a record.
    """
    spans = []
    for server_id, group in groupby(sorted(records, key=lambda record: record.server_id), lambda r: r.server_id):
        known = list(group)
        state = max(record.state for record in known)
        if state < min_state:
            continue
        told = sorted((record for record in known if record.state == state), key=lambda record: record.block)
        first, last = told[0], told[-1]
        start, end = first.block, first.block + 1
        if first.start is not None and first.end is not None:
            start, end = max(first.start, 0), min(first.end, total_blocks)
        if len(told) > 1:
            end = max(end, last.block + 1)
        spans.append(Span(server_id, start, end, first.throughput, state))
    return spans


def hosting(spans: Iterable[Span], total_blocks: int, min_state: ServerState = ServerState.JOINING) -> list[Span]:
    """The spans of servers that have reached `min_state`, in order of server id.

    Raises ValueError for one that is empty or beyond the model.
    """
    hosts = [span for span in spans if span.state >= min_state]
    hosts.sort(key=attrgetter("server_id"))
    for span in hosts:
        if not 0 <= span.start < span.end <= total_blocks:
            raise ValueError(
                f"server {span.server_id} hosts blocks {span.start} to {span.end} of a model of {total_blocks}"
            )
    return hosts


def position(local_id: str, hosts: Sequence[Span]) -> int:
    """Where a server is among the hosts. Raises LookupError when it is not, as when its announcement has expired."""
    for index, span in enumerate(hosts):
        if span.server_id == local_id:
            return index
    raise LookupError(f"server {local_id} is not among the {len(hosts)} that are joining or online: announce it again")


def compute_throughputs(spans: Iterable[Span], total_blocks: int) -> NDArray[np.float64]:
    """The throughput of each block: the sum over those of its hosts that are joining or online.

    Added in order of server id, so that all servers that see the same spans get the same bits.
    """
    return _sums(hosting(spans, total_blocks), total_blocks)


def _sums(hosts: Sequence[Span], total_blocks: int) -> NDArray[np.float64]:
    throughputs = np.zeros(total_blocks)
    for span in hosts:
        hosted = throughputs[span.start : span.end]
        hosted += span.throughput
    return throughputs


def choose_best_blocks(num_blocks: int, spans: Iterable[Span], total_blocks: int) -> range:
    """Rule 1: the blocks that a new server with room for `num_blocks` should host.

    Raises ValueError when `num_blocks` is less than 1 or more than the model has.
    """
    if not 1 <= num_blocks <= total_blocks:
        raise ValueError(f"a server hosts 1 to {total_blocks} of {total_blocks} blocks, not {num_blocks}")
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

    True when it would move, and, after all had followed until nobody gains by moving, the slowest block now has less
    than `balance_quality` of the throughput of the slowest then; always when `balance_quality` is above 1. False when a
    block would be left without a host. They move in random order, from `rng`. A server's own part is taken out a little
    larger than it is (EPS), so that nobody moves for what may be rounding. With `stop_early` the same answer is
    given as soon as it is known: no move makes the slowest block slower, and it never gets more than the mean block.

    Raises LookupError when the local server is not among the spans, as when its announcement has expired.
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
        return False  # the swarm is connected, and would not be without this server
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
    """The first block of the window that is worst off: whose sorted throughputs are lexicographically smallest.

    The lowest one, where several are. Equally long sorted lists compare as the counts of their values do, that of the
    smallest value first: as numbers with these counts as digits. As many as fit 63 bits leave few windows to compare.

    >>> best_start(np.array([5.0, 1.0, 3.0, 1.0, 2.0, 1.0]), 3)
    3
    """
    bits = length.bit_length()
    places = 63 // bits
    distinct = np.unique(throughputs)
    smallest = distinct[:places]
    worth = np.zeros(len(smallest) + 1, dtype=np.int64)
    worth[:-1] = 1 << bits * np.arange(places)[::-1][: len(smallest)]
    # May overflow, which the difference undoes: that of a window is below 2 ** 63.
    until = np.concatenate(([0], np.cumsum(worth[np.searchsorted(smallest, throughputs)])))
    worse = until[length:] - until[:-length]
    (candidates,) = np.nonzero(worse == worse.max())
    low, high = int(candidates[0]), int(candidates[-1])
    if len(distinct) <= places:
        return low
    values: list[float] = throughputs[low : high + length].tolist()
    return low + _best_exchanges(values[:-length], values[length:])


def _best_exchanges(left: list[float], right: list[float]) -> int:
    """How many exchanges of `left[i]` for `right[i]`, from i = 0 on, make a window worst off: the fewest that do.

    Moving a window by one block gives up its first block for the one behind it; what windows have in common does not
    matter. The most of the smallest values have those that got all of `right` and kept all of `left`, if there are any.
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
    """As `_best_exchanges`, whatever the values: by the counts of all, as digits (see `best_start`)."""
    bits = len(left).bit_length()
    worth = {value: 1 << bits * place for place, value in enumerate(sorted({*left, *right}, reverse=True))}
    gains = map(sub, map(worth.__getitem__, right), map(worth.__getitem__, left))
    worse = list(accumulate(gains, initial=0))
    return worse.index(max(worse))


def _balance(
    throughputs: list[float], hosts: Sequence[Span], starts: list[int], rng: np.random.Generator, enough: float
) -> None:
    """Move each server to its best window, in random order, until nobody moves, or the slowest block has `enough`.

    Changes `throughputs` and `starts`.
    """
    settled: set[tuple[int, int, float]] = set()  # what stays as long as nothing moves
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
    """The throughputs without those of a server at `start`, taken a little larger than they are."""
    end, part = start + host.length, host.throughput * (1 + EPS)
    return [*throughputs[:start], *[value - part for value in throughputs[start:end]], *throughputs[end:]]


def _move(throughputs: list[float], host: Span, old: int, new: int) -> None:
    """Take a server's throughput from its old window to the new one."""
    length, part = host.length, host.throughput
    throughputs[old : old + length] = [value - part for value in throughputs[old : old + length]]
    throughputs[new : new + length] = [value + part for value in throughputs[new : new + length]]


def balance_check_delay(rng: np.random.Generator, mean_s: float = MEAN_BALANCE_CHECK_PERIOD) -> float:
    """Seconds until the next check of the balance: U(0, 2 mean), so that servers do not check, and move, in step."""
    return float(rng.uniform(0, 2 * mean_s))


def block_selection_delay(rng: np.random.Generator, mean_s: float = MEAN_BLOCK_SELECTION_DELAY) -> float:
    """Seconds before choosing blocks: U(0, 2 mean), so that servers that start together see one another's choices."""
    return float(rng.uniform(0, 2 * mean_s))


def server_throughput(
    forward_rps: float,
    network_rps: float,
    num_blocks: int,
    *,
    behind_relay: bool = False,
    relay_penalty: float = RELAY_PENALTY,
) -> float:
    """Requests per second that a server of `num_blocks` serves, whichever of them a request asks for.

    `forward_rps` is what one block computes; a request asks for (num_blocks + 1) / 2 blocks on average, when each first
    block is as likely as any other. `network_rps` is what its network takes, of which a relay leaves `relay_penalty`.

    >>> server_throughput(forward_rps=1000, network_rps=300, num_blocks=9)
    200.0
    >>> server_throughput(forward_rps=1000, network_rps=300, num_blocks=9, behind_relay=True)
    60.0
    """
    return min(forward_rps / ((num_blocks + 1) / 2), network_rps * (relay_penalty if behind_relay else 1))
