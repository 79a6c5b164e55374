"""Hidden states as tensors and as bytes. The only module here that imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import torch

from stagger.blocks.serving.wire import Parts


def as_parts(hidden: torch.Tensor) -> Parts:
    """The values of a tensor, in their own dtype, without a copy where it is contiguous and on the host."""
    return [memoryview(hidden.detach().cpu().contiguous().view(torch.uint8).numpy()).cast("B")]


def as_tensor(parts: Parts, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    """The inverse of `as_parts`, on the host, in memory of its own: blocks may change what they are given.

    Of a shape with fewer values, the first ones.
    """
    data = bytearray().join(first_bytes(parts, prod(shape) * dtype.itemsize))
    return torch.frombuffer(data, dtype=dtype).view(*shape)


def first_bytes(parts: Parts, size: int) -> Iterator[memoryview]:
    """The first `size` bytes of a hidden state."""
    for part in parts:
        piece = memoryview(part)[:size]
        size -= len(piece)
        yield piece
