"""A model of 8 billion random weights on a GPU: streamed, in windows of several sizes, beside the whole model.

Weights are read from the page cache, or copied from pinned memory of the host. The program ends within five minutes: it
leaves out what does not fit into its time, and names it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.kit import measure

#: Seconds in which the program ends, and those that it keeps for its last measurement.
LIMIT_S, RESERVE_S = 300.0, 40.0

#: Llama 3 8B.
HIDDEN, FEED_FORWARD, HEADS, KEY_VALUE_HEADS, VOCABULARY = 4096, 14336, 32, 8, 128256

#: Rows and length of a microbatch.
ROWS, LENGTH = 4, 1024

#: Tokens of a window.
WINDOWS = (2**15, 2**16, 2**17)

#: Streaming processes at least this share of the whole model's tokens per second in the largest window.
LEAST_RATIO = 0.90


def shapes(block: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a block, by name."""
    start, narrow = f"model.layers.{block}", HIDDEN * KEY_VALUE_HEADS // HEADS
    return {
        f"{start}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
        f"{start}.self_attn.k_proj.weight": (narrow, HIDDEN),
        f"{start}.self_attn.v_proj.weight": (narrow, HIDDEN),
        f"{start}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        f"{start}.mlp.gate_proj.weight": (FEED_FORWARD, HIDDEN),
        f"{start}.mlp.up_proj.weight": (FEED_FORWARD, HIDDEN),
        f"{start}.mlp.down_proj.weight": (HIDDEN, FEED_FORWARD),
        f"{start}.input_layernorm.weight": (HIDDEN,),
        f"{start}.post_attention_layernorm.weight": (HIDDEN,),
    }


def files(blocks: int) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """The name of each weights file, and its tensors: one for each block, and one for the ends."""
    ends = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (VOCABULARY, HIDDEN))
    yield "ends.safetensors", {**ends, "model.norm.weight": (HIDDEN,)}
    for block in range(blocks):
        yield f"block-{block:03}.safetensors", shapes(block)


def write_model(folder: str, blocks: int) -> None:
    """Write random weights in bfloat16. They are made on the GPU, where that takes seconds."""
    import torch
    import transformers
    from safetensors.torch import save_file

    torch.manual_seed(0)
    transformers.LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        hidden_size=HIDDEN,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=blocks,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        vocab_size=VOCABULARY,
        max_position_embeddings=8192,
        rope_theta=500000.0,
    ).save_pretrained(folder)
    for name, tensors in files(blocks):
        made = {
            tensor: (torch.randn(shape, dtype=torch.bfloat16, device="cuda") * 0.02).cpu() if len(shape) > 1
            else torch.ones(shape, dtype=torch.bfloat16)
            for tensor, shape in tensors.items()
        }  # fmt: skip
        save_file(made, os.path.join(folder, name))


def tokens_per_s(engine: Any, tokens: int) -> float:
    """Tokens per second through all blocks, in one window of this many tokens."""
    import torch

    torch.manual_seed(1)
    from stagger.models.microbatch import Microbatch

    count = tokens // (ROWS * LENGTH)
    batches = [
        Microbatch(number, torch.randint(1, VOCABULARY, (ROWS, LENGTH)), (LENGTH,) * ROWS) for number in range(count)
    ]
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in engine.run(batches, [engine.total_blocks], lambda batch, layer, hidden: hidden[:, -1].float().sum()):
        pass
    torch.cuda.synchronize()
    return tokens / (time.perf_counter() - started)


def opened(folder: str, window: int, keep_bytes: int) -> Any:
    """The engine `stream`; with a window of 0, the engine `whole`."""
    import torch

    from stagger.models.block_source import BlockSource
    from stagger.models.checkpoint import Checkpoint
    from stagger.models.cut_model import CutModel
    from stagger.models.engines import Stream, Whole
    from stagger.storage.storage import Storage

    checkpoint = Checkpoint.open(Storage(), folder)
    cut = CutModel(checkpoint, torch.bfloat16, (torch.device("cuda", 0),))
    source = BlockSource(checkpoint, cut, keep_bytes)
    if not window:
        return Whole(cut, source, lambda: None)
    return Stream(cut, source, lambda: None, window * HIDDEN * 2)


def measured(folder: str, left_s: Callable[[], float]) -> dict[str, Any]:
    """Tokens per second of each program; those that are left out are None."""
    import gc

    import torch

    programs = {"whole": (0, 0)}
    for window in WINDOWS:
        programs[f"stream, {window} tokens, page cache"] = (window, 0)
    programs[f"stream, {WINDOWS[-1]} tokens, pinned memory"] = (WINDOWS[-1], 2**40)
    results: dict[str, Any] = {}
    for name, (window, keep) in programs.items():
        if left_s() < RESERVE_S:
            results[name] = None
            continue
        torch.cuda.reset_peak_memory_stats()
        engine = opened(folder, window, keep)
        tokens_per_s(engine, ROWS * LENGTH)  # Loads the model, or fills the host's memory, and compiles kernels.
        results[name] = {
            "tokens_per_s": round(tokens_per_s(engine, window or WINDOWS[0])),
            "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        }
        measure.say(f"{name}: {results[name]}")
        del engine
        gc.collect()
        torch.cuda.empty_cache()
    return results


def main() -> int:
    parser = measure.parser((__doc__ or "").partition("\n")[0], repeat=1)
    parser.add_argument("--blocks", type=int, default=32, help="32 blocks and the ends are 8 billion weights")
    options: argparse.Namespace = parser.parse_args()
    started = time.monotonic()
    what = "stream / whole, tokens per second on a GPU"
    if not measure.version("torch"):
        return measure.report(options, {}, [measure.not_measured(what, "the extra models is not installed")])
    import torch

    if not torch.cuda.is_available():
        return measure.report(options, {}, [measure.not_measured(what, "this machine has no GPU that torch can use")])
    folder = tempfile.mkdtemp(prefix="stagger-gpu-", dir=options.folder)
    try:
        write_model(folder, options.blocks)
        measure.say(f"the model was written in {time.monotonic() - started:.0f} s")
        results = measured(folder, lambda: LIMIT_S - (time.monotonic() - started))
    finally:
        shutil.rmtree(folder)
    whole = results["whole"]
    requirements = []
    for name, found in results.items():
        if name == "whole":
            continue
        if found is None or whole is None:
            requirements.append(measure.not_measured(f"{name} / whole", "the time was up"))
        else:
            ratio = round(found["tokens_per_s"] / whole["tokens_per_s"], 3)
            found["of_whole"] = ratio
            if str(WINDOWS[-1]) in name:
                requirements.append(measure.at_least(f"{name} / whole", ratio, LEAST_RATIO))
    results["device"] = torch.cuda.get_device_name(0)
    return measure.report(options, results, requirements)


if __name__ == "__main__":
    sys.exit(main())
