"""The key `removed` of a step."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from stagger.pipeline.compression import Codec
from stagger.spec.base import Model, Says


class RemovedSpec(Model):
    """Where the documents are written that a step removes: as JSON Lines, committed with the other outputs."""

    example: ClassVar[dict[str, Any]] = {"path": "removed"}

    path: Annotated[str, Field(min_length=1), Says("a folder", "removed")]
    """The folder for them, on any storage; a folder of its own for each step."""
    reason: bool = True
    """Whether the metadata of a document has the key `filter_reason`, if the step gives a reason."""
    filename: Annotated[str, Says("a file name", "{rank}.jsonl")] | None = None
    """The files' names, as of `write_jsonl`; by default `{rank}.jsonl`, with `commit: shard` `{stem}.jsonl`."""
    compression: Codec | None = "zstd"
    """zstd, gzip, or null for none."""
    level: int | None = None
    """The codec's level, as of `write_jsonl`."""
    max_bytes: int | None = None
    """Size in bytes at which a file is full; the next document starts another file."""

    @model_validator(mode="before")
    @classmethod
    def _from_file(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value
