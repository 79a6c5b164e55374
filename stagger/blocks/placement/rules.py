"""The rules that decide which servers move, each a function of a server's view. Pure.

Block jobs and the simulation call the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stagger.blocks.placement.joint_moves import horizon, planned_moves
from stagger.blocks.placement.own_gain import own_move, uncovered_by
from stagger.blocks.placement.petals import choose_best_blocks, should_choose_other_blocks
from stagger.blocks.placement.spans import Span


@dataclass(frozen=True)
class Swarm:
    """A server's view: the blocks that each server hosts or is about to host, and those that each serves now.

    Blocks that a server has to leave by the latest claim do not count as served, even if it does not know that yet.
    """

    spans: Sequence[Span]
    online: Sequence[Span]
    calm_s: float
    """Seconds since a server was last seen to come or go."""


@dataclass(frozen=True)
class Setting:
    """Further inputs of a decision. With `delta`, a server that moves loads only the blocks that it lacks."""

    total_blocks: int
    seconds_per_block: float
    delta: bool
    rng: np.random.Generator


#: From the deciding server's id, its view and the setting: server id -> window, for each server that should move.
Rule = Callable[[str, Swarm, Setting], dict[str, range]]


def full(quality: float, *, guard: bool = False) -> Rule:
    """Petals' rule 2, then rule 1. With `guard`, no server gives up a block that no other serves yet."""

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
    """Move this server if its own move gains enough."""
    window = own_move(local_id, swarm.spans, swarm.online, setting.total_blocks, delta=setting.delta)
    return {local_id: window} if window else {}


def planner(local_id: str, swarm: Swarm, setting: Setting) -> dict[str, range]:
    """Plan moves of all servers together."""
    return planned_moves(
        swarm.spans,
        swarm.online,
        setting.total_blocks,
        seconds_per_block=setting.seconds_per_block,
        horizon_s=horizon(swarm.calm_s),
        rng=setting.rng,
        delta=setting.delta,
    )
