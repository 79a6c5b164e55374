"""The servers of a simulation: when each joins, and leaves or crashes. Pure, and the same for all policies.

The kinds of servers and the times are plausible, not measured: they vary about as GPUs and cluster jobs do.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

#: Share of the model's blocks that fits on a server, and its throughput: six kinds, equally likely. Of 80 blocks, 7 to
#: 40 fit. Each server is faster or slower than its kind by up to the share SPREAD.
KINDS = ((0.09, 1.0), (0.12, 1.5), (0.16, 3.0), (0.25, 2.2), (0.33, 6.0), (0.5, 9.0))
SPREAD = 0.2

#: Seconds within which the first servers join: an array's jobs start as nodes become free.
FIRST_WITHIN_S = 300.0

#: `churn`: mean seconds that a server stays (exponential), and the share of servers that crash.
MEAN_STAY_S, CRASHED = 3600.0, 0.3

#: `slurm`: the jobs' time limit in seconds (the first job of each place has a random part of it left), the mean seconds
#: until the next job of a place starts, and the share of jobs that crash.
TIME_LIMIT_S, MEAN_QUEUED_S, CRASHED_JOBS = 3600.0, 120.0, 0.1

#: `wave`: seconds after which half of the servers crash at once.
WAVE_AT_S = 3600.0


@dataclass(frozen=True)
class Server:
    """A server with room for `length` blocks, present from `joins_s` to `leaves_s`, in seconds."""

    server_id: str
    length: int
    throughput: float
    joins_s: float
    leaves_s: float = math.inf
    crashes: bool = False
    """Whether it leaves without an announcement: others see it until its lease expires."""

    @property
    def passes(self) -> float:
        """Its budget: the block passes per second that it computes."""
        return self.throughput * self.length

    def over(self, span: range) -> float:
        """Requests per second of each block of a span, for requests that pass all of its blocks."""
        return self.throughput if len(span) == self.length else self.passes / len(span) if span else 0.0


@dataclass(frozen=True)
class Stay:
    """A server's presence, in seconds, and whether it ends in a crash."""

    joins_s: float
    leaves_s: float = math.inf
    crashes: bool = False


def _join(servers: int, end_s: float, draw: random.Random) -> Iterator[Stay]:
    for _ in range(servers):
        yield Stay(draw.uniform(0, end_s / 2))


def _churn(servers: int, end_s: float, draw: random.Random) -> Iterator[Stay]:
    joins = [draw.uniform(0, FIRST_WITHIN_S) for _ in range(servers)]
    now = 0.0
    while (now := now + draw.expovariate(servers / MEAN_STAY_S)) < end_s:
        joins.append(now)
    for join in joins:
        yield Stay(join, join + draw.expovariate(1 / MEAN_STAY_S), draw.random() < CRASHED)


def _wave(servers: int, end_s: float, draw: random.Random) -> Iterator[Stay]:
    for number in range(servers):
        yield Stay(draw.uniform(0, FIRST_WITHIN_S), WAVE_AT_S if number % 2 else math.inf, crashes=True)


def _slurm(servers: int, end_s: float, draw: random.Random) -> Iterator[Stay]:
    for _ in range(servers):
        begins, left = draw.uniform(0, FIRST_WITHIN_S), draw.uniform(0, TIME_LIMIT_S)
        while begins < end_s:
            crashes = draw.random() < CRASHED_JOBS
            ends = begins + (draw.uniform(0, left) if crashes else left)
            yield Stay(begins, ends, crashes)
            left = TIME_LIMIT_S
            begins = ends + draw.expovariate(1 / MEAN_QUEUED_S)


@dataclass(frozen=True)
class Scenario:
    about: str
    stays: Callable[[int, float, random.Random], Iterator[Stay]]


SCENARIOS = {
    "join": Scenario("servers join, one after another, and stay", _join),
    "churn": Scenario("servers stay an hour on average, and others replace them; three of ten crash", _churn),
    "wave": Scenario("half of all servers crash at once, after an hour", _wave),
    "slurm": Scenario("jobs of one hour, each replaced two minutes later on average; one of ten crashes", _slurm),
}


def trace(scenario: str, servers: int, hours: float, seed: int, total_blocks: int) -> list[Server]:
    """The servers of a scenario, about `servers` at a time, in the order in which they join."""
    draw = random.Random(f"{scenario} {servers} {hours} {seed} {total_blocks}")  # noqa: S311 (not for secrets)
    end_s = hours * 3600
    stays = sorted(
        (stay for stay in SCENARIOS[scenario].stays(servers, end_s, draw) if stay.joins_s < end_s),
        key=lambda stay: stay.joins_s,
    )
    found = []
    for number, stay in enumerate(stays):
        share, speed = draw.choice(KINDS)
        throughput = speed * draw.uniform(1 - SPREAD, 1 + SPREAD)
        length = max(1, int(share * total_blocks))
        found.append(Server(f"{number:04}", length, throughput, stay.joins_s, stay.leaves_s, stay.crashes))
    return found
