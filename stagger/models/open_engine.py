"""Opens a model with the engine that its memory allows."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import torch

from stagger.errors import StaggerError
from stagger.models.block_source import BlockSource
from stagger.models.checkpoint import Checkpoint
from stagger.models.choice import STREAMED_BLOCKS, EngineName, Needs, Place, choose
from stagger.models.config_facts import own_dtype
from stagger.models.cut_model import CutModel
from stagger.models.devices import CPU, devices_of_job, free_memory
from stagger.models.dtypes import COMPUTING
from stagger.models.engines import LocalEngine, Stream, Whole
from stagger.models.memory import Widths, activations, without_reserve
from stagger.storage.storage import Storage, is_local
from stagger.terminal import logger

#: The implementations of attention that hold no scores.
FUSED = ("sdpa", "flash_attention_2")

#: Tokens of a window, at most, by the type of the device: a block is then computed for longer than it takes to read the
#: next one. In a block of P parameters, n tokens take 2 * P * n operations, and the next block 2 * P bytes in bfloat16.
#: A GPU of 4e14 operations per second and files at 2 GB/s need n = 200,000; a CPU of 1e13 needs 5,000.
WINDOW_TOKENS = {"cuda": 2**18, "cpu": 2**14}

#: Hidden states of a smaller window wait on the host, if that has more room: in tokens.
LEAST_ON_DEVICE = 2**15


def open_engine(
    storage: Storage,
    model: str,
    engine: EngineName = "auto",
    dtype: str = "auto",
    *,
    rows: int,
    length: int,
    beside_bytes: int = 0,
    blocks: int | None = None,
    devices: Sequence[torch.device] | None = None,
    one_request: bool = False,
) -> LocalEngine:
    """The model in a folder, local or remote, with the engine that is wanted or fits; weights are loaded by its runs.

    Logs which engine it is, and why.

    Args:
        storage: where the folder is; its `check` is called between microbatches.
        model: the folder.
        engine: "auto" is `whole` if it fits, else `stream`.
        dtype: "auto" is that of the checkpoint's config.json.
        rows: of the largest microbatch.
        length: tokens of a row of the largest microbatch.
        beside_bytes: what the caller takes on the device beside the model, such as for a chunk of logits.
        blocks: how many blocks are needed, from the first on; by default all.
        devices: by default all GPUs of the job, or the CPU.
        one_request: whether one request to remote storage is in flight at a time.

    Raises StaggerError for a checkpoint that is refused, and when neither engine fits.
    """
    gc.collect()  # An engine of an earlier rank that failed may still hold its blocks, in a circle.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    checkpoint = Checkpoint.open(storage, model, one_request=one_request)
    cut = CutModel(checkpoint, dtype_of(checkpoint, dtype), devices or devices_of_job())
    needed = range(cut.total_blocks if blocks is None else blocks)
    widths = Widths.of(cut.config.to_dict(), cut.hidden_size, fused=cut.config._attn_implementation in FUSED)
    taken = activations(widths, rows, length, cut.dtype.itemsize) + beside_bytes
    needs = needs_of(cut, model, needed, taken)
    name, why = choose(needs, engine)
    logger.info(why)
    check = lambda: storage.check()  # noqa: E731 # It is set anew for each job.
    if name == "whole":
        return Whole(cut, BlockSource(checkpoint, cut), check)
    return streaming(cut, checkpoint, needs, check)


def dtype_of(checkpoint: Checkpoint, name: str) -> torch.dtype:
    """The dtype of this name; for "auto", the checkpoint's. Raises StaggerError for one that models are not run in."""
    if name == "auto":
        name = own_dtype(checkpoint.config)
    if name not in COMPUTING:
        raise StaggerError(f"dtype: {name!r} is none that models are run in; choose auto, {', '.join(COMPUTING)}.")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def needs_of(cut: CutModel, model: str, needed: range, taken: int) -> Needs:
    """What the needed blocks of a model take, and what its devices have."""
    bytes_of = {block: cut.block_bytes(block) for block in needed}
    places = [
        Place(free_memory(device), sum(bytes_of[block] for block in needed if cut.device_of(block) == device))
        for device in cut.devices
    ]
    return Needs(
        model,
        len(needed),
        max(bytes_of.values(), default=0),
        cut.ends_bytes,
        taken,
        places,
        on_gpus=cut.devices[0].type == "cuda",
    )


def streaming(cut: CutModel, checkpoint: Checkpoint, needs: Needs, check: Callable[[], None]) -> Stream:
    """The engine `stream`, with a window and a store of blocks on the host that fit into the memory that is left."""
    token = cut.hidden_size * cut.dtype.itemsize
    most = WINDOW_TOKENS[cut.devices[0].type] * token
    left = min(without_reserve(place.free) for place in needs.places) - needs.streamed
    if not needs.on_gpus:
        window = min(most, left)
        keep = 0 if is_local(checkpoint.folder) else left - window
        return Stream(cut, BlockSource(checkpoint, cut, keep), check, window)
    host = without_reserve(free_memory(CPU)) - STREAMED_BLOCKS * needs.largest
    parked = left < min(most, LEAST_ON_DEVICE * token) and host > left
    window = min(most, host if parked else left)
    keep = 0 if is_local(checkpoint.folder) else host - parked * window
    return Stream(cut, BlockSource(checkpoint, cut, keep), check, window, parked=parked)
