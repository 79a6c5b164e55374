"""Steps of a pipeline that needs no model."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from stagger import Document

#: The packages that only models need.
OF_MODELS = ("torch", "transformers", "safetensors", "tokenizers", "numpy")


def documents(data: None = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
    yield Document("a text", "1")


class Imported:
    """Writes which of the packages its process has imported."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, data: Iterable[Document], rank: int, world_size: int) -> None:
        list(data)
        with open(self.path, "w") as file:
            file.write(" ".join(name for name in OF_MODELS if name in sys.modules))
