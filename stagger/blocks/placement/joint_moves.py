"""Moves of several servers at once, planned by any one of them. Pure; scale-free.

A server alone often gains nothing: two others would have to move first. This plan looks for moves that raise the
throughput of the slowest block together, and counts what they cost while the moved servers load: it returns them only
if that is regained. It is a local search with kicks (iterated local search: Lourenço, Martin and Stützle 2003), whose
steps move one server to one start, the best of all. Placing undivided servers best is NP-hard.

Any server may plan whenever it likes, if it sees all earlier decisions (under a lock, or an atomic claim) and announces
the moves for all servers named. Source: this project's own; docs/block-placement.md measures it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stagger.blocks.placement.own_gain import DIGITS, mean_throughput
from stagger.blocks.placement.petals import ServerState, Span, hosting

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

#: Seconds between two plans of a swarm, on average: with 60 it answers losses late, with 15 it loads more for no more.
MEAN_PLAN_PERIOD_S = 30.0

#: Seconds within which a plan must have regained what it cost, when servers come and go (see `horizon`).
HORIZON_S = 300.0

#: For how long a gain counts in a swarm at rest, as a multiple of how long it has been at rest.
CALM_COUNTS = 2.0

#: By what share of the mean block's throughput a plan must raise the slowest block's.
PLAN_GAIN = 0.01

#: What loading as many blocks as the model has must gain within the horizon: so many seconds of the mean block's
#: throughput. Storage, networks and the next loss of a server make moves dearer than the throughput they cost.
PRICE_S = 45.0

#: Of the slowest block's throughput, what every block keeps while the moved servers load.
KEPT_WHILE_LOADING = 0.5

#: Kicks: how often the search starts again from the best plan with a few servers moved at random, and how many.
KICKS, KICKED = 2, 2

#: The steepness of the search's objective, the sum over blocks of exp(-STEEPNESS * throughput / mean throughput).
#: A block with 10 % less counts as much as twenty others: almost the slowest block alone, but with slopes everywhere.
STEEPNESS = 30.0

#: Steps of one descent at most, per server. Each lowers the objective, so descents end; only rounding could go on.
STEPS_PER_SERVER = 4


def planned_moves(
    spans: Sequence[Span],
    online: Sequence[Span],
    total_blocks: int,
    *,
    seconds_per_block: float,
    horizon_s: float = HORIZON_S,
    rng: np.random.Generator,
    delta: bool = True,
    min_gain: float = PLAN_GAIN,
    price_s: float = PRICE_S,
    kicks: int = KICKS,
) -> dict[str, range]:
    """The servers that should move now, and the blocks of each; none when it does not pay.

    `spans` are the blocks that servers host or are about to, joining or online; `online` those that each serves now.
    Servers that are joining stay where they are: their moves would be paid twice. With `delta` a moved server loads
    only the blocks that it lacks, and serves those that it keeps meanwhile.

    The moves raise the slowest block's throughput, over `horizon_s` seconds (see `horizon`), by more than is lost while
    they load and the price of what they load, and by `min_gain` of the mean block's. No block that is served now is
    left without a server that serves it, nor with less than half of what the slowest block has now.
    """
    hosts = hosting(spans, total_blocks)
    load, price = seconds_per_block / horizon_s, price_s / horizon_s / total_blocks
    swarm = _Swarm.of(hosts, online, total_blocks, delta=delta, load=load, price=price)
    if not swarm.movable.any() or swarm.slowest_now > 1 - min_gain:
        return {}
    best, value = _pruned(swarm, _descended(swarm, swarm.starts))
    for _ in range(kicks):
        found, worth = _pruned(swarm, _descended(swarm, _kicked(swarm, best, rng)))
        if worth > value + 10**-DIGITS:
            best, value = found, worth
    gain = float((swarm.throughputs @ swarm.hosted(best)).min()) - swarm.slowest_now
    if value <= 0 or gain < min_gain:
        return {}
    moved = np.flatnonzero(best != swarm.starts)
    return {hosts[index].server_id: range(best[index], best[index] + hosts[index].length) for index in moved.tolist()}


def horizon(calm_s: float) -> float:
    """For how many seconds a gain counts, when it is so long ago that a server came or went.

    The longer all has stayed as it is, the longer it will: a swarm at rest has time for small improvements.
    """
    return max(HORIZON_S, CALM_COUNTS * calm_s)


def plan_delay(servers: int, rng: np.random.Generator) -> float:
    """Seconds until a server of so many plans next: U(0, 2 mean), so that together they plan once a period.

    So nobody has to lead, and a swarm of any size looks for moves equally often.
    """
    return float(rng.uniform(0, 2 * MEAN_PLAN_PERIOD_S * max(1, servers)))


@dataclass(frozen=True)
class _Swarm:
    """The servers as arrays, one row each; throughputs relative to the mean block's."""

    starts: Ints
    lengths: Ints
    throughputs: Floats
    served: Bools
    """Servers x blocks: what each serves now."""
    movable: Bools
    delta: bool
    load: float
    """How long a block loads, as a share of the horizon."""
    price: float
    """What a loaded block must gain, as a mean over the horizon."""

    @classmethod
    def of(
        cls, hosts: Sequence[Span], online: Sequence[Span], total_blocks: int, *, delta: bool, load: float, price: float
    ) -> _Swarm:
        mean = mean_throughput(hosts, total_blocks) or 1.0
        row = {span.server_id: index for index, span in enumerate(hosts)}
        served = np.zeros((len(hosts), total_blocks), dtype=np.bool_)
        for span in hosting(online, total_blocks, ServerState.ONLINE):
            if span.server_id in row:
                served[row[span.server_id], span.start : span.end] = True
        return cls(
            starts=np.array([span.start for span in hosts], dtype=np.int64),
            lengths=np.array([span.length for span in hosts], dtype=np.int64),
            throughputs=np.array([span.throughput / mean for span in hosts], dtype=np.float64),
            served=served,
            movable=np.array([span.state == ServerState.ONLINE for span in hosts], dtype=np.bool_),
            delta=delta,
            load=load,
            price=price,
        )

    @property
    def blocks(self) -> int:
        return int(self.served.shape[1])

    @cached_property
    def floor(self) -> float:
        """What each block keeps while servers load."""
        return KEPT_WHILE_LOADING * self.slowest_served if self.served.any(axis=0).all() else 0.0

    @cached_property
    def slowest_now(self) -> float:
        """The slowest block's throughput when all that is being loaded is there, and nobody moves."""
        return float((self.throughputs @ self.hosted(self.starts)).min())

    @cached_property
    def slowest_served(self) -> float:
        return float((self.throughputs @ self.served).min())

    def hosted(self, starts: Ints) -> Bools:
        """Servers x blocks: what each would host."""
        blocks = np.arange(self.blocks)
        hosted: Bools = (blocks >= starts[:, None]) & (blocks < (starts + self.lengths)[:, None])
        return hosted

    def kept(self, starts: Ints, hosted: Bools) -> Bools:
        """Servers x blocks: what each serves while those that moved load."""
        stays = (starts == self.starts)[:, None]
        kept: Bools = self.served & (stays | hosted) if self.delta else self.served & stays
        return kept

    def lacking(self, starts: Ints, hosted: Bools) -> Ints:
        """How many blocks each server has to load."""
        lacking: Ints = (hosted & ~self.served if self.delta else hosted).sum(axis=1)
        lacking[starts == self.starts] = 0
        return lacking

    def value(
        self,
        slowest: Floats | np.float64,
        slowest_kept: Floats | np.float64,
        most: Ints | np.integer,
        loaded: Ints | np.integer,
    ) -> Floats:
        """What plans gain, as a mean over the horizon, less what is lost while their servers load, and their price.

        Given the slowest block's throughput after and during each, the most blocks that a server loads, and the sum; of
        a single plan or of many.
        """
        loading = self.load * most
        lost = (self.slowest_served - slowest_kept) * loading
        return np.asarray((slowest - self.slowest_now) * (1 - loading) - lost - self.price * loaded)

    def allowed(self, index: int, starts: Ints, hosted: Bools) -> Bools:
        """Where a server may start, when the others are as `starts` says."""
        kept = self.kept(starts, hosted)
        throughput, mine = self.throughputs[index], kept[index]
        hosts, throughputs = kept.sum(axis=0) - mine, self.throughputs @ kept - throughput * mine
        needed = self.served[index] & ((hosts == 0) | (throughputs < self.floor - 10**-DIGITS))
        missing: int | Ints = int(needed.sum())
        if self.delta and missing:
            until = np.concatenate(([0], np.cumsum(needed)))
            missing -= until[self._ends[index]] - until[:-1]
        found: Bools = self.fits[index] & (missing == 0)
        found[self.starts[index]] = self.movable[index]
        return found

    def windows(self, values: Floats) -> Floats:
        """Servers x starts: the sum of a server's row over its blocks, if it started there; nonsense beyond the end."""
        until = np.zeros((len(values), self.blocks + 1))
        np.cumsum(values, axis=1, out=until[:, 1:])
        found: Floats = until[self._rows, self._ends] - until[:, :-1]
        return found

    @cached_property
    def fits(self) -> Bools:
        """Servers x starts: whether a server that may move has room behind the start."""
        fits: Bools = np.arange(self.blocks) <= (self.blocks - self.lengths)[:, None]
        return fits & self.movable[:, None]

    @cached_property
    def _rows(self) -> Ints:
        return np.arange(len(self.starts))[:, None]

    @cached_property
    def _ends(self) -> Ints:
        """Servers x starts: where each would end."""
        ends: Ints = np.minimum(np.arange(self.blocks) + self.lengths[:, None], self.blocks)
        return ends


def _descended(swarm: _Swarm, starts: Ints) -> Ints:
    """Move the one server whose move lowers the objective most, until none does."""
    starts = starts.copy()
    falls = -np.expm1(-STEEPNESS * swarm.throughputs)[:, None]
    for _ in range(STEPS_PER_SERVER * len(starts)):
        hosted = swarm.hosted(starts)
        throughputs = swarm.throughputs @ hosted
        without = np.exp(-STEEPNESS * np.maximum(throughputs - swarm.throughputs[:, None] * hosted, 0.0))
        costs = without.sum(axis=1)[:, None] - falls * swarm.windows(without)
        costs /= np.exp(-STEEPNESS * throughputs).sum()
        best = _best_step(swarm, starts, hosted, np.where(swarm.fits, np.round(costs, DIGITS), 1.0))
        if best is None:
            break
        starts[best[0]] = best[1]
    return starts


def _best_step(swarm: _Swarm, starts: Ints, hosted: Bools, costs: Floats) -> tuple[int, int] | None:
    """The server and the start that cost least, of those that are allowed and cost less than 1. Changes `costs`."""
    while True:
        index, start = divmod(int(costs.argmin()), swarm.blocks)
        if costs[index, start] >= 1:
            return None
        allowed = swarm.allowed(index, starts, hosted)
        if allowed[start]:
            return index, start
        costs[index, ~allowed] = 1.0


def _kicked(swarm: _Swarm, starts: Ints, rng: np.random.Generator) -> Ints:
    """A few servers moved at random, wherever they may go."""
    starts = starts.copy()
    for index in rng.choice(np.flatnonzero(swarm.movable), KICKED).tolist():
        starts[index] = rng.choice(np.flatnonzero(swarm.allowed(index, starts, swarm.hosted(starts))))
    return starts


def _pruned(swarm: _Swarm, starts: Ints) -> tuple[Ints, float]:
    """A plan without the moves that gain nothing, and its value.

    Takes back the move without which the plan is worth most, as long as it is worth no less.
    """
    starts = starts.copy()
    before = swarm.hosted(swarm.starts)
    while True:
        hosted = swarm.hosted(starts)
        kept, lacking = swarm.kept(starts, hosted), swarm.lacking(starts, hosted)
        after, during = swarm.throughputs @ hosted, swarm.throughputs @ kept
        value = float(swarm.value(after.min(), during.min(), lacking.max(initial=0), lacking.sum()))
        moved = np.flatnonzero(starts != swarm.starts)
        if not moved.size:
            return starts, value
        part = swarm.throughputs[moved, None]
        back = after + part * (before[moved].astype(np.float64) - hosted[moved])
        back_kept = during + part * (swarm.served[moved] & ~kept[moved])
        most = np.where(np.eye(len(starts), dtype=np.bool_)[moved], 0, lacking).max(axis=1)
        loaded = lacking.sum() - lacking[moved]
        values = np.round(swarm.value(back.min(axis=1), back_kept.min(axis=1), most, loaded), DIGITS)
        best = int(values.argmax())
        if values[best] < round(value, DIGITS):
            return starts, value
        starts[moved[best]] = swarm.starts[moved[best]]
