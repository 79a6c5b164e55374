"""The contract of steps: documents, chains of steps, and what a step may use. Knows nothing of runs or Slurm.

They are defined in the package's own file because every task imports it: one more file would cost each
task six file-system calls.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import CodeType, FrameType
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


#: Most names that a step, or a whole rank, counts under. What it counts under further names, such as the ids of
#: documents, is counted under OTHERS: the records of thousands of ranks must stay small.
MOST_NAMES = 100
OTHERS = "(further names)"

#: What was counted in the rank that this process runs, where no step is known: name -> number.
COUNTS: dict[str, int] = {}

#: The code that runs steps -> the variable of its frames that holds the `counts` of the step that runs (chain.py).
RUNNERS: dict[CodeType, str] = {}


def count(name: str, number: int = 1) -> None:
    """Count something in the rank that runs, from any step: `count("too_short")`. A rank's completion record keeps its
    counts, by step; `stagger status`, stats.json and the report show their sums. A name that begins with `dropped_` is
    the reason of a document that the step drops: `count("dropped_too_short")`.

    Raises ValueError when `number` is negative.
    """
    if number < 0:
        raise ValueError(f"count({name!r}, {number}): a count cannot fall")
    counts = running_counts()
    name = str(name)
    if name not in counts and len(counts) >= MOST_NAMES:
        name = OTHERS
    counts[name] = counts.get(name, 0) + int(number)


def running_counts() -> dict[str, int]:
    """The counts of the step that runs: the innermost that the chain runs. Another thread's belong to no step.

    The stack is searched here, and the chain notes nothing, so that a record costs no more if nothing is counted.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if (variable := RUNNERS.get(frame.f_code)) is not None:
            counts: dict[str, int] = frame.f_locals[variable].counts
            return counts
        frame = frame.f_back
    return COUNTS


class Shard(NamedTuple):
    """One input file: its path relative to the reader's `path` (or its whole path), and its size in bytes at planning.

    `version` is the file's version at that time, as in the listing's `Entry`: it reveals a file that has been replaced
    by one of equal size.
    """

    name: str
    size: int
    version: str = ""
