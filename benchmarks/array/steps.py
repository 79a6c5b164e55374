"""A step that costs almost nothing, so that the benchmark measures only the code around it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def nothing(data: Iterable[Any] | None = None, rank: int = 0, world_size: int = 1) -> None:
    """A complete pipeline that does nothing."""
