"""JSON of a model's files, where the header of a safetensors file ends, and the error for one that is damaged. Imports
no torch: a launch need not have it.
"""

from __future__ import annotations

import json
import struct
from typing import Any

from stagger.errors import StaggerError, counted

#: Bytes with the length of a header, at the start of a safetensors file.
LENGTH_BYTES = 8

#: The longest header that safetensors' own reader takes.
MOST_HEADER_BYTES = 100_000_000

#: How a file begins that stands for one in Git LFS, in a clone without its content
#: (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md).
LFS_POINTER = b"version https://git-lfs"


def damaged(path: str, reason: str) -> StaggerError:
    """The error for a file of a model that is not what its format asks for."""
    return StaggerError(f"{path}: {reason}. Copy the file again from where it came from.")


def refuse_pointer(path: str, content: bytes) -> None:
    """Raise StaggerError when a file's first bytes are those of a pointer of Git LFS."""
    if content.startswith(LFS_POINTER):
        raise StaggerError(
            f"{path}: it is not the file, but a pointer of Git LFS to it: run git lfs pull in the clone that it came"
            " from, or download the model with hf download."
        )


def header_end(path: str, first: bytes, size: int) -> int:
    """Where the header of a file of `size` bytes ends, from the file's first bytes."""
    if len(first) < LENGTH_BYTES:
        raise damaged(path, f"a safetensors file has at least {LENGTH_BYTES} bytes, and this one {size}")
    refuse_pointer(path, first)
    (length,) = struct.unpack("<Q", first[:LENGTH_BYTES])
    if length > min(size - LENGTH_BYTES, MOST_HEADER_BYTES):
        raise damaged(path, f"its header claims {counted(length, 'byte')}, and the file has {size:,}")
    return LENGTH_BYTES + int(length)


def parsed(path: str, text: bytes) -> dict[str, Any]:
    """A JSON object, without a key that appears twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [name for name, _ in pairs]
            raise damaged(path, f"it has {next(name for name in names if names.count(name) > 1)} twice")
        return content

    refuse_pointer(path, text)
    try:
        content = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"its JSON cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise damaged(path, "its JSON is not an object")
    return content
