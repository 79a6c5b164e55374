"""Who is there when: servers that join, leave, crash, or reach a time limit. Pure, and the same for all policies.

The kinds of servers and the times are plausible, not measured: about as GPUs differ, and as jobs of a cluster do.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

#: The share of the model's blocks that fits on a server, and its throughput: six kinds, equally likely. Of 80 blocks
#: these are 7 to 40. Each server is up to SPREAD faster or slower than its kind.
KINDS = ((0.09, 1.0), (0.12, 1.5), (0.16, 3.0), (0.25, 2.2), (0.33, 6.0), (0.5, 9.0))
SPREAD = 0.2

#: Seconds within which the first servers are there: an array's jobs begin as nodes become free.
FIRST_WITHIN_S = 300.0

#: `churn`: how long a server stays on average (exponential), and the share of those that go without a word.
MEAN_STAY_S, CRASHED = 3600.0, 0.3

#: `slurm`: the jobs' time limit, of which the first of each place has any part left; how long the next one of a place
#: waits on average; and the share of jobs that crash.
TIME_LIMIT_S, MEAN_QUEUED_S, CRASHED_JOBS = 3600.0, 120.0, 0.1

#: `wave`: when half of the servers crash at once.
WAVE_AT_S = 3600.0


@dataclass(frozen=True)
class Server:
    """A server with room for `length` blocks, there from `joins_s` until `leaves_s`."""

    server_id: str
    length: int
    throughput: float
    joins_s: float
    leaves_s: float = math.inf
    crashes: bool = False
    """Goes without a word: the others see it until its lease has run out."""


@dataclass(frozen=True)
class Stay:
    """From when until when somebody is there, and whether it ends with a crash."""

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
    "churn": Scenario("servers stay an hour on average, others come; three of ten crash", _churn),
    "wave": Scenario("half of all servers crash at once, after an hour", _wave),
    "slurm": Scenario("jobs of one hour, the next of each place two minutes later; one of ten crashes", _slurm),
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
