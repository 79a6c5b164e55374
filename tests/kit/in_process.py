"""Launches whose ranks run in the process of the test, one after another: a rank costs no start of an interpreter."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from unittest import mock

from stagger.executor.base import StageLaunch
from stagger.pipeline.names import add_import_path
from stagger.pipeline.task_context import StopFlag
from stagger.storage.storage import Storage
from stagger.task import Job
from stagger.task.__main__ import run_ranks


class InProcess:
    """Takes the place of the crew of a local launch."""

    def __init__(self, launch: StageLaunch, _settings: str, _size: int) -> None:
        self.launch = launch

    def run(self) -> None:
        settings, stop = self.launch.settings, StopFlag()
        add_import_path(settings.import_path)
        storage = Storage(settings.storage_options, retry_s=settings.retry_seconds, shared=settings.shared)
        job = Job(id="in-process", restart=0, delay_s=0.0, script_started=time.time())
        run_ranks(settings, storage, job, self.launch.ranks, stop)


def in_process(crew: type[InProcess] = InProcess) -> AbstractContextManager[object]:
    """While this is entered, local launches of this process start no workers."""
    return mock.patch("stagger.executor.local.LocalCrew", crew)
