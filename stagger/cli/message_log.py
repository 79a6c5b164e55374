"""How messages look on standard error."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from stagger import terminal
from stagger.pipeline import names
from stagger.storage.storage import hide_secrets


def set_up_logging() -> None:
    """Log to standard error, messages only, from level STAGGER_LOG_LEVEL (default INFO).

    Done before the first message, and again after each import of a user's module: datatrove's replaces the handlers of
    everybody by its own.
    """
    for calls in (names.after_import, terminal.before_messages):
        if _set_up not in calls:
            calls.append(_set_up)
    if "loguru" in sys.modules:
        _set_up()


@contextlib.contextmanager
def beside_users_code() -> Iterator[None]:
    """Keep what the user's modules print out of the command's output; what they log looks as the command's messages."""
    _set_up()
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _set_up() -> None:
    from loguru import logger

    logger.remove()
    logger.configure(patcher=hide_secrets)
    logger.add(sys.stderr, format="<level>{message}</level>", level=os.environ.get("STAGGER_LOG_LEVEL", "INFO"))
