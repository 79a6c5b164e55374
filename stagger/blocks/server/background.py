"""Letting a host do something that may take long, fail, or hang, beside the thread that decides."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from stagger.errors import StaggerError


class Background:
    """Something done by a thread that does not keep the process alive; a host may hang."""

    def __init__(self, what: str, work: Callable[[], Any]) -> None:
        self.what = what
        self.started = False
        self._work = work
        self._thread = threading.Thread(target=self._run, name=what, daemon=True)
        self.result: Any = None
        self._error: BaseException | None = None

    def start(self) -> None:
        self.started = True
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._work()
        except BaseException as error:
            self._error = error

    def join(self, seconds: float) -> bool:
        """Whether it has ended, within so many seconds."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def raise_if_failed(self) -> None:
        if self._error is not None:
            raise StaggerError(f"{self.what} failed: {type(self._error).__name__}: {self._error}") from self._error
