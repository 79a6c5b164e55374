"""What flows through a pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Document:
    """One record: the text, an id that is unique in the data set, and whatever else is known of it.

    The same fields as datatrove's `Document`, so that its filters and formatters run unchanged.
    """

    text: str
    id: str
    media: list[Any] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
