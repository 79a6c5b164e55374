"""Settings of a block server: the key `blocks` of its stage, once `stagger.spec.blocks` has checked it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

#: Rules for moving servers.
Rebalance = Literal["planner", "own_gain", "full", "none"]

#: Mean seconds between two heartbeats of a server.
HEARTBEAT_S = 15.0

#: Seconds without a heartbeat after which a server counts as gone: three intervals.
LEASE_S = 45.0


@dataclass(frozen=True)
class BlockSettings:
    """The fields of `BlocksSpec`, which explains them, with `total` filled in. Tasks do not import pydantic."""

    total: int
    servers: int
    model: str | None = None
    num_blocks: Literal["auto"] | int = "auto"
    host: str = "simulated"
    host_options: dict[str, Any] = field(default_factory=dict)
    rebalance: Rebalance = "planner"
    balance_quality: float = 0.99
    mean_balance_check_period: Literal["auto"] | float = "auto"
    mean_block_selection_delay: float = 5.0
    loading_slots: Literal["auto"] | int = "auto"
    heartbeat: float = HEARTBEAT_S
    lease: float = LEASE_S
    measure_timeout: float = 300.0
    drain: float = 30.0
    serve_for: float | None = None
    patience: float | None = None
