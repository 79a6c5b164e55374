"""Settings of a swarm with short intervals."""

from __future__ import annotations

from typing import Any

QUICK: dict[str, Any] = {
    "total": 8,
    "servers": 2,
    "mean_block_selection_delay": 0,
    "mean_balance_check_period": 0.2,
    "heartbeat": 0.1,
    "lease": 5,
    "drain": 1,
}
