"""Progress on standard error: a bar on a terminal, and otherwise a line every few seconds."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from stagger.errors import counted
from stagger.terminal import logger

#: Minimum seconds between two lines if standard error is not a terminal.
LINE_S = 2.0


@contextlib.contextmanager
def busy(what: str | Callable[[], str]) -> Iterator[None]:
    """Log every LINE_S seconds that `what` is still running. A function gives the text anew each time."""
    ended = threading.Event()
    started = time.monotonic()

    def say() -> None:
        while not ended.wait(LINE_S):
            text = what if isinstance(what, str) else what()
            logger.info(f"{text}: {time.monotonic() - started:.0f} s so far")

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Progress:
    """Shows how many of `total` ranks have ended, and how many of those failed. `total` may change.

    Without `bar` it shows lines also on a terminal, where only one bar can be drawn at a time.
    """

    def __init__(self, name: str, total: int, *, bar: bool = True) -> None:
        self.name = name
        self._draws = bar
        self.total = total
        self.ended = 0
        self.failed = 0
        self._started = self._said = time.monotonic()

    def __enter__(self) -> Progress:
        if self._draws and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar: Bar | None = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("[red]{task.fields[failed]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(self.name, total=self.total, failed="")
            self._bar.start()
        else:
            self._bar = None
        return self

    def advance(self, *, failed: bool) -> None:
        """Count one more rank that has ended."""
        self.set(self.ended + 1, self.failed + failed)

    def set(self, ended: int, failed: int) -> None:
        """Set the number of ranks that have ended by now, and how many of those failed."""
        news = ended != self.ended
        self.ended, self.failed = ended, failed
        failures = f"{failed} failed" if failed else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=ended, total=self.total, failed=failures)
        elif news and (ended == self.total or time.monotonic() - self._said > LINE_S):
            self._said = time.monotonic()
            rest = f", {failures}" if failures else ""
            logger.info(
                f"{self.name}: {ended:,} of {counted(self.total, 'rank')} in {self._said - self._started:.1f} s{rest}"
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
