"""The entry point of every task: `python -I -m stagger.task SETTINGS RANKS`.

Job scripts and crews start it from a bundle of its modules, by the command of stagger/bundle/boot.py.
SETTINGS is the path of a file (`read_argument` in stagger/task/__init__.py). A Slurm job names its ranks. A worker of
a crew (crew.py beside this file) is started with `-`, and reads one rank per line from standard input.
From here a task continues in attempt.py beside this file, and in stagger/pipeline/chain.py. A test limits which modules
it may import.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found] # `signal` makes enums of the numbers: 0.6 ms of a start.
import _thread
import contextlib
import gc
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterable
from types import FrameType
from typing import TYPE_CHECKING

from stagger.errors import Interrupted, StaggerError, exit_status_of
from stagger.pipeline.names import add_import_path
from stagger.pipeline.task_context import StopFlag
from stagger.ranks import parse_ranks
from stagger.storage.local_files import SHARED_UMASK
from stagger.storage.storage import Storage
from stagger.task import CREW, IN_JOB, Job, TaskSettings
from stagger.task.attempt import Attempt
from stagger.task.attempt_log import log
from stagger.task.making_steps import handed_on

if TYPE_CHECKING:
    import queue

#: Signals that ask a task to stop: for a cancelled or preempted job, and shortly before a job's time limit.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)

#: Seconds that a worker has to end its rank after its parent has died.
ORPHAN_S = 10.0


def main(arguments: list[str]) -> int:
    """Run the ranks. Returns 0 when all are done, 1 when one failed, 128 + n when signal n stopped the task."""
    gc.freeze()  # What modules have made stays: the first collection would look at all of it.
    gc.enable()  # Of a task that runs from a bundle, it was disabled while modules were imported.
    stop = StopFlag()
    install_handlers(stop)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr] # Logs are read while they grow.
    try:
        settings = TaskSettings.of(arguments[0], stop.check)
    except Interrupted as error:
        return error.exit_status
    except StaggerError as error:
        log(str(error), "ERROR")
        return 1
    add_import_path([*settings.import_path, *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    if settings.shared:
        os.umask(SHARED_UMASK)
    storage = Storage(settings.storage_options, retry_s=settings.retry_seconds, shared=settings.shared)
    storage.check = stop.check
    try:
        if arguments[1] == "-":
            return serve(settings, storage, stop, arguments[2])
        ranks = parse_ranks(arguments[1])
        if order := os.environ.pop(CREW, ""):
            return run_crew(order, arguments[0], settings, storage, ranks, stop)
        return run_job(settings, slurm_job(), lambda job: run_ranks(settings, storage, job, ranks, stop), stop)
    except Interrupted as error:
        return error.exit_status


def run_crew(
    order: str, argument: str, settings: TaskSettings, storage: Storage, ranks: list[int], stop: StopFlag
) -> int:
    """Run a Slurm job's ranks beside one another; returns as `main`."""
    from stagger.task.job_crew import crew_of, own_node

    node, nodes = own_node()
    job = slurm_job()

    def work(job: Job) -> int:
        return crew_of(order, argument, settings, storage, job, ranks, node, nodes).work(stop)

    return run_job(settings, job, work, stop) if nodes == 1 else work(job)


def run_job(settings: TaskSettings, job: Job, work: Callable[[Job], int], stop: StopFlag) -> int:
    """Run a Slurm job's ranks by `work`; returns as `main`. A job that has to stop early asks Slurm to requeue it."""

    def leave(error: Interrupted) -> None:
        # In a job of several processes, SIGTERM may mean that another one failed; Slurm itself requeues preempted jobs.
        if job.process == 0 and (job.processes == 1 or error.signal == signal.SIGUSR2):
            come_back(settings, job, error.signal.name, planned=stop.planned)

    stop.leave = leave
    try:
        status = work(job)
    except Interrupted as error:
        leave(error)
        raise
    keep_place(job.script_started + job.delay_s + settings.hold_s - time.time(), status, stop)
    return status


def come_back(settings: TaskSettings, job: Job, reason: str, *, planned: bool = False) -> None:
    """Requeue this job if it was preempted or reached its time limit, but not if it was cancelled.

    A `planned` end is no failure: the number of requeues does not limit it, nor need the job have got anything done.
    """
    from stagger.slurm.own_job import TIME_IS_UP_S, job_state, requeue

    try:
        state, left_s = job_state(job.id)
        if state != "RUNNING":
            log(f"stopped by {reason}; not requeued, because the job's state is {state}")
        elif planned:
            requeue(job.id)
            log(f"requeued as planned (requeue {job.restart + 1})")
        elif job.restart >= settings.max_requeues:
            log(f"stopped by {reason}; not requeued after {job.restart} requeues (executor.max_requeues)", "WARNING")
        elif left_s is not None and left_s < TIME_IS_UP_S and not job.advanced:
            log(
                f"stopped by {reason}; not requeued: the job got nothing done in its time limit; raise executor.time",
                "WARNING",
            )
        else:
            requeue(job.id)
            log(f"stopped by {reason}; requeued (requeue {job.restart + 1})")
    except StaggerError as error:
        log(f"stopped by {reason}; the requeue failed: {error}", "WARNING")


def install_handlers(stop: StopFlag) -> None:
    """Note stop signals in `stop`. Processes that steps fork get the default actions of these signals back."""
    main_thread = _thread.get_ident()

    def note(number: int, _frame: FrameType | None) -> None:
        if stop.overdue and stop.in_steps:
            stop.check()
        if stop.signal is None:  # Without a lock: the signal may have come while `threading` holds it.
            _thread.start_new_thread(_watch, (stop, main_thread))
        stop.signal = number

    def reset() -> None:
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is note:
                signal.signal(number, signal.SIG_DFL)

    for number in STOP_SIGNALS:
        signal.signal(number, note)
    os.register_at_fork(after_in_child=reset)


def _watch(stop: StopFlag, main_thread: int) -> None:
    from stagger.task.stopping import watch

    watch(stop, main_thread)


def run_ranks(settings: TaskSettings, storage: Storage, job: Job, ranks: Iterable[int], stop: StopFlag) -> int:
    """Run ranks one after another. A failed rank does not prevent the later ones. Returns 0, or 1 if any failed."""
    failed = 0
    for rank in ranks:
        stop.check()
        os.chdir(settings.cwd)  # For each rank: a step of the previous one may have changed it.
        try:
            attempt = Attempt(settings, storage, job, rank, stop)
            stop.record = attempt.record_failure
            failed += not attempt.run()
        except (OSError, StaggerError) as error:  # The rank's log or record cannot be written: use the job's log.
            log(f"rank {rank}: the run directory {settings.stage_dir} cannot be used: {error}", "ERROR")
            failed += 1
    return 1 if failed else 0


def keep_place(seconds: float, status: int, stop: StopFlag) -> None:
    """Hold this job's slot for `seconds` more; else the next job of the array would start too early for backend_limit.

    All ranks have ended by now: a signal ends the process at once, with exit status `status`.
    """
    if seconds <= 0:
        return
    log(f"holds its slot for {seconds:.1f} s: an earlier start of the next job would exceed backend_limit")
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: os._exit(status))
    if stop.signal is None:
        time.sleep(seconds)


def slurm_job() -> Job:
    """The job, as described by the environment variables of Slurm and the job script."""
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


def serve(settings: TaskSettings, storage: Storage, stop: StopFlag, argument: str) -> int:
    """A worker of a crew: run the ranks that its parent writes to standard input, until that ends.

    Each line is a rank, and how often the crew has restarted it.

    To its original standard output it writes `ready`, then for each rank `<rank> ok`, `<rank> failed` or
    `<rank> stopped`; after it ` advanced` once it has done work that need not be repeated, and ` keeps` if its steps
    have handed something on to those of the next rank.
    """
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    answers.write(b"ready\n")
    ranks = watched_orders(stop)
    parent = os.getppid()
    job = slurm_job() if argument == IN_JOB else local_job(settings, int(argument), stop)
    first = True
    try:
        while (order := ranks.get()) is not None:
            rank, restart = order
            job.restart = restart if argument != IN_JOB else job.restart
            if not first:
                forget_peak()
            first = False
            end = "stopped"
            try:
                end = "failed" if run_ranks(settings, storage, job, [rank], stop) else "ok"
            finally:
                also = " advanced" * job.advanced + " keeps" * bool(handed_on())
                answers.write(f"{rank} {end}{also}\n".encode())
    finally:
        end_orphans(parent)
    return 0


def end_orphans(parent: int) -> None:
    """Kill this worker with the processes that its steps left behind, if its crew is dead: nobody else would."""
    if os.getppid() != parent and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)


def forget_peak() -> None:
    """Reset this process's peak of resident memory, so that a record has the peak of its own rank (proc(5))."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "wb", buffering=0) as file:
        file.write(b"5")


def local_job(settings: TaskSettings, number: int, stop: StopFlag) -> Job:
    """Sleep out the start delay of local worker `number`. (A Slurm job has already slept in its script.)"""
    started = time.time()
    delay = start_delay_s(settings, number)
    while (left := started + delay - time.time()) > 0:
        stop.check()
        time.sleep(min(left, 0.1))  # Short naps: Python resumes a sleep that a signal interrupted.
    return Job(id=f"local-{os.getpid()}", restart=0, delay_s=delay, script_started=started)


def start_delay_s(settings: TaskSettings, number: int) -> float:
    """Seconds that worker `number` sleeps before its first rank."""
    from stagger.start.delays import spread_delay_ms, uniform_delay

    if settings.start_policy == "uniform":
        return uniform_delay(settings.window_s)
    return spread_delay_ms(number, settings.window_s, zlib.crc32(settings.fingerprint.encode())) / 1000


def watched_orders(stop: StopFlag) -> queue.SimpleQueue[tuple[int, int] | None]:
    """The ranks from standard input with their restarts, then None.

    When the parent dies, standard input ends, and the rank is stopped.
    """
    import queue
    import threading

    ranks: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
    parent = os.getppid()

    def read() -> None:
        text = b""
        # Not sys.stdin: a thread blocked inside its buffer is a fatal error at interpreter exit.
        while data := os.read(0, 4096):
            *lines, text = (text + data).split(b"\n")
            for line in lines:
                rank, _, restart = line.partition(b" ")
                ranks.put((int(rank), int(restart or 0)))
        ranks.put(None)
        stop.signal = stop.signal or signal.SIGTERM
        time.sleep(ORPHAN_S)  # An idle worker has exited by now; a step that never checks for a stop has to be killed.
        end_orphans(parent)
        os._exit(exit_status_of(signal.SIGTERM))

    threading.Thread(target=read, daemon=True).start()
    return ranks


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # A thread left behind by a step must not keep the job alive.
