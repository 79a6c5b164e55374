"""What a task asks Slurm about its own job, and tells it. Nothing is imported here that a task need not import."""

from __future__ import annotations

import os
import subprocess

from stagger.errors import StaggerError
from stagger.slurm.answers import parse_time

#: A task that has to stop has no more time than this for a question, in seconds.
TIMEOUT_S = 60

#: A job with less time left than this, in seconds, was stopped because its time is up: Slurm's warning comes 120 s
#: before the end, or up to 60 s sooner (sbatch(1), --signal).
TIME_IS_UP_S = 200


def job_state(element: str) -> tuple[str, int | None]:
    """The job's state, and the seconds that it has left, None without a limit. `element`: `12_3`, or `12`."""
    state, _, left = _run("squeue", "--noheader", "--jobs", element, "--format=%T|%L").strip().partition("|")
    return state, parse_time(left)


def requeue(element: str) -> None:
    """Have Slurm start the job again. The bare number of an array's job could mean every job of the array."""
    _run("scontrol", "requeue", element)


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StaggerError(f"{command[0]} does not work on this node: {error}") from error
    if done.returncode:
        raise StaggerError(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout


def node_process() -> tuple[int, int]:
    """(number, count) of this process among those of a task on several nodes; (0, 1) on one.

    On several, the variables are set that torch.distributed and its like look for: RANK, WORLD_SIZE, MASTER_ADDR, ...
    """
    processes = int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1)
    if processes == 1:
        return 0, 1
    os.environ["SUBMITIT_EXECUTOR"] = "slurm"  # By this its JobEnvironment knows whose variables to read.
    from submitit.helpers import TorchDistributedEnvironment

    return TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True).rank, processes
