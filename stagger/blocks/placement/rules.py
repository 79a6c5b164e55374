"""Who moves: the rules that servers may go by, each as one function of what a server sees. Pure.

Block jobs and the simulation that compares the rules call the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stagger.blocks.placement.joint_moves import horizon, planned_moves
from stagger.blocks.placement.own_gain import own_move, uncovered_by
from stagger.blocks.placement.petals import Span, choose_best_blocks, should_choose_other_blocks


@dataclass(frozen=True)
class Swarm:
    """What a server sees: the blocks that each server hosts or is about to, and those that each serves now.

    What a server has been told to leave does not count as served, whether it has heard of that or not.
    """

    spans: Sequence[Span]
    online: Sequence[Span]
    calm_s: float
    """How long ago a server was last seen to come or go, in seconds."""


@dataclass(frozen=True)
class Setting:
    """What a decision depends on besides that. With `delta` a server that moves loads only the blocks that it lacks."""

    total_blocks: int
    seconds_per_block: float
    delta: bool
    rng: np.random.Generator


#: Given a server's id: the servers that should move, and the blocks of each.
Rule = Callable[[str, Swarm, Setting], dict[str, range]]


def full(quality: float, *, guard: bool = False) -> Rule:
    """Petals' rule 2, then rule 1. With `guard`, no server leaves a block that no other serves yet."""

    def decide(local_id: str, swarm: Swarm, setting: Setting) -> dict[str, range]:
        total = setting.total_blocks
        if not should_choose_other_blocks(local_id, swarm.spans, total, quality, rng=setting.rng, stop_early=True):
            return {}
        (local,) = [span for span in swarm.spans if span.server_id == local_id]
        others = [span for span in swarm.spans if span.server_id != local_id]
        window = choose_best_blocks(local.length, others, total)
        served = next((span for span in swarm.online if span.server_id == local_id), None)
        kept = window if setting.delta else range(0)
        if window.start == local.start or (guard and served and uncovered_by(served, kept, swarm.online, total)):
            return {}
        return {local_id: window}

    return decide


def own_gain(local_id: str, swarm: Swarm, setting: Setting) -> dict[str, range]:
    """A server moves if that alone helps enough."""
    window = own_move(local_id, swarm.spans, swarm.online, setting.total_blocks, delta=setting.delta)
    return {local_id: window} if window else {}


def planner(local_id: str, swarm: Swarm, setting: Setting) -> dict[str, range]:
    """Any server plans for all."""
    return planned_moves(
        swarm.spans,
        swarm.online,
        setting.total_blocks,
        seconds_per_block=setting.seconds_per_block,
        horizon_s=horizon(swarm.calm_s),
        rng=setting.rng,
        delta=setting.delta,
    )
