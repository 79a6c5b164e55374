"""Runs the crews of a job on several nodes: `python -I -m stagger.task.several_nodes SRUN... SETTINGS RANKS`.

The command that follows starts a crew on each node (job_crew.py beside this file). This process runs on the job's first
node. It passes signals on to the crews, waits until all have stopped, and then requeues the job, once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from stagger.errors import Interrupted, StaggerError
from stagger.pipeline.task_context import StopFlag
from stagger.task import Job, TaskSettings
from stagger.task.__main__ import run_job, slurm_job
from stagger.task.attempt_log import log
from stagger.task.job_crew import PASSED_ON

#: A signal to the job's script -> the signal that srun passes on to the crews.
PASSED = {signal.SIGTERM: PASSED_ON, signal.SIGUSR2: signal.SIGUSR2}


def main(arguments: list[str]) -> int:
    """Run the command. Returns its exit status; 128 + n when signal n stopped the crews."""
    received: list[signal.Signals] = []
    for number in PASSED:
        signal.signal(number, lambda number, _: received.append(signal.Signals(number)))
    try:
        settings = TaskSettings.of(arguments[-2])
        return run_job(settings, slurm_job(), lambda job: run_crews(arguments, job, received), StopFlag())
    except StaggerError as error:
        log(str(error), "ERROR")
        return 1
    except Interrupted as error:
        return error.exit_status


def run_crews(command: list[str], job: Job, received: list[signal.Signals]) -> int:
    """Run `command` until all crews have ended. Raises Interrupted when a signal stopped one of them.

    Crews write `advanced` once they have done work that need not be repeated, and `stopped SIGNAL` when they stop.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE) as srun:
        for number in PASSED:
            signal.signal(number, lambda number, _: pass_on(srun, signal.Signals(number)))
        for number in received:
            pass_on(srun, number)
        stopped: list[signal.Signals] = []
        assert srun.stdout is not None
        for line in srun.stdout:
            word, _, value = line.decode(errors="replace").strip().partition(" ")
            if word == "advanced":
                job.advanced = True
            elif word == "stopped" and value in signal.Signals.__members__:
                stopped.append(signal.Signals[value])
            else:
                os.write(1, line)
    if stopped:
        raise Interrupted(stopped[0])
    return srun.returncode


def pass_on(srun: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to srun, which forwards it to the crews. Does nothing when it has ended."""
    srun.send_signal(PASSED[number])


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
