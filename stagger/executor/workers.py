"""The crew of a local launch."""

from __future__ import annotations

import os
import time

from stagger.executor.base import StageLaunch
from stagger.progress import Progress
from stagger.ranks import format_ranks
from stagger.rundir.stage_folder import StageFolder, attempt_name, encode
from stagger.storage.storage import join
from stagger.task.crew import HEARTBEAT_S, Crew, death_reason
from stagger.terminal import logger


def running_path(folder: StageFolder, launch: int) -> str:
    return join(folder.launch(launch), "running.json")


#: The files running.json of the crews that are at work in this process.
_at_work: set[str] = set()


def is_at_work(path: str) -> bool:
    """Whether a crew of this process is at work whose running.json is `path`."""
    return path in _at_work


class LocalCrew(Crew):
    """Runs the ranks of a local launch, shows their progress, and writes running.json for `stagger status`."""

    def __init__(self, launch: StageLaunch, settings: str, size: int) -> None:
        super().__init__(settings, launch.ranks, size)
        self.launch = launch
        self.heartbeat = 0.0
        self.written = ""
        self.progress = Progress(launch.stage.name, len(launch.ranks))

    def run(self) -> None:
        path = running_path(self.launch.stage.folder, self.launch.number)
        _at_work.add(path)
        try:
            with self.progress:
                super().run()
        finally:
            _at_work.discard(path)

    def ended(self, rank: int, answer: list[bytes]) -> None:
        self.progress.advance(failed=answer[0] == b"failed")

    def died(self, rank: int, pid: int, status: int) -> None:
        reason = death_reason(status)
        logger.error(f"rank {rank}: its worker process {pid} {reason}")
        record_death(self.launch, rank, pid, {"kind": "killed", "error": f"worker process {pid} {reason}"})
        self.progress.advance(failed=True)

    def stopped(self, rank: int, answer: list[bytes], pid: int) -> None:
        if not answer:
            name = self.stop_signal.name
            error = f"stopped by {name}; worker process {pid} did not stop in time, and was killed"
            record_death(self.launch, rank, pid, {"kind": "interrupted", "error": error, "signal": name})

    def beat(self, *, last: bool = False) -> None:
        """Write the running ranks, at most every HEARTBEAT_S seconds."""
        now = time.monotonic()
        if not last and now - self.heartbeat < HEARTBEAT_S:
            return
        self.heartbeat = now
        running = format_ranks(self.running)
        if running == self.written:
            return
        self.written = running
        path = running_path(self.launch.stage.folder, self.launch.number)
        self.launch.stage.folder.storage.write(path, encode({"time": time.time(), "running": running}))


def record_death(launch: StageLaunch, rank: int, pid: int, ending: dict[str, str]) -> None:
    """Write the failure record of a rank whose process died before it could. `ending` has its kind and its error."""
    attempt = attempt_name(launch.number, 0)
    path = launch.stage.folder.failure(rank, attempt)
    record = {
        "rank": rank,
        **ending,
        "traceback": "",
        "attempt": attempt,
        "launch": launch.number,
        "job": f"local-{pid}",
        "host": os.uname().nodename,
        "ended": time.time(),
    }
    launch.stage.folder.storage.write(path, encode(record))
