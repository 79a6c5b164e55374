"""`removed` for a step that is a Python object."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from stagger.pipeline.chain import Step
from stagger.pipeline.compression import Codec
from stagger.plan.fingerprint import describe_object


@dataclass(kw_only=True)
class WithRemoved:
    """A step whose removed documents are written: `WithRemoved(LambdaFilter(...), "out/removed")`. They are committed
    with the other outputs of their rank.

    Args:
        step: the step, which passes on documents as the objects that it got.
        path: the folder for the documents that it removes, on any storage; a folder of its own for each step.
        reason: whether the metadata of a document has the key `filter_reason`, if the step gives a reason.
        filename: the files' names, as of `WriteJsonl`; by default `{rank}.jsonl`, with `commit="shard"` `{stem}.jsonl`.
        compression: zstd, gzip, or None for none.
        level: the codec's level.
        max_bytes: size in bytes at which a file is full; the next document starts another file.
    """

    step: Step = field(kw_only=False)
    path: str | os.PathLike[str] = field(kw_only=False)
    reason: bool = True
    filename: str | None = None
    compression: Codec | None = "zstd"
    level: int | None = None
    max_bytes: int | None = None


def without_removed(step: Step | WithRemoved) -> Step:
    """The step itself."""
    return step.step if isinstance(step, WithRemoved) else step


def described_step(step: Step | WithRemoved) -> dict[str, Any]:
    """A step as a pipeline file would have it."""
    if not isinstance(step, WithRemoved):
        return describe_object(step)
    removed = {key: value for key, value in vars(step).items() if key != "step"}
    return {**describe_object(step.step), "removed": {**removed, "path": os.fspath(step.path)}}
