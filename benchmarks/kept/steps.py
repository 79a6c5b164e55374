"""The documents whose URLs the benchmark filters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datatrove.data import Document

#: Documents of a rank.
DOCUMENTS = 200


def documents(data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
    for number in range(DOCUMENTS):
        name = f"{rank}-{number}"
        yield Document(text="text", id=name, metadata={"url": f"https://site{name}.example.org/page/{number}"})


def count(data: Any, rank: int, world_size: int) -> None:
    """Consume the documents. Raises RuntimeError when some are missing."""
    found = sum(1 for _ in data)
    if found != DOCUMENTS:
        raise RuntimeError(f"{found} of {DOCUMENTS} documents")
