"""The worker processes of a local launch."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator

from stagger.errors import Interrupted, StaggerError
from stagger.executor.base import StageLaunch
from stagger.progress import Progress
from stagger.ranks import format_ranks
from stagger.rundir.stage_folder import StageFolder, attempt_name, encode
from stagger.storage.storage import join
from stagger.terminal import logger

#: Seconds that a worker has to end after it was asked to, before it is killed.
GRACE_S = 10.0

#: Seconds between two writes of the list of running ranks, which `stagger status` reads.
HEARTBEAT_S = 0.5

#: The launch is abandoned after this many workers in a row have died before they were ready.
MAX_STILLBORN = 3


def running_path(folder: StageFolder, launch: int) -> str:
    return join(folder.launch(launch), "running.json")


class Worker:
    """One worker process and the rank it runs now."""

    def __init__(self, settings: str, number: int) -> None:
        # In a session of its own, so that Ctrl-C reaches only the parent, which then stops the workers.
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-m", "stagger.task", settings, "-", str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        # Becomes readable when the worker dies, even if a child of it keeps its standard output open.
        self.pidfd = open_pidfd(self.process.pid)
        self.silent = False
        self.rank: int | None = None
        self.ready = False

    def give(self, rank: int) -> None:
        assert self.process.stdin is not None
        self.rank = rank
        with contextlib.suppress(BrokenPipeError):  # The worker has died; the selector reports that.
            self.process.stdin.write(b"%d\n" % rank)

    def answers(self) -> list[bytes]:
        """The lines it has written: `ready` once, then how each rank ended. Sets `silent` at the end of its output."""
        assert self.process.stdout is not None
        said: bytes | None = self.process.stdout.read(256)
        self.silent = said == b""
        return (said or b"").splitlines()

    def close(self) -> int:
        """Close the input of an idle or dead worker and wait until it has ended. Returns its exit status.

        Kills it after GRACE_S seconds.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            status = self.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self.process.stdout.close()
        if self.pidfd is not None:
            os.close(self.pidfd)
        return status


def open_pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when a process dies; None where the kernel has none (before 5.3: RHEL 8)."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


class Crew:
    """The workers of one launch. Hands out ranks, replaces workers that die, and reports how each rank ended.

    `settings` is the path of their settings; `size` is the number of workers at once.
    """

    def __init__(self, launch: StageLaunch, settings: str, size: int) -> None:
        self.launch = launch
        self.settings = settings
        self.waiting = deque(launch.ranks)
        self.workers: list[Worker] = []
        self.size = size
        self.hired = 0
        self.stillborn = 0
        self.selector = selectors.DefaultSelector()
        self.signal: int | None = None
        self.signals = 0
        self.heartbeat = 0.0
        self.running = ""
        self.progress = Progress(launch.stage.name, len(launch.ranks))

    def run(self) -> None:
        """Run all ranks.

        Raises Interrupted after Ctrl-C or SIGTERM, once the workers have ended. Raises StaggerError when MAX_STILLBORN
        workers in a row died at their start.
        """
        with self._heed_signals():
            try:
                with self.progress:
                    self._work()
            finally:
                self._stop()
        self.selector.close()
        if self.signal is not None:
            raise Interrupted(signal.Signals(self.signal))

    @contextlib.contextmanager
    def _heed_signals(self) -> Iterator[None]:
        """Note Ctrl-C and SIGTERM, and wake the selector. Does nothing in other threads: they get no signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wakeup, wakeup_write = os.pipe()
        os.set_blocking(wakeup_write, False)
        self.selector.register(wakeup, selectors.EVENT_READ)
        previous = signal.set_wakeup_fd(wakeup_write)
        handlers = {number: signal.signal(number, self._note_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(previous)
            self.selector.unregister(wakeup)
            os.close(wakeup)
            os.close(wakeup_write)

    def _note_signal(self, number: int, _frame: object) -> None:
        self.signal = number
        self.signals += 1

    def _work(self) -> None:
        for _ in range(self.size):
            self._hire()
        while self.workers and self.signal is None:
            self._beat()
            for key, _ in self.selector.select(timeout=HEARTBEAT_S):
                worker = key.data
                if isinstance(worker, Worker) and worker in self.workers:
                    self._hear(worker, died=key.fd == worker.pidfd)
        self._beat(force=True)

    def _hire(self) -> None:
        worker = Worker(self.settings, self.hired)
        self.hired += 1
        assert worker.process.stdout is not None
        self.workers.append(worker)
        os.set_blocking(worker.process.stdout.fileno(), False)
        self.selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        if worker.pidfd is not None:
            self.selector.register(worker.pidfd, selectors.EVENT_READ, worker)
        worker.give(self.waiting.popleft())

    def _hear(self, worker: Worker, died: bool) -> None:
        """Take a worker's answers, also those it wrote before it died, and replace it if it died."""
        for answer in worker.answers():
            if answer == b"ready":
                worker.ready = True
                self.stillborn = 0
            else:
                worker.rank = None
                self.progress.advance(failed=answer.endswith(b"failed"))
                if not died:
                    self._next(worker)
        if (died or (worker.silent and worker.pidfd is None)) and worker in self.workers:
            self._bury(worker)

    def _next(self, worker: Worker) -> None:
        if self.waiting:
            worker.give(self.waiting.popleft())
        else:
            self._dismiss(worker)

    def _dismiss(self, worker: Worker) -> int:
        self.selector.unregister(worker.process.stdout)  # type: ignore[arg-type]
        if worker.pidfd is not None:
            self.selector.unregister(worker.pidfd)
        self.workers.remove(worker)
        return worker.close()

    def _bury(self, worker: Worker) -> None:
        """Record a dead worker's rank as failed, and start a new worker if ranks are left."""
        status = self._dismiss(worker)
        reason = death_reason(status)
        if worker.rank is not None:
            logger.error(f"rank {worker.rank}: its worker process {worker.process.pid} {reason}")
            record_death(self.launch, worker.rank, worker.process.pid, reason)
            self.progress.advance(failed=True)
        if not worker.ready:
            self.stillborn += 1
        if self.stillborn >= MAX_STILLBORN:
            self.waiting.clear()
            raise StaggerError(f"{MAX_STILLBORN} worker processes in a row died as they started; see the lines above.")
        if self.waiting:
            self._hire()

    def _beat(self, force: bool = False) -> None:
        """Write the running ranks to running.json, for `stagger status`, at most every HEARTBEAT_S seconds."""
        now = time.monotonic()
        if not force and now - self.heartbeat < HEARTBEAT_S:
            return
        self.heartbeat = now
        running = format_ranks(worker.rank for worker in self.workers if worker.rank is not None)
        if running == self.running:
            return
        self.running = running
        path = running_path(self.launch.stage.folder, self.launch.number)
        self.launch.stage.folder.storage.write(path, encode({"time": time.time(), "running": running}))

    def _stop(self) -> None:
        """Terminate the remaining workers, and kill them after GRACE_S seconds or at a second signal."""
        for worker in self.workers:
            worker.process.terminate()
        deadline = time.monotonic() + GRACE_S
        while any(worker.process.poll() is None for worker in self.workers):
            if self.signals > 1 or time.monotonic() > deadline:
                for worker in self.workers:
                    worker.process.kill()
            time.sleep(0.02)
        for worker in self.workers:
            worker.close()
        self.workers.clear()


def death_reason(status: int) -> str:
    if status == -signal.SIGKILL:
        return "was killed by SIGKILL: out of memory, unless someone killed it by hand"
    if status < 0:
        return f"was killed by {signal_name(-status)}"
    return f"ended with exit status {status}"


def signal_name(number: int) -> str:
    """`SIGSEGV`; `signal 35` for a real-time signal, which has no name.

    >>> signal_name(11), signal_name(35)
    ('SIGSEGV', 'signal 35')
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def record_death(launch: StageLaunch, rank: int, pid: int, reason: str) -> None:
    """Write the failure record of a rank whose process died before it could."""
    attempt = attempt_name(launch.number, 0)
    path = launch.stage.folder.failure(rank, attempt)
    record = {
        "rank": rank,
        "kind": "killed",
        "error": f"worker process {pid} {reason}",
        "traceback": "",
        "attempt": attempt,
        "launch": launch.number,
        "job": f"local-{pid}",
        "host": os.uname().nodename,
        "ended": time.time(),
    }
    launch.stage.folder.storage.write(path, encode(record))
