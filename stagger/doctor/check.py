"""The result of one check of `stagger doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Check:
    """The result of one check. `text` is the finding and, if `state` is not `ok`, what to do."""

    name: str
    state: Literal["ok", "warning", "problem"]
    text: str
