"""Where an engine gets its blocks from: the checkpoint, or what it has kept of it in the memory of the host."""

from __future__ import annotations

import torch

from stagger.models.checkpoint import Checkpoint
from stagger.models.cut_model import CutModel, Weights
from stagger.models.devices import Copier
from stagger.pipeline import count


class BlockSource:
    """Reads blocks, copies them to their device, and keeps the first ones that fit into `keep_bytes` on the host.

    The first ones stay: blocks are read in a circle, where the one that was used last is needed last.
    """

    def __init__(self, checkpoint: Checkpoint, model: CutModel, keep_bytes: int = 0) -> None:
        self.name = checkpoint.folder
        self.keep_bytes = keep_bytes
        self.checkpoint = checkpoint
        self._model = model
        self._kept: dict[int, Weights] = {}
        self._kept_bytes = 0
        self._counted_bytes = 0
        self._waited_ms = 0.0
        self._copiers: dict[torch.device, Copier] = {}

    def weights(self, block: int) -> Weights:
        """The weights of a block, on its device. Called in one thread at a time."""
        weights = self._kept.get(block)
        if weights is None:
            weights = self._kept_if_room(block, self._model.weights(block))
        device = self._model.device_of(block)
        if device.type != "cuda":
            return weights
        if device not in self._copiers:
            self._copiers[device] = Copier(device)
        return self._copiers[device].copied(weights)

    def _kept_if_room(self, block: int, weights: Weights) -> Weights:
        size = self._model.block_bytes(block)
        if self._kept_bytes + size > self.keep_bytes:
            return weights
        self._kept_bytes += size
        if self._model.device_of(block).type == "cuda":  # A GPU copies from pinned memory by itself.
            weights = {name: tensor.pin_memory() for name, tensor in weights.items()}
        self._kept[block] = weights
        return weights

    @property
    def bytes_read(self) -> int:
        """Bytes of the weights files that have been read."""
        return self.checkpoint.bytes_read

    def count(self, waited_s: float) -> None:
        """Count, in the step that runs, what has been read since the last call, and the wait for it."""
        read = self.bytes_read
        count("weight_bytes", read - self._counted_bytes)
        self._counted_bytes = read
        self._waited_ms += 1000 * waited_s
        count("weights_wait_ms", int(self._waited_ms))
        self._waited_ms -= int(self._waited_ms)
