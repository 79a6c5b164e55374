"""Plan moves of several servers at once; any server can plan for all. Pure; scale-free.

A single move often gains nothing until other servers have moved too. The planner searches for moves that together raise
the slowest block's throughput, and returns them only if they regain what they cost while the moved servers load. It is
an iterated local search (Lourenço, Martin and Stützle 2003): each step makes the best single move, and kicks restart
the search. Placing undivided servers optimally is NP-hard.

Any server may plan at any time, if it sees all earlier decisions (under a lock, or by an atomic claim) and announces
the moves of all servers in the plan. Source: this project; docs/block-placement.md measures it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stagger.blocks.placement.own_gain import DIGITS, mean_throughput
from stagger.blocks.placement.spans import ServerState, Span, hosting

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

#: Mean seconds between two plans of a swarm. With 60 it reacts to losses late; with 15 it loads more and gains nothing.
MEAN_PLAN_PERIOD_S = 30.0

#: Seconds within which a plan must regain its costs while servers come and go (see `horizon`).
HORIZON_S = 300.0

#: Horizon of a swarm at rest, as a multiple of the time that it has been at rest.
CALM_COUNTS = 2.0

#: Share of the mean block's throughput by which a plan must raise the slowest block's.
PLAN_GAIN = 0.01

#: Price of loading, in seconds of the mean block's throughput: loading as many blocks as the model has must gain this
#: within the horizon. Load on storage and network, and the next loss of a server, cost more than throughput alone.
PRICE_S = 45.0

#: Share of the slowest block's throughput that every block keeps while the moved servers load.
KEPT_WHILE_LOADING = 0.5

#: Number of kicks, and of servers per kick: each restarts the search from the best plan with servers moved at random.
KICKS, KICKED = 2, 2

#: The steepness of the search's objective, the sum over blocks of exp(-STEEPNESS * throughput / mean throughput).
#: A block with 10 % less counts like twenty others, so the slowest block dominates, but the objective has no plateaus.
STEEPNESS = 30.0

#: Most steps of one descent, per server. Each lowers the objective, so descents end; only rounding could prolong them.
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
    """Server id -> window of each server that should move now; empty if no plan pays.

    `spans`: the blocks that joining and online servers host or are about to host. `online`: the blocks that each server
    serves now. Joining servers are not moved, since they would load twice. With `delta`, a moved server loads only the
    blocks that it lacks, and continues to serve those that it keeps.

    A plan must raise the slowest block's throughput by at least the share `min_gain` of the mean block's. Over
    `horizon_s` seconds (see `horizon`), it must gain more than is lost while the servers load, plus the price of
    loading. Every block that is served now stays served, with at least half of the slowest block's throughput now.
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
    """Seconds for which a gain counts, if the last arrival or departure of a server was `calm_s` seconds ago.

    The longer a swarm has been at rest, the longer it is likely to stay so, and small improvements pay.
    """
    return max(HORIZON_S, CALM_COUNTS * calm_s)


def plan_delay(servers: int, rng: np.random.Generator) -> float:
    """Seconds until a server's next plan: U(0, 2 * MEAN_PLAN_PERIOD_S * servers), so the swarm plans once per period.

    No leader is needed, and swarms of any size plan equally often.
    """
    return float(rng.uniform(0, 2 * MEAN_PLAN_PERIOD_S * max(1, servers)))


@dataclass(frozen=True)
class _Swarm:
    """The servers as arrays, one row each. Throughputs are relative to the mean block's."""

    starts: Ints
    lengths: Ints
    throughputs: Floats
    served: Bools
    """Servers x blocks: whether the server serves the block now."""
    movable: Bools
    delta: bool
    load: float
    """Time to load a block, as a share of the horizon."""
    price: float
    """Price of loading a block, as a mean throughput over the horizon."""

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
        """Throughput that each block keeps while servers load."""
        return KEPT_WHILE_LOADING * self.slowest_served if self.served.any(axis=0).all() else 0.0

    @cached_property
    def slowest_now(self) -> float:
        """The slowest block's throughput once all present loads have finished, if no server moves."""
        return float((self.throughputs @ self.hosted(self.starts)).min())

    @cached_property
    def slowest_served(self) -> float:
        return float((self.throughputs @ self.served).min())

    def hosted(self, starts: Ints) -> Bools:
        """Servers x blocks: whether the server would host the block."""
        blocks = np.arange(self.blocks)
        hosted: Bools = (blocks >= starts[:, None]) & (blocks < (starts + self.lengths)[:, None])
        return hosted

    def kept(self, starts: Ints, hosted: Bools) -> Bools:
        """Servers x blocks: whether the server serves the block while the moved servers load."""
        stays = (starts == self.starts)[:, None]
        kept: Bools = self.served & (stays | hosted) if self.delta else self.served & stays
        return kept

    def lacking(self, starts: Ints, hosted: Bools) -> Ints:
        """Number of blocks that each server has to load."""
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
        """Mean gain of one or many plans over the horizon, minus the throughput lost while servers load, and the price.

        `slowest`, `slowest_kept`: the slowest block's throughput after and during the loading. `most`: the most blocks
        that one server loads. `loaded`: the blocks that all servers load.
        """
        loading = self.load * most
        lost = (self.slowest_served - slowest_kept) * loading
        return np.asarray((slowest - self.slowest_now) * (1 - loading) - lost - self.price * loaded)

    def allowed(self, index: int, starts: Ints, hosted: Bools) -> Bools:
        """Starts: whether server `index` may start there, if the others are at `starts`."""
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
        """Servers x starts: the sum of the server's row over its window at this start; meaningless beyond the end."""
        until = np.zeros((len(values), self.blocks + 1))
        np.cumsum(values, axis=1, out=until[:, 1:])
        found: Floats = until[self._rows, self._ends] - until[:, :-1]
        return found

    @cached_property
    def fits(self) -> Bools:
        """Servers x starts: whether the server may move, and its window at this start ends within the model."""
        fits: Bools = np.arange(self.blocks) <= (self.blocks - self.lengths)[:, None]
        return fits & self.movable[:, None]

    @cached_property
    def _rows(self) -> Ints:
        return np.arange(len(self.starts))[:, None]

    @cached_property
    def _ends(self) -> Ints:
        """Servers x starts: the end of the server's window at this start."""
        ends: Ints = np.minimum(np.arange(self.blocks) + self.lengths[:, None], self.blocks)
        return ends


def _descended(swarm: _Swarm, starts: Ints) -> Ints:
    """Make the single move that lowers the objective most, until none lowers it."""
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
    """The allowed server and start with the lowest cost, if that is below 1; else None. Changes `costs`."""
    while True:
        index, start = divmod(int(costs.argmin()), swarm.blocks)
        if costs[index, start] >= 1:
            return None
        allowed = swarm.allowed(index, starts, hosted)
        if allowed[start]:
            return index, start
        costs[index, ~allowed] = 1.0


def _kicked(swarm: _Swarm, starts: Ints, rng: np.random.Generator) -> Ints:
    """Move KICKED random servers to random allowed starts."""
    starts = starts.copy()
    for index in rng.choice(np.flatnonzero(swarm.movable), KICKED).tolist():
        starts[index] = rng.choice(np.flatnonzero(swarm.allowed(index, starts, swarm.hosted(starts))))
    return starts


def _pruned(swarm: _Swarm, starts: Ints) -> tuple[Ints, float]:
    """Remove the moves that gain nothing from a plan; return the plan and its value.

    Reverts the move without which the plan has the highest value, until that would lower the value.
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
