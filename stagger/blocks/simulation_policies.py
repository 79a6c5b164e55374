"""What servers may do to balance their blocks: the policies that are compared, and what each decides. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

import numpy as np

from stagger.blocks.balancing import own_move, uncovered_by
from stagger.blocks.placement import Span, choose_best_blocks, should_choose_other_blocks
from stagger.blocks.planner import planned_moves

#: Seconds between two checks of a server, on average. The paper's servers check every minute.
MEAN_CHECK_PERIOD_S = 60.0

#: Seconds until a crashed server is no longer listed: of Petals' command line, and of leases that a registry keeps.
PETALS_LEASE_S, REGISTRY_LEASE_S = 240.0, 45.0


class Checks(Enum):
    """When servers check whether to move."""

    NEVER = "never"
    RANDOM = "U(0, 2 periods) after the last check"
    FIXED = "a period after the last check, each server at a time of its own"
    IN_STEP = "all servers at once, every period"
    LEADER = "one for all, every period"


@dataclass(frozen=True)
class Conditions:
    """What a swarm meets. Times in seconds."""

    visibility_s: float = 5.0
    """Until others see what a server announces."""
    seconds_per_block: float = 3.0
    lease_s: float | None = None
    """Until a crashed server is no longer listed; None for what each policy has."""
    selection_delay_s: float = 5.0
    """Before a server chooses blocks, on average, where nothing else keeps two from choosing at once."""
    check_period_s: float = MEAN_CHECK_PERIOD_S


REALISTIC = Conditions()

#: Blocks are there at once, and everybody knows everything.
IDEAL = Conditions(visibility_s=0, seconds_per_block=0, lease_s=0, selection_delay_s=0)


class View(NamedTuple):
    """What a server sees: the blocks that each server hosts or is about to, and those that each serves now."""

    spans: Sequence[Span]
    online: Sequence[Span]


@dataclass(frozen=True)
class Setting:
    """What a decision depends on besides the view."""

    total_blocks: int
    seconds_per_block: float
    delta: bool
    rng: np.random.Generator


Rule = Callable[[str, View, Setting], dict[str, range]]


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


def full(quality: float, *, guard: bool = False) -> Rule:
    """Petals' rule 2, then rule 1. With `guard`, no server leaves a block that no other serves yet."""

    def decide(local_id: str, view: View, setting: Setting) -> dict[str, range]:
        total = setting.total_blocks
        if not should_choose_other_blocks(local_id, view.spans, total, quality, rng=setting.rng, stop_early=True):
            return {}
        (local,) = [span for span in view.spans if span.server_id == local_id]
        others = [span for span in view.spans if span.server_id != local_id]
        window = choose_best_blocks(local.length, others, total)
        served = next((span for span in view.online if span.server_id == local_id), None)
        kept = window if setting.delta else range(0)
        if guard and served and uncovered_by(served, kept, view.online, total):
            return {}
        return {local_id: window}

    return decide


def own(local_id: str, view: View, setting: Setting) -> dict[str, range]:
    """A server moves if that alone helps enough."""
    window = own_move(local_id, view.spans, view.online, setting.total_blocks, delta=setting.delta)
    return {local_id: window} if window else {}


def plan(local_id: str, view: View, setting: Setting) -> dict[str, range]:
    """Any server plans for all."""
    return planned_moves(
        view.spans,
        view.online,
        setting.total_blocks,
        seconds_per_block=setting.seconds_per_block,
        rng=setting.rng,
        delta=setting.delta,
    )


_NEW_ONLY = Policy("new only", "a new server takes the blocks that are worst off (rule 1), and stays there")
_FULL_75 = replace(
    _NEW_ONLY, name="full 0.75", about="rules 1 and 2, as Petals' code", rule=full(0.75), checks=Checks.RANDOM
)
_FULL_99 = replace(_FULL_75, name="full 0.99", about="rules 1 and 2 with the paper's p = 1 %", rule=full(0.99))
_LOCKED = replace(_FULL_99, name="0.99 lock", about="full 0.99, one decision after the other", lock=True)
_DELTA = replace(_LOCKED, name="0.99 lock delta", about="and only missing blocks are loaded", delta=True)
_PLANNER = Policy(
    "planner", "moves of several servers, where they pay; one server plans", plan, Checks.LEADER, lock=True
)

POLICIES = {
    policy.name: policy
    for policy in (
        Policy("none", "each server takes random blocks, and stays there", random_place=True),
        _NEW_ONLY,
        _FULL_75,
        _FULL_99,
        replace(_FULL_99, name="0.99 fixed", about="full 0.99, checks a minute apart", checks=Checks.FIXED),
        replace(_FULL_99, name="0.99 in step", about="full 0.99, all check at once", checks=Checks.IN_STEP),
        _LOCKED,
        _DELTA,
        replace(
            _DELTA, name="0.99 lock delta guard", about="and no block is left unserved", rule=full(0.99, guard=True)
        ),
        replace(_DELTA, name="own", about="lock, delta; a server moves if that alone gains 5 %", rule=own),
        _PLANNER,
        replace(_PLANNER, name="planner delta", about="and only missing blocks are loaded", delta=True),
        replace(
            _PLANNER, name="planner delta all", about="as before; every server plans", delta=True, checks=Checks.RANDOM
        ),
    )
}


def next_check(policy: Policy, now: float, period_s: float, rng: np.random.Generator, *, first: bool) -> float:
    """When a server checks next. Infinite when it never does."""
    if policy.checks is Checks.RANDOM:
        return now + float(rng.uniform(0, 2 * period_s))
    if policy.checks is Checks.FIXED:
        return now + (float(rng.uniform(0, period_s)) if first else period_s)
    if policy.checks is Checks.IN_STEP:
        return period_s * (math.floor(now / period_s) + 1)
    return math.inf
