"""The step of soak.yaml."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from stagger import Document


def slow(data: Iterable[Document], rank: int, world_size: int, seconds: float) -> Iterator[Document]:
    """Sleep `seconds` before each document."""
    for document in data:
        time.sleep(seconds)
        yield document
