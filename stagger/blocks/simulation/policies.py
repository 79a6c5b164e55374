"""The balancing policies that the simulation compares. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from stagger.blocks.placement.joint_moves import plan_delay
from stagger.blocks.placement.petals import MEAN_BLOCK_SELECTION_DELAY, balance_check_delay
from stagger.blocks.placement.rules import Rule, full, own_gain, planner
from stagger.blocks.simulation.allocation import Allocate
from stagger.blocks.simulation.helix import flows_searched
from stagger.blocks.simulation.parallax import pipelines_balanced
from stagger.spec.block_settings import LEASE_S

#: Mean seconds between two checks of a server. In the paper, servers check every minute.
MEAN_CHECK_PERIOD_S = 60.0

#: Seconds until a crashed server is no longer listed: in Petals' command line, and by the registry's lease.
PETALS_LEASE_S, REGISTRY_LEASE_S = 240.0, LEASE_S


class Checks(Enum):
    """When servers check whether to move."""

    NEVER = "never"
    RANDOM = "each server at random, once a minute"
    FIXED = "each server a minute after its last check"
    IN_STEP = "all servers at once, every minute"
    LEADER = "one server for all, every minute"
    SHARED = "servers take turns at random, one of them every 30 s"


@dataclass(frozen=True)
class Conditions:
    """The conditions of a simulated swarm. Times in seconds."""

    visibility_s: float = 5.0
    """Delay until others see an announcement."""
    seconds_per_block: float = 3.0
    lease_s: float | None = None
    """Time until a crashed server is no longer listed; None for the default of each policy."""
    selection_delay_s: float = MEAN_BLOCK_SELECTION_DELAY
    """Mean delay before a new server chooses blocks, for policies without a lock."""


REALISTIC = Conditions()

#: Blocks load instantly, and every server knows everything.
IDEAL = Conditions(visibility_s=0, seconds_per_block=0, lease_s=0, selection_delay_s=0)


@dataclass(frozen=True)
class Policy:
    """How servers choose their blocks, and when and why they move."""

    name: str
    about: str
    rule: Rule | None = None
    checks: Checks = Checks.NEVER
    lock: bool = False
    """Reading, deciding and announcing are one step, so a decision sees all earlier decisions."""
    delta: bool = False
    """A server that moves loads only the blocks that it lacks, and continues to serve those that it keeps."""
    random_place: bool = False
    allocate: Allocate | None = None
    """A central scheduler that allocates all blocks, every 30 s, besides that new servers take the weakest blocks."""

    @property
    def lease_s(self) -> float:
        return REGISTRY_LEASE_S if self.lock else PETALS_LEASE_S


_RANDOM = Policy("none", "random blocks, no moves", random_place=True)
_NEW_ONLY = Policy("new only", "new servers take the blocks with the lowest throughput (rule 1), and stay")
_75 = replace(_NEW_ONLY, name="0.75", about="rules 1 and 2, as in Petals' code", rule=full(0.75), checks=Checks.RANDOM)
_99 = replace(_75, name="0.99", about="rules 1 and 2, with the paper's p = 1 %", rule=full(0.99))
_FIXED = replace(_99, name="0.99 fixed", about="0.99, each checks a minute after its last check", checks=Checks.FIXED)
_IN_STEP = replace(_99, name="0.99 in step", about="0.99, all servers check in the same second", checks=Checks.IN_STEP)
_LOCK = replace(_99, name="0.99 lock", about="0.99, each decision sees all earlier ones", lock=True)
_DELTA = replace(_LOCK, name="0.99 lock delta", about="0.99 lock, only missing blocks are loaded", delta=True)
_GUARD = replace(
    _DELTA, name="0.99 guard", about="0.99 lock delta, no move leaves a block unserved", rule=full(0.99, guard=True)
)
_OWN = replace(_DELTA, name="own gain", about="lock, delta; a server moves if its own move gains 5 %", rule=own_gain)
_LEADER = Policy("planner", "lock; one leader plans moves of several servers", planner, Checks.LEADER, lock=True)
_LEADER_DELTA = replace(_LEADER, name="planner delta", about="planner, only missing blocks are loaded", delta=True)
_EACH = replace(
    _LEADER_DELTA, name="planner each", about="planner delta, each plans at its checks", checks=Checks.RANDOM
)
_SHARED = replace(_EACH, name="recommended", about="planner delta, servers plan in turn", checks=Checks.SHARED)
_PARALLAX = Policy(
    "parallax",
    "Parallax' allocation: balanced pipelines, built anew when they fall out of balance; lock, delta",
    lock=True,
    delta=True,
    allocate=pipelines_balanced,
)
_HELIX = replace(
    _PARALLAX,
    name="helix",
    about="Helix' placement: a search for the largest flow after each arrival and departure; lock, delta",
    allocate=flows_searched,
)

#: All policies, by name. `planner each` and `helix` take minutes, so COMPARED, the default, omits them.
POLICIES = {
    policy.name: policy
    for policy in (
        *(_RANDOM, _NEW_ONLY, _75, _99, _FIXED, _IN_STEP, _LOCK, _DELTA, _GUARD),
        *(_OWN, _LEADER, _LEADER_DELTA, _EACH, _SHARED, _PARALLAX, _HELIX),
    )
}
COMPARED = tuple(name for name in POLICIES if name not in (_EACH.name, _HELIX.name))


def next_check(checks: Checks, now: float, servers: int, rng: np.random.Generator, *, first: bool) -> float:
    """Time of a server's next check, in seconds; infinite if it never checks. `servers`: number of servers it knows."""
    if checks is Checks.RANDOM:
        return now + balance_check_delay(rng, MEAN_CHECK_PERIOD_S)
    if checks is Checks.SHARED:
        return now + plan_delay(servers, rng)
    if checks is Checks.FIXED:
        return now + (float(rng.uniform(0, MEAN_CHECK_PERIOD_S)) if first else MEAN_CHECK_PERIOD_S)
    if checks is Checks.IN_STEP:
        return MEAN_CHECK_PERIOD_S * (math.floor(now / MEAN_CHECK_PERIOD_S) + 1)
    return math.inf
