"""All that people see of a run: lines on standard output, and log messages on standard error.

Whatever the lines hold (file names, errors, reasons from Slurm), each stays one line and no terminal obeys it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from stagger.errors import one_line

if TYPE_CHECKING:
    from loguru import Logger, Record

#: Called before the first message.
before_messages: list[Callable[[], None]] = []


def _on_one_line(record: Record) -> None:
    record["message"] = one_line(record["message"])


class _Logger:
    """loguru's logger, imported at the first message: most commands have none, and the import takes them 30 ms."""

    def __getattr__(self, name: str) -> Any:
        if "loguru" not in vars(self):
            import loguru

            for call in before_messages:
                call()
            self.loguru = loguru.logger.patch(_on_one_line)
        return getattr(self.loguru, name)


#: For messages to people.
logger = cast("Logger", _Logger())


def duration(seconds: float) -> str:
    """A time span in its two largest units.

    >>> duration(0.4), duration(200), duration(7500), duration(200_000)
    ('0 s', '3 min 20 s', '2 h 5 min', '2 d 7 h')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    units = [f"{number} {unit}" for number, unit in ((days, "d"), (hours, "h"), (minutes, "min"), (rest, "s"))]
    first = next((index for index, unit in enumerate(units) if not unit.startswith("0 ")), len(units) - 1)
    return " ".join(unit for unit in units[first : first + 2] if first == len(units) - 1 or not unit.startswith("0 "))


def say(line: str = "", *, flush: bool = False) -> None:
    """Print one line on standard output."""
    print(one_line(line), flush=flush)


def say_lines(text: str, indent: str = "") -> None:
    """Print each line of `text`, with its tabs."""
    for line in text.removesuffix("\n").split("\n"):
        print(indent + one_line(line, keep="\t"))
