"""What servers may do to balance their blocks: the policies that are compared. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from stagger.blocks.placement.joint_moves import plan_delay
from stagger.blocks.placement.petals import MEAN_BLOCK_SELECTION_DELAY, balance_check_delay
from stagger.blocks.placement.rules import Rule, full, own_gain, planner
from stagger.spec.block_settings import LEASE_S

#: Seconds between two checks of a server, on average. The paper's servers check every minute.
MEAN_CHECK_PERIOD_S = 60.0

#: Seconds until a crashed server is no longer listed: of Petals' command line, and of leases that a registry keeps.
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
    """What a swarm meets. Times in seconds."""

    visibility_s: float = 5.0
    """Until others see what a server announces."""
    seconds_per_block: float = 3.0
    lease_s: float | None = None
    """Until a crashed server is no longer listed; None for what each policy has."""
    selection_delay_s: float = MEAN_BLOCK_SELECTION_DELAY
    """Before a server chooses blocks, on average, where no lock keeps two from choosing at once."""


REALISTIC = Conditions()

#: Blocks are there at once, and everybody knows everything.
IDEAL = Conditions(visibility_s=0, seconds_per_block=0, lease_s=0, selection_delay_s=0)


@dataclass(frozen=True)
class Policy:
    """How servers place themselves, and when and why they move."""

    name: str
    about: str
    rule: Rule | None = None
    checks: Checks = Checks.NEVER
    lock: bool = False
    """Reading, deciding and announcing is one step: a decision sees all earlier ones."""
    delta: bool = False
    """A server that moves loads only the blocks that it lacks, and goes on serving those that it keeps."""
    random_place: bool = False

    @property
    def lease_s(self) -> float:
        return REGISTRY_LEASE_S if self.lock else PETALS_LEASE_S


_RANDOM = Policy("none", "random blocks, and no move", random_place=True)
_NEW_ONLY = Policy("new only", "new servers take the blocks that are worst off (rule 1), and stay there")
_75 = replace(_NEW_ONLY, name="0.75", about="rules 1 and 2, as Petals' code", rule=full(0.75), checks=Checks.RANDOM)
_99 = replace(_75, name="0.99", about="rules 1 and 2, with the paper's p = 1 %", rule=full(0.99))
_FIXED = replace(_99, name="0.99 fixed", about="0.99, each checks every minute, to the second", checks=Checks.FIXED)
_IN_STEP = replace(_99, name="0.99 in step", about="0.99, all check in the same second", checks=Checks.IN_STEP)
_LOCK = replace(_99, name="0.99 lock", about="0.99, each decision sees all earlier ones", lock=True)
_DELTA = replace(_LOCK, name="0.99 lock delta", about="0.99 lock, only missing blocks are loaded", delta=True)
_GUARD = replace(
    _DELTA, name="0.99 guard", about="0.99 lock delta, no block is left unserved", rule=full(0.99, guard=True)
)
_OWN = replace(_DELTA, name="own gain", about="lock, delta; moves that gain 5 % by themselves", rule=own_gain)
_LEADER = Policy("planner", "lock; moves of several, planned by one", planner, Checks.LEADER, lock=True)
_LEADER_DELTA = replace(_LEADER, name="planner delta", about="planner, only missing blocks are loaded", delta=True)
_EACH = replace(_LEADER_DELTA, name="planner each", about="planner delta, by each at its checks", checks=Checks.RANDOM)
_SHARED = replace(_EACH, name="recommended", about="planner delta, by servers in turn", checks=Checks.SHARED)

#: All, by name. `planner each` takes minutes, and is compared only when it is asked for.
POLICIES = {
    policy.name: policy
    for policy in (
        *(_RANDOM, _NEW_ONLY, _75, _99, _FIXED, _IN_STEP, _LOCK, _DELTA, _GUARD),
        *(_OWN, _LEADER, _LEADER_DELTA, _EACH, _SHARED),
    )
}
COMPARED = tuple(name for name in POLICIES if name != _EACH.name)


def next_check(checks: Checks, now: float, servers: int, rng: np.random.Generator, *, first: bool) -> float:
    """When a server that knows of so many servers checks next. Infinite when it never does."""
    if checks is Checks.RANDOM:
        return now + balance_check_delay(rng, MEAN_CHECK_PERIOD_S)
    if checks is Checks.SHARED:
        return now + plan_delay(servers, rng)
    if checks is Checks.FIXED:
        return now + (float(rng.uniform(0, MEAN_CHECK_PERIOD_S)) if first else MEAN_CHECK_PERIOD_S)
    if checks is Checks.IN_STEP:
        return MEAN_CHECK_PERIOD_S * (math.floor(now / MEAN_CHECK_PERIOD_S) + 1)
    return math.inf
