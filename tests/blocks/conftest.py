"""Settings of a swarm with short intervals, and a cache of measurements for each test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

QUICK: dict[str, Any] = {
    "total": 8,
    "servers": 2,
    "mean_block_selection_delay": 0,
    "mean_balance_check_period": 0.2,
    "heartbeat": 0.1,
    "lease": 5,
    "drain": 1,
}


@pytest.fixture(autouse=True)
def own_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that hangs while it measures would otherwise keep the machine's lock from the next test."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
