"""How messages look on standard error."""

from __future__ import annotations

import os
import sys

from loguru import logger

from stagger.pipeline import names
from stagger.storage.storage import hide_secrets


def set_up_logging() -> None:
    """Log to standard error, messages only, from level STAGGER_LOG_LEVEL (default INFO).

    Done again after each import of a user's module: datatrove's replaces the handlers of everybody by its own.
    """
    if set_up_logging not in names.after_import:
        names.after_import.append(set_up_logging)
    logger.remove()
    logger.configure(patcher=hide_secrets)
    logger.add(sys.stderr, format="<level>{message}</level>", level=os.environ.get("STAGGER_LOG_LEVEL", "INFO"))
