"""A step that costs next to nothing: what is measured is the machinery around it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def nothing(data: Iterable[Any] | None, rank: int, world_size: int) -> None:
    """A whole pipeline that has nothing to do."""
