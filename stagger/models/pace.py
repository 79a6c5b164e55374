"""How fast the devices of a job pass microbatches through a block."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from stagger.models.cut_model import CutModel
from stagger.models.devices import device_name, finish
from stagger.models.microbatch import Microbatch


@dataclass(frozen=True)
class Pace:
    """How fast a device passes microbatches through a block.

    device: its kind. block_s: seconds that a block takes for the microbatch. tokens: the tokens of the microbatch,
    padding included.
    """

    device: str
    block_s: float
    tokens: int

    @property
    def tokens_per_s(self) -> float:
        """Tokens that pass one block in a second."""
        return self.tokens / self.block_s


def measure(model: CutModel, batch: Microbatch, block: int, repeat: int = 3) -> Pace:
    """The pace of a loaded block: the fastest of `repeat` passes, after one that is not counted.

    The fastest, since whatever else the machine does makes a pass slower, and never faster.
    """
    device = model.device_of(block)
    hidden = torch.zeros((*batch.tokens.shape, model.hidden_size), dtype=model.dtype, device=device)
    times = [_seconds(model, hidden, batch, block) for _ in range(repeat + 1)]
    return Pace(device_name(device), min(times[1:]), batch.tokens.numel())


def _seconds(model: CutModel, hidden: torch.Tensor, batch: Microbatch, block: int) -> float:
    finish(hidden.device)
    started = time.perf_counter()
    model.run(hidden, batch, range(block, block + 1))
    finish(hidden.device)
    return time.perf_counter() - started
