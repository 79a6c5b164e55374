"""The engines that run a model in this process: `whole`, where it fits, and `stream`, block by block.

Both call the same blocks with the same microbatches, so their numbers are equal, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from stagger.models.block_source import BlockSource
from stagger.models.blocks_ahead import BlocksAhead
from stagger.models.cut_model import CutModel
from stagger.models.devices import CPU, device_name, finish, give_back_memory
from stagger.models.engine import Ends, Reduce
from stagger.models.microbatch import Microbatch
from stagger.pipeline import count

Results = Generator[tuple[Microbatch, dict[int, Any]], None, None]


class LocalEngine:
    """What `whole` and `stream` have in common.

    A run may end early, at any microbatch: close its iterator. An engine serves one run at a time, and any number of
    them; it keeps what it has loaded.

    Counted in the step that runs: `tokens`, without padding; `weight_bytes`, read from the checkpoint; and
    `weights_wait_ms`, milliseconds for which nothing was computed since a block was not there yet.

    Args:
        model: without blocks or ends; the engine loads them.
        source: where blocks come from.
        check: called between microbatches, and while a block is waited for. Raises when the process has to stop.
    """

    name: str

    def __init__(self, model: CutModel, source: BlockSource, check: Callable[[], None]) -> None:
        self.model = model
        self.source = source
        self.check = check
        self.total_blocks = model.total_blocks
        self.ends: Ends = model

    @property
    def devices(self) -> str:
        """The kinds of devices that compute."""
        return " + ".join(dict.fromkeys(map(device_name, self.model.devices)))

    def run(self, microbatches: Iterable[Microbatch], layers: Collection[int], reduce: Reduce) -> Results:
        """See `Engine.run`."""
        raise NotImplementedError

    def blocks_ahead(self) -> BlocksAhead:
        return BlocksAhead(self.source.weights, self.check, self.source.name)

    def wanted(self, layers: Collection[int]) -> list[int]:
        """The layers, sorted. Raises ValueError for one that the model does not have."""
        wanted = sorted(set(layers))
        if not wanted or wanted[0] < 0 or wanted[-1] > self.total_blocks:
            raise ValueError(f"layers {wanted}: the model has layers 0 to {self.total_blocks}")
        return wanted


class Whole(LocalEngine):
    """All blocks that are needed stay loaded. Microbatches pass them one after another."""

    name = "whole"

    def run(self, microbatches: Iterable[Microbatch], layers: Collection[int], reduce: Reduce) -> Results:
        """See `Engine.run`."""
        wanted = self.wanted(layers)
        self._load(wanted[-1])
        for batch in microbatches:
            self.check()
            yield batch, self._reduced(batch, wanted, reduce)
            count("tokens", sum(batch.lengths))

    def _load(self, blocks: int) -> None:
        """Load the first blocks that are missing: one is read while the one before is put into its place."""
        self.model.load_ends()
        missing = [block for block in range(blocks) if block not in self.model.loaded]
        if not missing:
            return
        with self.blocks_ahead() as ahead:
            ahead.ask(missing[0])
            for block, after in zip(missing, [*missing[1:], None], strict=True):
                weights = ahead.take()
                if after is not None:
                    ahead.ask(after)
                self.model.load(block, weights)
                del weights
        self.source.count(ahead.waited_s)

    def _reduced(self, batch: Microbatch, wanted: list[int], reduce: Reduce) -> dict[int, Any]:
        hidden = self.model.embed(batch)
        reduced, done = {}, 0
        for layer in wanted:
            if layer > done:
                hidden = self.model.run(hidden, batch, range(done, layer))
                done = layer
            reduced[layer] = reduce(batch, layer, hidden)
        return reduced


class Stream(LocalEngine):
    """One block is loaded at a time. All microbatches of a window pass it while the next one is read and copied.

    Beside the ends it holds the block that is computed, the one that is read, and the hidden states of the window.

    Args:
        window_bytes: hidden states of a window, at most; a single microbatch may have more.
        parked: whether hidden states wait on the host, where the device is too small for them.
    """

    name = "stream"

    def __init__(
        self,
        model: CutModel,
        source: BlockSource,
        check: Callable[[], None],
        window_bytes: int,
        *,
        parked: bool = False,
    ) -> None:
        super().__init__(model, source, check)
        self.window_bytes = window_bytes
        self._token_bytes = model.hidden_size * int(model.dtype.itemsize)
        self.parked = parked

    def run(self, microbatches: Iterable[Microbatch], layers: Collection[int], reduce: Reduce) -> Results:
        """See `Engine.run`. A window is taken from `microbatches` at once, and one more microbatch."""
        wanted = self.wanted(layers)
        self.model.load_ends()
        with self.blocks_ahead() as ahead:
            if wanted[-1]:
                ahead.ask(0)
            for window, another in windows(microbatches, self._hidden_bytes, self.window_bytes):
                before = ahead.waited_s
                found = self._reduced(window, wanted, reduce, ahead, another=another)
                self.source.count(ahead.waited_s - before)
                count("tokens", sum(sum(batch.lengths) for batch in window))
                yield from zip(window, found, strict=True)

    def _hidden_bytes(self, batch: Microbatch) -> int:
        return int(batch.tokens.numel()) * self._token_bytes

    def _reduced(
        self, window: list[Microbatch], wanted: list[int], reduce: Reduce, ahead: BlocksAhead, *, another: bool
    ) -> list[dict[int, Any]]:
        """What `reduce` returned for each microbatch of a window."""
        found: list[dict[int, Any]] = [{} for _ in window]
        states = []
        for batch, reduced in zip(window, found, strict=True):
            self.check()
            hidden = self.model.embed(batch)
            if wanted[0] == 0:
                reduced[0] = reduce(batch, 0, hidden)
            states.append(self._parked(hidden))
        del hidden
        for block in range(wanted[-1]):
            with self._loaded(block, ahead, wanted[-1], another=another):
                for place, batch in enumerate(window):
                    self.check()
                    hidden = self.model.run(states[place], batch, range(block, block + 1))
                    if block + 1 in wanted:
                        found[place][block + 1] = reduce(batch, block + 1, hidden)
                    states[place] = self._parked(hidden, states[place])
        return found

    @contextmanager
    def _loaded(self, block: int, ahead: BlocksAhead, blocks: int, *, another: bool) -> Iterator[None]:
        """While a block is loaded, the next one is read: of this window, or the first if there is another window."""
        self.model.load(block, ahead.take())
        if block + 1 < blocks or another:
            ahead.ask((block + 1) % blocks)
        try:
            yield
            finish(self.model.device_of(block))
        finally:
            self.model.unload(block)
            give_back_memory()

    def _parked(self, hidden: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
        """A copy of the hidden state, in the memory of the one before it where it fits.

        Kept as it is, each would lie between the activations of its block, and hold their memory.
        """
        device = CPU if self.parked else hidden.device
        if into is None or (into.device, into.shape, into.dtype) != (device, hidden.shape, hidden.dtype):
            into = torch.empty_like(hidden, device=device)
        return into.copy_(hidden)


def windows(
    microbatches: Iterable[Microbatch], size_of: Callable[[Microbatch], int], most: int
) -> Iterator[tuple[list[Microbatch], bool]]:
    """Runs of microbatches of at most `most` bytes, but at least one; with each, whether another one follows."""
    rest = iter(microbatches)
    first = next(rest, None)
    while first is not None:
        window, total, following = [first], size_of(first), None
        for batch in rest:
            total += size_of(batch)
            if total > most:
                following = batch
                break
            window.append(batch)
        yield window, following is not None
        first = following
