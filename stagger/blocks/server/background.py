"""Run a call of the host, which may take long, fail or hang, beside the thread that decides."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from stagger.errors import StaggerError


class Background:
    """A call in a daemon thread: if the host hangs, the process can still end."""

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
        """Wait up to `seconds`; return whether the call has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def raise_if_failed(self) -> None:
        """Raise StaggerError, with `what` and the error, when the call has raised."""
        if self._error is not None:
            raise StaggerError(f"{self.what} failed: {type(self._error).__name__}: {self._error}") from self._error
