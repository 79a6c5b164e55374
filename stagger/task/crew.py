"""A crew: worker processes on one machine that run ranks beside one another, each started once.

The local executor runs its ranks with a crew, and so does a Slurm job with `ranks_at_once`.
"""

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
from collections.abc import Iterator, Sequence

from stagger.bundle import task_arguments
from stagger.errors import Interrupted, StaggerError

#: Seconds that a worker has to end after it was asked to, before it is killed.
GRACE_S = 10.0

#: Seconds between two looks at workers that are about to end.
LOOK_AGAIN_S = 0.02

#: Most seconds between two calls of `Crew.beat`.
HEARTBEAT_S = 0.5

#: Files that a crew holds open for each worker, and for everything else. Limits of 1024 are common.
FILES_PER_WORKER, OTHER_FILES = 3, 256

#: The launch is abandoned after this many workers in a row have died before they were ready.
MAX_STILLBORN = 3


class Worker:
    """One worker process and the rank it runs now. No two workers of a crew have the same slot at the same time."""

    def __init__(self, settings: str, argument: str, slot: int, environment: dict[str, str] | None) -> None:
        # In a session of its own, so that Ctrl-C reaches only the parent, which then stops the workers.
        self.process = subprocess.Popen(
            [sys.executable, *task_arguments(), settings, "-", argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            env=environment,
        )
        self.slot = slot
        # Becomes readable when the worker dies, even if a child of it keeps its standard output open.
        self.pidfd = open_pidfd(self.process.pid)
        self.silent = False
        self.rank: int | None = None
        self.ready = False
        #: Whether it keeps something for the next rank (`kept` in hooks.py).
        self.keeps = False

    def give(self, rank: int, restart: int = 0) -> None:
        """Let the worker run a rank, which has been restarted so often."""
        assert self.process.stdin is not None
        self.rank = rank
        with contextlib.suppress(BrokenPipeError):  # The worker has died; the selector reports that.
            self.process.stdin.write(b"%d %d\n" % (rank, restart))

    def answers(self) -> list[bytes]:
        """The lines it has written: `ready` once, then how each rank ended. Sets `silent` at the end of its output."""
        assert self.process.stdout is not None
        said: bytes | None = self.process.stdout.read(256)
        self.silent = said == b""
        return (said or b"").splitlines()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the worker alone. (`Popen.send_signal` would also wait for a dead one.)"""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        """Kill the worker and the processes that its steps started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def has_ended(self) -> bool:
        """Whether the worker has ended. Its process id stays its own, and its group's, until `close`."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def close(self) -> int:
        """Close the input of an idle or dead worker and wait until it has ended. Returns its exit status.

        Kills it after GRACE_S seconds, and in any case the processes that its steps have left behind.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        deadline = time.monotonic() + GRACE_S
        while not self.has_ended() and time.monotonic() < deadline:
            time.sleep(LOOK_AGAIN_S)
        self.kill()
        status = self.process.wait()
        self.process.stdout.close()
        if self.pidfd is not None:
            os.close(self.pidfd)
        return status


def allow_files(count: int) -> None:
    """Raise this process's limit of open files, if it can be raised, to `count` and some more for everything else."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def open_pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when a process dies; None where the kernel has none (before 5.3: RHEL 8)."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


class Crew:
    """Workers that run ranks: hands out the next rank to the next free worker, and replaces workers that die.

    A subclass learns how ranks end from `ended`, `died` and `beat`.

    Args:
        settings: the path of the workers' settings.
        ranks: the ranks, in the order in which they are handed out.
        size: the number of workers at once.
    """

    #: Signals that stop the crew.
    STOP_SIGNALS: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, settings: str, ranks: Sequence[int], size: int) -> None:
        self.settings = settings
        self.waiting = deque(ranks)
        self.workers: list[Worker] = []
        self.size = min(size, len(ranks))
        self.slots = list(range(self.size))
        self.hired = 0
        self.stillborn = 0
        self.selector = selectors.DefaultSelector()
        self.signal: int | None = None
        self.signals = 0

    # ---- What a subclass decides ----

    def argument(self, number: int) -> str:
        """The last argument of the `number`-th worker's command."""
        return str(number)

    def environment(self, slot: int) -> dict[str, str] | None:
        """The environment of a worker; None for the crew's own."""
        return None

    def restart(self, rank: int) -> int:
        """How often a rank that is handed out now has been restarted; for Slurm jobs, Slurm counts."""
        return 0

    def is_worn(self, worker: Worker) -> bool:
        """Whether a new worker should run the next rank in place of this one."""
        return False

    @property
    def stop_signal(self) -> signal.Signals:
        """The signal that asks the workers to stop."""
        return signal.SIGTERM

    def grace_s(self) -> float:
        """Seconds that the workers have to stop, before they are killed."""
        return GRACE_S

    # ---- What a subclass learns ----

    def hired_one(self, worker: Worker) -> None:
        """A worker has been started."""

    def ended(self, rank: int, answer: list[bytes]) -> None:
        """A rank has ended. The first word of `answer` is `ok` or `failed`."""

    def died(self, rank: int, pid: int, status: int) -> None:
        """The worker process of a rank died before the rank ended. `status` is its exit status."""

    def has_quit(self, rank: int, answer: list[bytes], pid: int) -> bool:
        """Whether a worker that somebody else stopped has quit its rank; otherwise it is about to die."""
        return False

    def stopped(self, rank: int, answer: list[bytes], pid: int) -> None:
        """A worker has stopped its rank because the crew stops. `answer` is empty if the worker was killed."""

    def beat(self, *, last: bool = False) -> None:
        """Called at least every HEARTBEAT_S seconds while the crew works, and once at its end."""

    # ---- The work ----

    def is_stopping(self) -> bool:
        return self.signal is not None

    @property
    def running(self) -> list[int]:
        """The ranks that workers run now."""
        return [worker.rank for worker in self.workers if worker.rank is not None]

    def run(self) -> None:
        """Run all ranks.

        Raises Interrupted after a signal of STOP_SIGNALS, once the workers have ended. Raises StaggerError when
        MAX_STILLBORN workers in a row died at their start.
        """
        allow_files(FILES_PER_WORKER * self.size)
        with self._heed_signals():
            try:
                self._work()
            finally:
                self._stop()
        self.selector.close()
        if self.signal is not None:
            raise Interrupted(signal.Signals(self.signal))

    @contextlib.contextmanager
    def _heed_signals(self) -> Iterator[None]:
        """Note the signals, and wake the selector. Does nothing in other threads: they get no signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wakeup, wakeup_write = os.pipe()
        os.set_blocking(wakeup_write, False)
        self.selector.register(wakeup, selectors.EVENT_READ)
        previous = signal.set_wakeup_fd(wakeup_write)
        handlers = {number: signal.signal(number, self._note_signal) for number in self.STOP_SIGNALS}
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
        while self.workers and not self.is_stopping():
            self.beat()
            for key, _ in self.selector.select(timeout=HEARTBEAT_S):
                if self.is_stopping():  # Slurm may have signalled the workers, too: they stop, and do not die.
                    break
                worker = key.data
                if isinstance(worker, Worker) and worker in self.workers:
                    self._hear(worker, died=key.fd == worker.pidfd)
        self.beat(last=True)

    def _hire(self) -> None:
        slot = self.slots.pop(0)
        worker = Worker(self.settings, self.argument(self.hired), slot, self.environment(slot))
        self.hired += 1
        assert worker.process.stdout is not None
        self.workers.append(worker)
        os.set_blocking(worker.process.stdout.fileno(), False)
        self.selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        if worker.pidfd is not None:
            self.selector.register(worker.pidfd, selectors.EVENT_READ, worker)
        self.hired_one(worker)
        self._give(worker)

    def _give(self, worker: Worker) -> None:
        rank = self.waiting.popleft()
        worker.give(rank, self.restart(rank))

    def _hear(self, worker: Worker, died: bool) -> None:
        """Take a worker's answers, also those it wrote before it died, and replace it if it died."""
        for rank, *words in map(bytes.split, worker.answers()):
            if rank == b"ready":
                worker.ready = True
                self.stillborn = 0
            elif words[0] == b"stopped":  # Not by the crew.
                if self.has_quit(int(rank), words, worker.process.pid):
                    worker.rank = None
            else:
                worker.rank = None
                worker.keeps = b"keeps" in words
                self.ended(int(rank), words)
                if not died:
                    self._next(worker)
        if (died or (worker.silent and worker.pidfd is None)) and worker in self.workers:
            self._bury(worker)

    def _next(self, worker: Worker) -> None:
        if self.waiting and not self.is_worn(worker):
            self._give(worker)
            return
        self._dismiss(worker)
        if self.waiting:
            self._hire()

    def _dismiss(self, worker: Worker) -> int:
        self.selector.unregister(worker.process.stdout)  # type: ignore[arg-type]
        if worker.pidfd is not None:
            self.selector.unregister(worker.pidfd)
        self.workers.remove(worker)
        self.slots.append(worker.slot)
        return worker.close()

    def _bury(self, worker: Worker) -> None:
        """Report a dead worker's rank, and start a new worker if ranks are left."""
        status = self._dismiss(worker)
        if worker.rank is not None:
            self.died(worker.rank, worker.process.pid, status)
        if not worker.ready:
            self.stillborn += 1
        if self.stillborn >= MAX_STILLBORN:
            self.waiting.clear()
            raise StaggerError(f"{MAX_STILLBORN} worker processes in a row died as they started; see the lines above.")
        if self.waiting:
            self._hire()

    def _stop(self) -> None:
        """Ask the remaining workers to stop, and kill them after `grace_s` seconds or at a second signal."""
        for worker in self.workers:
            worker.send(self.stop_signal)
        if not self.workers:
            return
        deadline = time.monotonic() + self.grace_s()
        while not all(worker.has_ended() for worker in self.workers):
            if self.is_urgent or time.monotonic() > deadline:
                for worker in self.workers:
                    worker.kill()
            time.sleep(LOOK_AGAIN_S)
        for worker in self.workers:
            for rank, *words in map(bytes.split, worker.answers()):
                if words and words[0] != b"stopped":
                    self.ended(int(rank), words)
                    worker.rank = None
                elif words:
                    self.stopped(int(rank), words, worker.process.pid)
                    worker.rank = None
            worker.close()
            if worker.rank is not None:
                self.stopped(worker.rank, [], worker.process.pid)
        self.workers.clear()

    @property
    def is_urgent(self) -> bool:
        """Whether the workers must be killed at once."""
        return self.signals > 1


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
