"""The contract of steps: documents, chains of steps, and what a step may use. Knows nothing of runs or Slurm.

Documents and shards are defined in the package's own file because every task imports it: one more file would cost each
task six file-system calls.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

ShardBy = Literal["count", "bytes"]


@dataclass(slots=True)
class Document:
    """One record: its text, an id that is unique in the data set, and any other data.

    It has the fields of datatrove's `Document`, so that datatrove's filters and formatters run unchanged.
    """

    text: str
    id: str
    media: list[Any] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


#: What steps have counted in the rank that this process runs: name -> number.
COUNTS: dict[str, int] = {}


def count(name: str, number: int = 1) -> None:
    """Count something in the rank that runs, from any step: `count("too_short")`. A rank's completion record keeps its
    counts; `stagger status`, stats.json and the report show their sums.

    Raises ValueError when `number` is negative.
    """
    if number < 0:
        raise ValueError(f"count({name!r}, {number}): a count cannot fall")
    COUNTS[str(name)] = COUNTS.get(str(name), 0) + int(number)


class Shard(NamedTuple):
    """One input file: its path relative to the reader's `path` (or its whole path), and its size in bytes at planning.

    `version` is the file's version at that time, as in the listing's `Entry`: it reveals a file that has been replaced
    by one of equal size.
    """

    name: str
    size: int
    version: str = ""
