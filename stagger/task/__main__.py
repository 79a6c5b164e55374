"""The entry point of every task: `python -I -m stagger.task SETTINGS RANKS`.

A Slurm job names its ranks. A worker of the local executor passes `-`, and is handed one rank a line on standard input.
From here on a task goes through attempt.py beside this file, and stagger/pipeline/chain.py. A test holds what it may
import.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import zlib
from collections.abc import Iterable
from types import FrameType
from typing import TYPE_CHECKING

from stagger.errors import Interrupted, StaggerError, exit_status_of
from stagger.pipeline.chain import add_import_path
from stagger.pipeline.task_context import StopFlag
from stagger.ranks import parse_ranks
from stagger.storage.storage import Storage
from stagger.task import TaskSettings
from stagger.task.attempt import Attempt, Job
from stagger.task.attempt_log import log

if TYPE_CHECKING:
    import queue

#: Signals that ask a task to stop: a cancelled or preempted job, and the warning before a job's time limit.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)

#: Seconds that a local worker has to end its rank when its parent has died.
ORPHAN_S = 10.0


def main(arguments: list[str]) -> int:
    """Run the ranks. 0 when all are done, 1 when one failed, 128 + n when signal n stopped the task."""
    stop = StopFlag()
    install_handlers(stop)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr] # A log is read while it grows.
    settings = TaskSettings.from_json(arguments[0])
    add_import_path([*settings.import_path, *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    storage = Storage(settings.storage_options, retry_s=settings.retry_seconds)
    storage.check = stop.check
    try:
        if arguments[1] == "-":
            return serve(settings, storage, stop, int(arguments[2]))
        return run_job(settings, storage, slurm_job(), parse_ranks(arguments[1]), stop)
    except Interrupted as error:
        return error.exit_status


def run_job(settings: TaskSettings, storage: Storage, job: Job, ranks: list[int], stop: StopFlag) -> int:
    """What `main` returns for a Slurm job; one that has to stop before its end asks Slurm to start it again."""
    try:
        status = run_ranks(settings, storage, job, ranks, stop)
    except Interrupted as error:
        # On several nodes SIGTERM may mean that another process of the rank has failed; Slurm preempts by itself.
        if job.process == 0 and (job.processes == 1 or error.signal == signal.SIGUSR2):
            come_back(settings, job, error.signal.name)
        raise
    keep_place(job.script_started + job.delay_s + settings.hold_s - time.time(), status, stop)
    return status


def come_back(settings: TaskSettings, job: Job, reason: str) -> None:
    """Have this job queued again, if it is preempted or at the end of its time, and not cancelled."""
    from stagger.slurm.own_job import TIME_IS_UP_S, job_state, requeue

    try:
        state, left_s = job_state(job.id)
        if state != "RUNNING":
            log(f"stopped by {reason}; Slurm calls the job {state}")
        elif job.restart >= settings.max_requeues:
            log(f"stopped by {reason}; not queued again after {job.restart} times (executor.max_requeues)", "WARNING")
        elif left_s is not None and left_s < TIME_IS_UP_S and not job.advanced:
            log(f"stopped by {reason}, with nothing done in the job's time: it would come no further again", "WARNING")
        else:
            requeue(job.id)
            log(f"stopped by {reason}; queued again, for the {job.restart + 1}. time")
    except StaggerError as error:
        log(f"stopped by {reason}; it cannot be queued again: {error}", "WARNING")


def install_handlers(stop: StopFlag) -> None:
    def note(number: int, _frame: FrameType | None) -> None:
        stop.signal = signal.Signals(number)

    for number in STOP_SIGNALS:
        signal.signal(number, note)


def run_ranks(settings: TaskSettings, storage: Storage, job: Job, ranks: Iterable[int], stop: StopFlag) -> int:
    """Run ranks one after another. One that fails does not keep the others from running."""
    failed = 0
    for rank in ranks:
        stop.check()
        os.chdir(settings.cwd)  # Each time: a step of the rank before may have gone elsewhere.
        try:
            failed += not Attempt(settings, storage, job, rank, stop).run()
        except (OSError, StaggerError) as error:  # Its log or records cannot be written: say so in the job's own.
            log(f"rank {rank}: the run directory {settings.stage_dir} cannot be used: {error}", "ERROR")
            failed += 1
    return 1 if failed else 0


def keep_place(seconds: float, status: int, stop: StopFlag) -> None:
    """Let the next job of a throttled array not begin before that: it would ask too much of the storage too soon.

    A signal ends it, and the process: all ranks have ended by then, with `status`.
    """
    if seconds <= 0:
        return
    log(f"keeps its place for {seconds:.1f} s: with the next job the requests would exceed backend_limit")
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: os._exit(status))
    if stop.signal is None:
        time.sleep(seconds)


def slurm_job() -> Job:
    """The job as Slurm and the job script describe it to its processes."""
    environment = os.environ
    array = environment.get("SLURM_ARRAY_JOB_ID")
    number = f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else environment.get("SLURM_JOB_ID", "none")
    process, processes = 0, 1
    if environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        from stagger.slurm.own_job import node_process

        process, processes = node_process()
    return Job(
        id=number,
        restart=int(environment.get("SLURM_RESTART_COUNT") or 0),
        delay_s=float(environment.get("STAGGER_DELAY_S") or 0),
        script_started=float(environment.get("STAGGER_SCRIPT_STARTED") or time.time()),
        process=process,
        processes=processes,
    )


def serve(settings: TaskSettings, storage: Storage, stop: StopFlag, number: int) -> int:
    """A worker of the local executor: run the ranks that its parent writes to standard input, until that ends.

    Says `ready`, then `<rank> ok` or `<rank> failed` for each, on the descriptor that was its standard output.
    """
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    answers.write(b"ready\n")
    ranks = watched_orders(stop)
    started = time.time()
    delay = start_delay_s(settings, number)
    job = Job(id=f"local-{os.getpid()}", restart=0, delay_s=delay, script_started=started)
    while (left := started + delay - time.time()) > 0:
        stop.check()
        time.sleep(min(left, 0.1))  # Short naps: Python takes a sleep up again after a signal.
    while (rank := ranks.get()) is not None:
        answers.write(b"%d %s\n" % (rank, b"failed" if run_ranks(settings, storage, job, [rank], stop) else b"ok"))
    return 0


def start_delay_s(settings: TaskSettings, number: int) -> float:
    """Seconds that worker `number` sleeps before its first rank. A Slurm job has slept in its script already."""
    from stagger.start.delays import spread_delay_ms, uniform_delay

    if settings.start_policy == "uniform":
        return uniform_delay(settings.window_s)
    return spread_delay_ms(number, settings.window_s, zlib.crc32(settings.fingerprint.encode())) / 1000


def watched_orders(stop: StopFlag) -> queue.SimpleQueue[int | None]:
    """The ranks on standard input, then None. A parent that dies during a rank closes it, and the rank is stopped."""
    import queue
    import threading

    ranks: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def read() -> None:
        text = b""
        # Not sys.stdin: a thread that waits within its buffer is a fatal error when the interpreter ends.
        while data := os.read(0, 4096):
            *lines, text = (text + data).split(b"\n")
            for line in lines:
                ranks.put(int(line))
        ranks.put(None)
        stop.signal = stop.signal or signal.SIGTERM
        time.sleep(ORPHAN_S)  # An idle worker has ended by now; one whose step never looks up has no parent to kill it.
        os._exit(exit_status_of(signal.SIGTERM))

    threading.Thread(target=read, daemon=True).start()
    return ranks


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # A thread that a step left behind must not keep the job alive.
