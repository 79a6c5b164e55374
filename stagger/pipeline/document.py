"""What flows through a pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

ShardBy = Literal["count", "bytes"]


@dataclass(slots=True)
class Document:
    """One record: the text, an id that is unique in the data set, and whatever else is known of it.

    The same fields as datatrove's `Document`, so that its filters and formatters run unchanged.
    """

    text: str
    id: str
    media: list[Any] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


class Shard(NamedTuple):
    """One input file: its path below the reader's `path` (or a whole path), and its bytes when the plan was made.

    `version` is what an object store then called its content (S3's ETag): an object that was replaced since is noticed
    even when it is as long as before. Empty on file systems.
    """

    name: str
    size: int
    version: str = ""
