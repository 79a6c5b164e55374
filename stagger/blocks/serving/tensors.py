"""Hidden states as tensors and as bytes. The only module here that imports torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stagger.blocks.serving.wire import Parts


def as_parts(hidden: torch.Tensor) -> Parts:
    """The values of a tensor, in their own dtype, without a copy where it is contiguous and on the host."""
    return [memoryview(hidden.detach().cpu().contiguous().view(torch.uint8).numpy()).cast("B")]


def as_tensor(parts: Parts, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    """The inverse of `as_parts`, on the host, in memory of its own: blocks may change what they are given."""
    return torch.frombuffer(bytearray().join(parts), dtype=dtype).view(*shape)
