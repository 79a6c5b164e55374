"""The host `transformer`: a span of a decoder of transformers, served to the clients of a swarm. Imports torch.

Its rank loads blocks one by one from the model's files, reads the next one meanwhile, and computes what it has loaded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import torch

from stagger.blocks.host import HostContext, Speed
from stagger.blocks.serving.addresses import own_address
from stagger.blocks.serving.keys import client_keys, key_path
from stagger.blocks.serving.span_server import Computed, NotFinite, NotHere, SpanServer
from stagger.blocks.serving.tensors import as_parts, as_tensor
from stagger.blocks.serving.wire import Model, Request, read_lengths
from stagger.errors import StaggerError, counted
from stagger.models.block_source import BlockSource
from stagger.models.blocks_ahead import BlocksAhead
from stagger.models.checkpoint import Checkpoint
from stagger.models.config_facts import PLACES, number_of
from stagger.models.cut_model import CutModel
from stagger.models.devices import device_name, devices_of_job, free_memory
from stagger.models.memory import Widths, activations, room
from stagger.models.microbatch import Microbatch
from stagger.models.open_engine import dtype_of
from stagger.models.pace import measure
from stagger.models.swarm_choice import SERVED_TOKENS

#: Bytes per second that a connection carries, encrypted by one thread (benchmarks/swarm).
CONNECTION_BYTES_PER_S = 6e8

#: Tokens that are kept of a request, to find out later whether this server still computes.
PROOF_TOKENS = 64

#: Seconds over which `tokens_per_s` and `busy` are counted.
LATELY_S = 30.0


class TransformerHost:
    """Serves blocks of the model in `blocks.model`.

    Args:
        dtype: what the model computes with: auto (that of its config.json), bfloat16, float16 or float32.
        tokens: places of the largest microbatch that a client may send.
        max_length: tokens of the longest row; by default as many as the model has positions for, or `tokens`.
        interface: the network interface at which clients reach the server, such as ib0; by default that of the route to
            other machines.
        keys: a folder for the key of the run's clients, where the run directory is in a bucket.
        encrypt: False lets everybody in who reaches the port, and sends everything in the clear.
    """

    def __init__(
        self,
        context: HostContext,
        dtype: str = "auto",
        tokens: int = SERVED_TOKENS,
        max_length: int | None = None,
        interface: str | None = None,
        keys: str | None = None,
        encrypt: bool = True,
    ) -> None:
        if context.model is None:
            raise StaggerError("the host transformer needs blocks.model: the folder of a model with its weights.")
        torch.set_grad_enabled(False)
        self.context = context
        folder = context.model.removesuffix("/config.json")
        self.checkpoint = Checkpoint.open(context.storage, folder)
        self.dtype = dtype_of(self.checkpoint, dtype)
        self.model = CutModel(self.checkpoint, self.dtype, devices_of_job())
        if self.model.total_blocks != context.total_blocks:
            raise StaggerError(
                f"blocks.total is {context.total_blocks}, but {context.model} has"
                f" {counted(self.model.total_blocks, 'block')}."
            )
        self.tokens = tokens
        self.length = min(max_length or number_of(self.checkpoint.config, PLACES) or tokens, tokens)
        self.device = " + ".join(dict.fromkeys(map(device_name, self.model.devices)))
        self.workload = f"transformer {self.checkpoint.fingerprint} {self.dtype_name} {tokens} {self.length}"
        self._source = BlockSource(self.checkpoint, self.model)
        self._lock = threading.Lock()  # Of the model: it computes, or changes its blocks.
        self._order: list[int] = []  # Blocks that will be loaded next, and whether their reading has begun.
        self._planned = False
        self._ahead: BlocksAhead | None = None
        self._proofs: dict[
            int, tuple[int, torch.Tensor]
        ] = {}  # Start -> end, and states that these blocks keep finite.
        self._seen = [(time.monotonic(), 0, 0.0)]
        wire = Model(self.model.total_blocks, self.model.hidden_size, self.dtype_name, tokens)
        clients = client_keys(key_path(context.stage_dir, keys)).public if encrypt else None
        self.server = SpanServer(
            self.compute, wire, own_address(interface), clients, span=self.span, claim=self._newest_claim
        )
        self.port = int(self.server.address.rpartition(":")[2])

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    # ---- Memory and speed ----

    def room(self) -> int:
        """Blocks that fit into the free memory of the devices beside the largest microbatch, and a tenth."""
        widths = Widths.of(self.checkpoint.config, self.model.hidden_size, fused=True)
        rows = max(1, self.tokens // self.length)
        taken = activations(widths, rows, self.length, self.dtype.itemsize)
        largest = max(self.model.block_bytes(block) for block in range(self.model.total_blocks))
        fit = sum(room(free_memory(device), largest, taken) for device in self.model.devices)
        if not fit:
            raise StaggerError(
                f"no block of {self.context.model} fits: a block takes {largest / 1e6:,.0f} MB, and the largest"
                f" microbatch {taken / 1e6:,.0f} MB. Request more memory, or lower host_options.tokens or max_length."
            )
        return min(fit, self.model.total_blocks)

    def measure(self) -> Speed:
        """Tokens per second that pass one block, and that one connection carries."""
        self.model.load(0)
        rows, length = max(1, min(self.tokens, 2048) // self.length), min(self.length, 2048)
        batch = Microbatch(0, torch.zeros(rows, length, dtype=torch.int64), (length,) * rows)
        pace = measure(self.model, batch, 0)
        self.model.unload(0)
        network = CONNECTION_BYTES_PER_S / (2 * self.model.hidden_size * self.dtype.itemsize)
        return Speed(pace.tokens_per_s, network, pass_rps=pace.tokens_per_s)

    # ---- Blocks ----

    def plan(self, blocks: Sequence[int]) -> None:
        """The blocks that will be loaded next, in this order."""
        self._order, self._planned = list(blocks), True

    def load(self, blocks: range) -> None:
        """Put blocks into their place; the next one is read meanwhile."""
        if self._planned:
            self._begin_reading()
        for block in blocks:
            weights = self._read(block)
            with self._lock:
                self.model.load(block, weights)
        if not self._order:
            self._end_reading()

    def _begin_reading(self) -> None:
        self._end_reading()
        self._planned = False
        self._ahead = BlocksAhead(self._source.weights, self._check, self.checkpoint.folder)
        self._ahead.__enter__()
        self._ahead.ask(self._order[0])

    def _read(self, block: int) -> Any:
        if self._ahead is None or self._order[:1] != [block]:
            return self._source.weights(block)
        weights = self._ahead.take()
        self._order.pop(0)
        if self._order:
            self._ahead.ask(self._order[0])
        return weights

    def _end_reading(self) -> None:
        if self._ahead is not None:
            self._ahead.__exit__(None, None, None)
            self._ahead = None

    def _check(self) -> None:
        if self.context.stopping():
            raise StaggerError("the server stops, and loads no more blocks.")

    def unload(self, blocks: range) -> None:
        """Drop blocks. A microbatch that is computed finishes first."""
        with self._lock:
            for block in blocks:
                self.model.unload(block)

    def span(self) -> tuple[int, int] | None:
        """The loaded blocks, from the first on without a gap."""
        loaded = sorted(self.model.loaded)
        if not loaded:
            return None
        end = next((block for block in range(loaded[0], loaded[-1] + 1) if block not in loaded), loaded[-1] + 1)
        return loaded[0], end

    # ---- Serving ----

    def serve(self, stop: threading.Event) -> None:
        self.server.serve(stop)

    def compute(self, request: Request) -> Computed:
        """Pass a microbatch through the wanted blocks, as far as they are here.

        Raises NotHere when the first is not, and NotFinite when blocks compute nothing finite any more.
        """
        rows, length, _ = request.shape
        lengths = tuple(read_lengths(request.lengths))
        batch = Microbatch(0, torch.zeros(1, 1, dtype=torch.int64).expand(rows, length), lengths)
        hidden = as_tensor(request.hidden, self.dtype, request.shape)
        states = {}
        with self._lock:
            end = request.start
            while end < request.end and end in self.model.loaded:
                end += 1
            if end == request.start:
                raise NotHere
            done = request.start
            for stop in (*(layer for layer in request.layers if layer < end), end):
                hidden = self.model.run(hidden, batch, range(done, stop))
                done = stop
                if stop < end:
                    states[stop] = as_parts(hidden)
            spoilt = self._spoilt(hidden, request, batch)
            sound = self._computes_again(spoilt) if spoilt else self._remember(request, end, lengths[0])
        return Computed(end, as_parts(hidden), states, spoilt, sound)

    def _spoilt(self, hidden: torch.Tensor, request: Request, batch: Microbatch) -> int:
        """How many tokens have states that are not finite, in rows of the request whose states all were."""
        bad = nonfinite(hidden, batch)
        if not bad.any():
            return 0
        before = nonfinite(as_tensor(request.hidden, self.dtype, request.shape), batch)
        return int((bad & ~before.any(1, keepdim=True)).sum())

    def _remember(self, request: Request, end: int, tokens: int) -> bool:
        """Keep the first tokens of a request whose result is finite. Returns True."""
        kept = (1, min(tokens, PROOF_TOKENS), self.model.hidden_size)
        if kept[1]:
            self._proofs[request.start] = end, as_tensor(request.hidden, self.dtype, kept)
        return True

    def _computes_again(self, spoilt: int) -> bool:
        """Whether what was finite before is finite again; False if there is nothing to compute again.

        Raises NotFinite when it is not: this server computes nothing any more.
        """
        sound = False
        for start, (end, hidden) in self._proofs.items():
            blocks = range(start, end)
            if not set(blocks) <= self.model.loaded:
                continue
            lengths = (hidden.shape[1], max(1, hidden.shape[1] // 2))  # One with padding, since kernels differ.
            batch = Microbatch(0, torch.zeros(2, lengths[0], dtype=torch.int64), lengths)
            if nonfinite(self.model.run(hidden.repeat(2, 1, 1), batch, blocks), batch).any():
                raise NotFinite(
                    f"the states of {counted(spoilt, 'token')} are not finite, and neither are others any more, that"
                    f" blocks {start} to {end - 1} kept finite before"
                )
            sound = True
        return sound

    # ---- What the registry shows ----

    def about(self) -> dict[str, Any]:
        return {
            "address": self.server.address,
            "public_key": self.server.public_key.decode(),
            "dtype": self.dtype_name,
            "fingerprint": self.checkpoint.fingerprint,
            "device": self.device,
            "tokens": self.tokens,
        }

    def counters(self) -> dict[str, Any]:
        now, counted = time.monotonic(), self.server.counters()
        self._seen.append((now, int(counted["tokens"]), counted["busy_s"]))
        while len(self._seen) > 2 and self._seen[1][0] < now - LATELY_S:
            self._seen.pop(0)
        then, tokens, busy_s = self._seen[0]
        seconds = max(now - then, 1e-3)
        return {
            "queue": int(counted["queue_tokens"]),
            "tokens_per_s": round((counted["tokens"] - tokens) / seconds, 1),
            "busy": round(min(1.0, (counted["busy_s"] - busy_s) / seconds), 3),
            "bytes_loaded": self.checkpoint.bytes_read,
            "requests": int(counted["requests"]),
        }

    def _newest_claim(self) -> int:
        view = self.context.view()
        return 0 if view is None else view.claim


def nonfinite(hidden: torch.Tensor, batch: Microbatch) -> torch.Tensor:
    """Where states of tokens are infinite or not numbers: bool [rows, length]. Padding does not count."""
    found: torch.Tensor = ~torch.isfinite(hidden).all(-1) & batch.mask.to(hidden.device).bool()
    return found.cpu()
