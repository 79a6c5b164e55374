"""When a server checks the balance of its swarm, and which servers should move then."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from stagger.blocks.placement.joint_moves import plan_delay
from stagger.blocks.placement.noise import even
from stagger.blocks.placement.petals import MEAN_BALANCE_CHECK_PERIOD, balance_check_delay
from stagger.blocks.placement.rules import Rule, Setting, Swarm, full, own_gain, planner
from stagger.blocks.server.membership import Membership
from stagger.blocks.server.records import View
from stagger.blocks.server.registry import as_moves
from stagger.errors import StaggerError
from stagger.spec.block_settings import BlockSettings
from stagger.task.attempt_log import log

#: Value of `rebalance` -> function of `balance_quality` that returns the rule. docs/block-placement.md compares them.
RULES: dict[str, Callable[[float], Rule | None]] = {
    "planner": lambda _: planner,
    "own_gain": lambda _: own_gain,
    "full": lambda quality: full(quality, guard=True),
    "none": lambda _: None,
}


class Balance:
    """A server's checks of the balance."""

    def __init__(self, settings: BlockSettings, membership: Membership, rng: np.random.Generator) -> None:
        self.settings = settings
        self.rule = RULES[settings.rebalance](settings.balance_quality)
        self.membership = membership
        self.rng = rng

    def delay(self) -> float:
        """Seconds until the next check: random, so that servers do not check in step."""
        mean = self.settings.mean_balance_check_period
        if mean == "auto" and self.settings.rebalance == "planner":
            return plan_delay(len(self.membership.view.members), self.rng)
        return balance_check_delay(self.rng, MEAN_BALANCE_CHECK_PERIOD if mean == "auto" else mean)

    def check(self, seconds_per_block: float, pause: Callable[[float], None]) -> None:
        """Decide which servers should move, this one or others, and claim their spans; remove old files.

        `seconds_per_block`: what loading a block takes. `pause` waits before a claim is retried.
        """
        registry = self.membership.registry
        try:
            claim = registry.claim(lambda view: as_moves(self.wanted_moves(view, seconds_per_block), view), pause)
            if claim is not None:
                log(f"claim {claim.number} moves {', '.join(claim.moves)}")
            self.membership.see(registry.refresh())
            registry.sweep()
        except (OSError, StaggerError) as error:  # Serving goes on, and the next check retries.
            log(f"the balance cannot be checked: {error}", "WARNING")

    def wanted_moves(self, view: View, seconds_per_block: float) -> Mapping[str, range]:
        """Server id -> window of each server that should move, by the rule. Empty while this server is not listed."""
        me = self.membership
        me.see(view)
        if me.id not in view.members:  # And no later attempt is there, for which it would leave.
            me.announce(me.mine)  # Others removed its record while it could not reach the registry.
            return {}
        if self.rule is None:
            return {}
        swarm = Swarm(even(view.spans()), even(view.kept()), me.calm_s())
        return self.rule(me.id, swarm, Setting(self.settings.total, seconds_per_block, delta=True, rng=self.rng))
