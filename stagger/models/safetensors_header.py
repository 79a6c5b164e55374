"""The header of a safetensors file: which bytes are which tensor. Pure, and suspicious of what it reads.

The format: 8 bytes with the length of the header (little endian), the header (a JSON object: name of a tensor ->
`dtype`, `shape`, `data_offsets`, which count from the end of the header), then the tensors' bytes, with nothing between
them (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from stagger.errors import StaggerError, counted
from stagger.models.dtypes import NUMBER_TYPES
from stagger.models.model_json import damaged, parsed

#: Name of a type in a header -> the type.
DTYPES: dict[str, torch.dtype] = {kind.stored_as: getattr(torch, name) for name, kind in NUMBER_TYPES.items()}


class TensorPlace(NamedTuple):
    """Where a tensor lies: in the bytes `begin` to `end` (exclusive) of a file of the model's folder."""

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def places(path: str, file: str, text: bytes, data: int, size: int) -> dict[str, TensorPlace]:
    """The tensors of a file, by its header's `text`. Their bytes begin at byte `data` of the file's `size`."""
    header = parsed(path, text)
    header.pop("__metadata__", None)
    found = {name: place(f"{path}: the tensor {name}", file, entry, data) for name, entry in header.items()}
    in_order = sorted(found.items(), key=lambda item: (item[1].begin, item[1].end))
    for (name, one), (next_name, other) in pairwise(in_order):
        if other.begin < one.end:
            raise damaged(path, f"two tensors share bytes: {name}, {next_name}")
        if other.begin > one.end:
            raise damaged(path, f"bytes of no tensor lie between two tensors: {name}, {next_name}")
    last_name, last = in_order[-1] if in_order else ("", None)
    end = last.end if last else data
    if end > size:
        raise damaged(
            path,
            f"it is truncated: it has {counted(size, 'byte')} instead of {end:,}, so the tensor {last_name} is cut off",
        )
    if end < size:
        raise damaged(path, f"it has {counted(size, 'byte')}, and its tensors end at byte {end:,}")
    if in_order and in_order[0][1].begin != data:
        raise damaged(path, f"bytes of no tensor lie ahead of the tensor {in_order[0][0]}")
    return found


def place(subject: str, file: str, entry: Any, data: int) -> TensorPlace:
    """The place of one tensor. `subject` begins the messages."""
    try:
        name, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        raise damaged(subject, "it has no dtype, shape and data_offsets in the header") from None
    if not whole or end < begin:
        raise damaged(subject, f"its shape {list(shape)} and data_offsets {[begin, end]} are not possible")
    dtype = DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise StaggerError(
            f"{subject} has the dtype {name}, which stagger does not read; use a checkpoint in one of"
            f" {', '.join(DTYPES)}."
        )
    needed = math.prod(shape) * dtype.itemsize
    if needed != end - begin:
        raise damaged(subject, f"{name} {list(shape)} takes {counted(needed, 'byte')}, and it has {end - begin:,}")
    return TensorPlace(file, dtype, shape, data + begin, data + end)
