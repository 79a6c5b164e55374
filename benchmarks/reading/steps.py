"""The steps of run.py that the tasks of stagger and datatrove share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def keep_half(data: Iterable[Any], rank: int, world_size: int) -> Iterator[Any]:
    """A filter that costs almost nothing."""
    return (document for document in data if len(document.text) % 2)


def drain(data: Iterable[Any], rank: int, world_size: int) -> None:
    """The end of a pipeline that only reads."""
    for _ in data:
        pass
