"""A model streamed block by block, beside the same model loaded as a whole, and beside transformers' own forward.

All programs pass the same microbatches, in turns, on one processor. Streaming reads every block again for each window
of tokens: from the page cache, or from what it has kept in the memory of the host.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from typing import Any

from benchmarks.kit import measure

#: Streaming processes at least this share of the whole model's tokens per CPU second, in windows of 4096 tokens.
LEAST_RATIO = 0.90

#: Bytes read from the checkpoint are at most this many times those that are needed.
MOST_READ = 1.02

#: The hidden sizes, and numbers of blocks.
MODELS = {256: 12, 512: 8, 1024: 6}
DTYPES = ("float32", "bfloat16")

#: Rows and length of a microbatch.
ROWS, LENGTH = 4, 256

#: Blocks of the model whose memory is measured.
LARGE_BLOCKS = 12


def speeds(path: str, dtype: str, windows: list[int], repeat: int) -> dict[str, Any]:
    """Tokens per CPU second of each program: medians over `repeat` turns."""
    import time

    import torch

    from benchmarks.streaming import models

    torch.set_num_threads(1)
    batches = models.microbatches(max(windows) // (ROWS * LENGTH), ROWS, LENGTH)
    plain, whole = models.Plain(path, dtype), models.whole(path, dtype)
    programs: dict[str, Any] = {
        "transformers": plain.last_states,
        "whole": lambda batches: models.last_states(whole, batches),
    }
    for window in windows:
        for name, keep in (("page cache", 0), ("host memory", 2**40)):
            engine = models.stream(path, dtype, window, keep)
            programs[f"stream, {window} tokens, {name}"] = lambda batches, engine=engine: models.last_states(
                engine, batches
            )
    expected = plain.last_states(batches)
    rates: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(repeat + 1):
        for name, program in programs.items():
            started = time.process_time()
            found = program(batches)
            taken = time.process_time() - started
            if found != expected:
                raise RuntimeError(f"{name}: other numbers than transformers")
            if turn:  # The first turn loads the models, and fills the caches.
                rates[name].append(len(batches) * ROWS * LENGTH / taken)
    ratios = {
        name: statistics.median(mine / theirs for mine, theirs in zip(values, rates["whole"], strict=True))
        for name, values in rates.items()
    }
    return {
        name: {"tokens_per_cpu_s": measure.summary(values), "of_whole": round(ratios[name], 3)}
        for name, values in rates.items()
    }


def memory(path: str, dtype: str, window: int) -> dict[str, Any]:
    """Peak memory of streaming two windows, and bytes read and needed.

    The peak is that beyond what libraries and the ends of the model take after a first microbatch. It is divided by
    3 blocks and the window, without what a microbatch takes in a block, which is measured, too.
    """
    import torch

    from benchmarks.streaming import models
    from stagger.models.devices import give_back_memory
    from stagger.models.memory import Widths, activations

    torch.set_num_threads(1)
    engine = models.stream(path, dtype, window)
    model = engine.model
    batches = models.microbatches(2 * window // (ROWS * LENGTH), ROWS, LENGTH)
    models.last_states(engine, batches[:1])  # Loads libraries, and the ends.
    model.load(0)
    hidden = model.embed(batches[0])
    give_back_memory()
    loaded = reset_peak()
    model.run(hidden, batches[0], range(1))
    microbatch = peak_bytes() - loaded
    del hidden
    model.unload(0)
    give_back_memory()
    before, already_read = reset_peak(), engine.source.checkpoint.bytes_read
    models.last_states(engine, batches)
    peak = peak_bytes() - before
    block = model.block_bytes(0)
    widths = Widths.of(model.config.to_dict(), model.hidden_size, fused=True)
    needed = 2 * sum(map(model.block_bytes, range(engine.total_blocks)))
    return {
        "block_mb": round(block / 1e6, 1),
        "window_mb": round(engine.window_bytes / 1e6, 1),
        "ends_mb": round(model.ends_bytes / 1e6, 1),
        "microbatch_mb": round(microbatch / 1e6, 1),
        "microbatch_by_formula_mb": round(activations(widths, ROWS, LENGTH, model.dtype.itemsize) / 1e6, 1),
        "peak_mb": round(peak / 1e6, 1),
        "all_blocks_mb": round(engine.total_blocks * block / 1e6, 1),
        "peak_of_limit": round((peak - microbatch) / (3 * block + engine.window_bytes), 3),
        "bytes_read_of_needed": round((engine.source.checkpoint.bytes_read - already_read) / needed, 5),
    }


def reset_peak() -> int:
    """Forget the peak of this process's resident memory. Returns what it has now, in bytes."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return peak_bytes()


def peak_bytes() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))


def padding(total: int, tokens: int) -> float:
    """Places in microbatches for each token of about `total` tokens of documents, with the default buffer.

    Lengths are log-normal, with a median of 490 tokens, and at most 4096.
    """
    import numpy

    from stagger.models.batches import Batcher, Piece, Row
    from stagger.models.shapes import Shapes
    from stagger.models.steps import BUFFER_TOKENS

    lengths = numpy.random.default_rng(0).lognormal(numpy.log(490), 1.0, total // 400).clip(8, 4096).astype(int)
    lengths = lengths[: int((lengths.cumsum() <= total).sum())]
    batcher = Batcher(Shapes(tokens), BUFFER_TOKENS)
    places = 0
    for number, length in enumerate(lengths.tolist()):
        row = Row(number, Piece(0, length, 0), numpy.ones(length, dtype=numpy.int64))
        places += sum(batch.tokens.numel() for batch, _ in batcher.add(row))
    places += sum(batch.tokens.numel() for batch, _ in batcher.rest())
    return float(round(places / sum(lengths.tolist()), 3))


def imports_of_a_rank(folder: str) -> list[str]:
    """Which of the packages that only models need a rank has imported that uses none."""
    from benchmarks.streaming import steps
    from stagger import LocalExecutor

    LocalExecutor([steps.documents, steps.Imported(f"{folder}/imported")], run_dir=f"{folder}/run", tasks=1).run()
    with open(f"{folder}/imported") as file:
        return file.read().split()


def main() -> int:
    parser = measure.parser((__doc__ or "").partition("\n")[0], repeat=5)
    parser.add_argument("--windows", type=int, nargs="+", default=[4096, 8192], help="tokens of a window")
    parser.add_argument("--only", help="a part: a hidden size, 'memory', 'padding' or 'imports'")
    options = parser.parse_args()
    if not measure.version("torch"):
        return measure.report(options, {}, [measure.not_measured("streaming", "the extra models is not installed")])
    folder = tempfile.mkdtemp(prefix="stagger-streaming-", dir=options.folder)
    results: dict[str, Any] = {}
    requirements: list[dict[str, Any]] = []
    try:
        for hidden, blocks in MODELS.items():
            for dtype in DTYPES if options.only in (None, str(hidden)) else ():
                compare_speeds(folder, hidden, blocks, dtype, options, results, requirements)
        for dtype in DTYPES if options.only in (None, "memory") else ():
            check_memory(folder, dtype, options, results, requirements)
        if options.only in (None, "padding"):
            results["padding"] = {
                f"{total:,} tokens in microbatches of {tokens}": padding(total, tokens)
                for total in (250_000, 1_000_000, 10_000_000)
                for tokens in (2048, 4096, 8192)
            }
        if options.only in (None, "imports"):
            found, _ = measure.fresh(imports_of_a_rank, folder=folder)
            requirements.append(
                measure.requirement("packages of models that a rank without one imports", len(found), 0)
            )
    finally:
        shutil.rmtree(folder)
    return measure.report(options, results, requirements)


def compare_speeds(
    folder: str,
    hidden: int,
    blocks: int,
    dtype: str,
    options: argparse.Namespace,
    results: dict[str, Any],
    requirements: list[dict[str, Any]],
) -> None:
    path, _ = measure.fresh(saved, folder=folder, hidden=hidden, blocks=blocks, dtype=dtype)
    name = f"hidden {hidden}, {dtype}"
    found, _ = measure.fresh(speeds, path=path, dtype=dtype, windows=options.windows, repeat=options.repeat)
    results[name] = found
    for program, figures in found.items():
        measure.say(f"{name}: {program}: {figures['of_whole']} of whole")
        if program.startswith("stream"):
            requirements.append(measure.at_least(f"{name}: {program} / whole", figures["of_whole"], LEAST_RATIO))


def check_memory(
    folder: str, dtype: str, options: argparse.Namespace, results: dict[str, Any], requirements: list[dict[str, Any]]
) -> None:
    path, _ = measure.fresh(saved, folder=folder, hidden=1024, blocks=LARGE_BLOCKS, dtype=dtype)
    found, _ = measure.fresh(memory, path=path, dtype=dtype, window=options.windows[0])
    results[f"memory, {dtype}"] = found
    measure.say(f"memory, {dtype}: {found}")
    what = f"memory of streaming, {dtype}, without the ends and a microbatch / (3 blocks + window)"
    requirements.append(measure.requirement(what, found["peak_of_limit"], 1.0))
    requirements.append(measure.requirement(f"bytes read / needed, {dtype}", found["bytes_read_of_needed"], MOST_READ))


def saved(folder: str, hidden: int, blocks: int, dtype: str) -> str:
    from benchmarks.streaming import models

    return models.saved(folder, hidden, blocks, dtype)


if __name__ == "__main__":
    sys.exit(main())
