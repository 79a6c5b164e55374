"""A custom step: a function over documents that takes (data, rank, world_size) and its own parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from stagger import Document


def keep_long(data: Iterable[Document], rank: int, world_size: int, min_chars: int = 200) -> Iterator[Document]:
    """Keep documents of at least `min_chars` characters."""
    for document in data:
        if len(document.text) >= min_chars:
            yield document
