"""The crew of a local launch."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter

from stagger.executor.base import StageLaunch
from stagger.progress import Progress
from stagger.ranks import format_ranks
from stagger.rundir.stage_folder import StageFolder, attempt_name, encode
from stagger.storage.storage import join
from stagger.task.crew import HEARTBEAT_S, Crew, death_reason
from stagger.terminal import logger


def running_path(folder: StageFolder, launch: int) -> str:
    return join(folder.launch(launch), "running.json")


#: The files running.json of the crews that are at work in this process -> the crew.
_at_work: dict[str, LocalCrew] = {}

#: Times that a server of blocks is restarted, where neither `retries` nor a job's number of requeues limits it.
RESTARTED = 5


def is_at_work(path: str) -> bool:
    """Whether a crew of this process is at work whose running.json is `path`."""
    return path in _at_work


def stop_at_work(path: str) -> None:
    """Let the crew of this process stop whose running.json is `path`, as at a signal; none if it has ended."""
    if (crew := _at_work.get(path)) is not None:
        crew.signal = signal.SIGTERM


class LocalCrew(Crew):
    """Runs the ranks of a local launch, shows their progress, and writes running.json for `stagger status`.

    Servers of blocks that fail or die are restarted.
    """

    def __init__(self, launch: StageLaunch, settings: str, size: int) -> None:
        super().__init__(settings, launch.ranks, size)
        self.launch = launch
        self.heartbeat = 0.0
        self.written = ""
        beside = bool(launch.stage.record.spec.users_of(launch.stage.name))
        self.progress = Progress(launch.stage.name, len(launch.ranks), bar=not beside)
        self.restarts: Counter[int] = Counter()
        retries, blocks = launch.stage.spec.retries, launch.stage.spec.blocks
        self.most_restarts = 0 if blocks is None else retries.max if retries else RESTARTED

    def run(self) -> None:
        path = running_path(self.launch.stage.folder, self.launch.number)
        _at_work[path] = self
        try:
            with self.progress:
                super().run()
        finally:
            del _at_work[path]

    def restart(self, rank: int) -> int:
        return self.restarts[rank]

    def starts_again(self, rank: int, why: str) -> bool:
        """Put a server that is lost back among those that wait, unless it was restarted often enough."""
        if self.is_stopping() or self.restarts[rank] >= self.most_restarts:
            return False
        self.restarts[rank] += 1
        self.waiting.append(rank)
        logger.warning(f"server {rank} {why}: restart {self.restarts[rank]} of {self.most_restarts}")
        return True

    def ended(self, rank: int, answer: list[bytes]) -> None:
        failed = answer[0] == b"failed"
        if not failed or not self.starts_again(rank, "failed"):
            self.progress.advance(failed=failed)

    def died(self, rank: int, pid: int, status: int) -> None:
        reason = death_reason(status)
        logger.error(f"rank {rank}: its worker process {pid} {reason}")
        death = {"kind": "killed", "error": f"worker process {pid} {reason}"}
        record_death(self.launch, rank, pid, death, self.restarts[rank])
        if not self.starts_again(rank, "died"):
            self.progress.advance(failed=True)

    def stopped(self, rank: int, answer: list[bytes], pid: int) -> None:
        if not answer:
            name = self.stop_signal.name
            error = f"stopped by {name}; worker process {pid} did not stop in time, and was killed"
            death = {"kind": "interrupted", "error": error, "signal": name}
            record_death(self.launch, rank, pid, death, self.restarts[rank])

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


def record_death(launch: StageLaunch, rank: int, pid: int, ending: dict[str, str], restart: int) -> None:
    """Write the failure record of a rank whose process died before it could. `ending` has its kind and its error."""
    attempt = attempt_name(launch.number, restart)
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
