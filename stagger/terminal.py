"""All that people see of a run: lines on standard output, and log messages on standard error.

Whatever the lines hold (file names, errors, reasons from Slurm), each stays one line and no terminal obeys it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import loguru

from stagger.errors import one_line

if TYPE_CHECKING:
    from loguru import Record


def _on_one_line(record: Record) -> None:
    record["message"] = one_line(record["message"])


#: loguru's logger, for messages to people.
logger = loguru.logger.patch(_on_one_line)


def say(line: str = "", *, flush: bool = False) -> None:
    """Print one line on standard output."""
    print(one_line(line), flush=flush)


def say_lines(text: str, indent: str = "") -> None:
    """Print each line of `text`, with its tabs."""
    for line in text.removesuffix("\n").split("\n"):
        print(indent + one_line(line, keep="\t"))
