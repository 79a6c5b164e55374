"""How microbatches pass the blocks of a model. All engines give the same numbers, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Protocol

import torch

from stagger.models.microbatch import Microbatch

#: (microbatch, layer, hidden state [rows, length, hidden]) -> what is kept of it. Layer 0 is the embedding, layer k the
#: output of block k - 1, before the final norm. Called as soon as the state is there, since states are large.
Reduce = Callable[[Microbatch, int, torch.Tensor], Any]


class Ends(Protocol):
    """What is outside the blocks of a model."""

    def embed(self, batch: Microbatch) -> torch.Tensor:
        """The hidden state that the first block takes: [rows, length, hidden]."""

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """The last block's output behind the final norm: transformers' `last_hidden_state`."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, places, hidden] behind the last block, before the final norm -> [rows, places, vocabulary]."""


class Engine(Protocol):
    """Runs a model over microbatches."""

    name: str
    total_blocks: int
    ends: Ends

    def run(
        self, microbatches: Iterable[Microbatch], layers: Collection[int], reduce: Reduce
    ) -> Iterator[tuple[Microbatch, dict[int, Any]]]:
        """Each microbatch, in order, with what `reduce` returned for each of the layers, from 0 to `total_blocks`."""
