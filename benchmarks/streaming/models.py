"""Models with random weights, microbatches for them, and the engines that run them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import transformers

from stagger.models.block_source import BlockSource
from stagger.models.checkpoint import Checkpoint
from stagger.models.cut_model import CutModel
from stagger.models.engines import LocalEngine, Stream, Whole
from stagger.models.microbatch import Microbatch
from stagger.storage.storage import Storage

VOCABULARY = 4096


def config(hidden: int, blocks: int) -> Any:
    """A Llama: two query heads for each key-value head, a feed-forward layer 2.75 times as wide as the hidden state."""
    return transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=blocks,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        vocab_size=VOCABULARY,
        max_position_embeddings=4096,
    )


def saved(folder: str, hidden: int, blocks: int, dtype: str) -> str:
    """The path of a model with random weights, in files of at most 50 MB; made unless it is there."""
    path = os.path.join(folder, f"llama-{hidden}-{blocks}-{dtype}")
    if not os.path.exists(path):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config(hidden, blocks), dtype=getattr(torch, dtype))
        model.save_pretrained(path, max_shard_size="50MB")
    return path


def microbatches(count: int, rows: int, length: int) -> list[Microbatch]:
    """Full microbatches of random tokens."""
    torch.manual_seed(1)
    tokens = torch.randint(1, VOCABULARY, (count, rows, length))
    return [Microbatch(number, tokens[number], (length,) * rows) for number in range(count)]


def model(path: str, dtype: str, keep_bytes: int = 0) -> tuple[CutModel, BlockSource]:
    checkpoint = Checkpoint.open(Storage(), path)
    cut = CutModel(checkpoint, getattr(torch, dtype))
    return cut, BlockSource(checkpoint, cut, keep_bytes)


def whole(path: str, dtype: str) -> Whole:
    return Whole(*model(path, dtype), lambda: None)


def stream(path: str, dtype: str, window_tokens: int, keep_bytes: int = 0) -> Stream:
    cut, source = model(path, dtype, keep_bytes)
    return Stream(cut, source, lambda: None, window_tokens * cut.hidden_size * cut.dtype.itemsize)


def last_states(engine: LocalEngine, batches: Iterable[Microbatch]) -> list[float]:
    """Pass microbatches through all blocks. Returns the sums of what comes out."""
    run = engine.run(
        batches, [engine.total_blocks], lambda batch, layer, hidden: float(hidden.sum(dtype=torch.float64))
    )
    return [found[engine.total_blocks] for _, found in run]


class Plain:
    """The model as transformers loads and runs it."""

    def __init__(self, path: str, dtype: str) -> None:
        self._model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
        self._last = self._model.base_model.layers[-1]

    def last_states(self, batches: Iterable[Microbatch]) -> list[float]:
        with torch.inference_mode():
            return list(self._states(batches))

    def _states(self, batches: Iterable[Microbatch]) -> Iterator[float]:
        for batch in batches:
            found: list[torch.Tensor] = []
            hook = self._last.register_forward_hook(lambda module, given, output, found=found: found.append(output))
            self._model.base_model(input_ids=batch.tokens, attention_mask=batch.mask, use_cache=False)
            hook.remove()
            output = found[0]
            yield float((output[0] if isinstance(output, tuple) else output).sum(dtype=torch.float64))
