"""Shared by `launch`, `retry` and `blocks launch`: print the result."""

from __future__ import annotations

import sys
from typing import Any

import orjson

from stagger.cli import show
from stagger.launch.launched import Launched


def print_json(document: Any) -> None:
    sys.stdout.buffer.write(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def finish(launched: Launched, json: bool) -> int:
    """Print the state of the run after a launch, and return exit status 0. Raises RunFailed when ranks failed."""
    if json:
        print_json(show.status_document(launched.run_dir, launched.stages))
    else:
        show.launched(launched)
    launched.raise_if_failed()
    return 0
