"""What passes the blocks of a model together: a few texts, padded to one length."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class Microbatch:
    """Rows of tokens, padded on the right.

    number: place in its pass, from 0.
    tokens: int64 [rows, length]; 0 where a row has no token.
    lengths: the number of tokens of each row; 0 for a row that only fills the shape.
    """

    number: int
    tokens: torch.Tensor
    lengths: tuple[int, ...]

    @cached_property
    def mask(self) -> torch.Tensor:
        """int64 [rows, length]: 1 for a token. An empty row has one too: a softmax over nothing is not a number."""
        lengths = torch.tensor([max(length, 1) for length in self.lengths], device=self.tokens.device)
        places = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return (places < lengths[:, None]).long()
