"""Recognises datatrove's blocks by their shape."""

from __future__ import annotations

from typing import Any


def is_block(step: Any) -> bool:
    """Whether a step, or the class of a costly one, is a block of datatrove, or one written for it."""
    kind = step if isinstance(step, type) else type(step)
    return all(callable(getattr(kind, method, None)) for method in ("run", "stat_update"))
