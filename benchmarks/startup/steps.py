"""A step that costs almost nothing, so that the benchmark measures only the code around it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def keep(data: Iterable[Any], rank: int, world_size: int) -> Iterator[Any]:
    """A filter that works on documents of both stagger and datatrove."""
    return (document for document in data if len(document.text) >= 10)
