"""What commands print that launched something, and their exit status."""

from __future__ import annotations

import sys
from typing import Any

import orjson

from stagger.cli import show
from stagger.launch.launched import Launched


def print_json(document: Any) -> None:
    sys.stdout.buffer.write(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def finish(launched: Launched, json: bool) -> int:
    """Say how a launch left the run; the exit status."""
    if json:
        print_json(show.status_document(launched.run_dir, launched.stages))
    else:
        show.launched(launched)
    launched.raise_if_failed()
    return 0
