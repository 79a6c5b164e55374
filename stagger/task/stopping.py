"""Stops steps that do not look at the stop flag: those that work for minutes within one call or one record.

Imported when a signal has arrived, and only then.
"""

from __future__ import annotations

import os
import signal
import time

from stagger.errors import Interrupted
from stagger.pipeline.task_context import StopFlag

#: Seconds that steps have to notice the stop flag between two records; seconds between further interruptions.
PATIENCE_S = 2.0
AGAIN_S = 3.0

#: Seconds after the signal at which a task is ended whose code never returns to Python. Slurm kills 30 s after SIGTERM
#: by default (slurm.conf(5), KillWait); a local launch kills its workers after 10 s (crew.py).
LAST_S = 15.0


def watch(stop: StopFlag, main_thread: int) -> None:
    """Interrupt the steps, in the main thread, until they have ended. Runs in a thread of its own after a signal.

    The signal handler raises Interrupted while `stop.overdue` is set. When even that does not help, because code in C
    does not return, the attempt is recorded as interrupted, and the process exits.
    """
    began = time.monotonic()
    time.sleep(PATIENCE_S)
    while (number := stop.signal) is not None:
        if stop.in_steps and time.monotonic() - began > LAST_S:
            error = Interrupted(number)
            try:
                stop.record(error)
                stop.leave(error)
            finally:
                os._exit(error.exit_status)
        if stop.in_steps:
            stop.overdue = True
            signal.pthread_kill(main_thread, number)
        time.sleep(AGAIN_S)
