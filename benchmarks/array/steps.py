"""A step that costs almost nothing, so that the benchmark measures only the code around it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def nothing(data: Iterable[Any] | None, rank: int, world_size: int) -> None:
    """A complete pipeline that does nothing."""
