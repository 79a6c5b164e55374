"""What a launch tells each block server: the key `blocks` of its stage, checked (`stagger.spec.blocks`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

#: How servers decide who moves.
Rebalance = Literal["planner", "own_gain", "full", "none"]

#: Seconds between two heartbeats of a server, on average.
HEARTBEAT_S = 15.0

#: Seconds without a heartbeat after which a server counts as gone: three of them.
LEASE_S = 45.0


@dataclass(frozen=True)
class BlockSettings:
    """The fields of `BlocksSpec`, where each is explained, with `total` known. Plain: tasks import no pydantic."""

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
    heartbeat: float = HEARTBEAT_S
    lease: float = LEASE_S
    measure_timeout: float = 300.0
    drain: float = 30.0
    serve_for: float | None = None
