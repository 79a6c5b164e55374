"""Swarms on this machine beside the stages that use them: their crews run in threads of the launching process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from stagger.errors import Interrupted
from stagger.executor.workers import running_path, stop_at_work
from stagger.launch.swarms import end_swarm
from stagger.rundir.run_folder import Stage
from stagger.status.look import Look
from stagger.terminal import logger


class LocalSwarms:
    """The swarms that run in this process. As a context manager, it stops those that were not ended."""

    def __init__(self) -> None:
        self._running: dict[str, _Running] = {}

    def __enter__(self) -> LocalSwarms:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for one in self._running.values():
            one.stop()

    def start(self, stage: Stage, number: int, work: Callable[[], Look]) -> None:
        """Run `work`, the launch `number` of a swarm's stage, in a thread."""
        self._running[stage.name] = _Running(stage, number, work)

    def end(self, name: str, look: Look, why: str) -> Look:
        """End a swarm whose users have ended, and wait until its servers have left. Returns the look after its launch.

        Raises the error of the launch.
        """
        one = self._running.pop(name)
        try:
            for line in end_swarm(look, why):
                logger.info(line)
            return one.result()
        except BaseException:
            one.stop()
            raise

    @property
    def names(self) -> list[str]:
        return list(self._running)


class _Running:
    """A launch in a thread."""

    def __init__(self, stage: Stage, number: int, work: Callable[[], Look]) -> None:
        self._path = running_path(stage.folder, number)
        self._work = work
        self._look: Look | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=stage.name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._look = self._work()
        except BaseException as error:
            self._error = error

    def result(self) -> Look:
        while self._thread.is_alive():  # In naps: a signal has to reach the main thread.
            self._thread.join(0.2)
        if self._error is not None:
            raise self._error
        assert self._look is not None
        return self._look

    def stop(self) -> None:
        """Let the servers leave as at a signal, and wait until they have."""
        while self._thread.is_alive():
            stop_at_work(self._path)
            self._thread.join(0.2)
        if self._error is not None and not isinstance(self._error, Interrupted):
            logger.error(str(self._error))
