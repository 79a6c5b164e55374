"""A task's requests to Slurm about its own job. Imports nothing that a task need not import."""

from __future__ import annotations

import os
import subprocess

from stagger.errors import StaggerError
from stagger.slurm.answers import parse_time

#: Seconds for one command: a task that has to stop has no more time.
TIMEOUT_S = 60

#: A job that is stopped with less time left than this, in seconds, is stopped for its time limit: Slurm's warning comes
#: 120 s before the end, or up to 60 s earlier (sbatch(1), --signal).
TIME_IS_UP_S = 200


def job_state(element: str) -> tuple[str, int | None]:
    """The state of a job, and the seconds that it has left (None without a limit). `element` is `12_3`, or `12`."""
    state, _, left = _run("squeue", "--noheader", "--jobs", element, "--format=%T|%L").strip().partition("|")
    return state, parse_time(left)


def any_alive(jobs: list[str]) -> bool:
    """Whether one of these jobs or arrays is queued or running. Raises StaggerError when Slurm does not answer."""
    try:
        states = _run("squeue", "--noheader", "--all", f"--jobs={','.join(jobs)}", "--format=%T").split()
    except StaggerError as error:
        if "Invalid job id" in str(error):  # The controller has forgotten them all.
            return False
        raise
    from stagger.slurm.states import has_ended  # Imported late: hardly any task needs it.

    return any(not has_ended(state) for state in states)


def own_restarts() -> int:
    """How often Slurm has requeued the job of this process; 0 outside of jobs."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def has_ended_since(element: str, restarts: int) -> bool:
    """Whether the processes of one run of a job have ended. `restarts`: how often the job had been requeued before it.

    They have when the job has ended, is queued again, or was requeued once more. False while Slurm does not answer. No
    clocks are compared: those of two nodes may differ by minutes, and Slurm does not count the time for which a job was
    suspended.
    """
    from stagger.slurm.states import has_ended, is_queued  # Imported late: hardly any task needs it.

    try:
        said = _run("squeue", "--noheader", "--all", f"--jobs={element}", "--Format=State:32,RestartCnt:12").split()
    except StaggerError as error:
        return "Invalid job id" in str(error)  # The controller has forgotten it.
    if not said:
        return True
    state, *count = said
    return has_ended(state) or is_queued(state) or (len(count) == 1 and count[0] != str(restarts))


def requeue(element: str) -> None:
    """Requeue a job. `element` names an array's element as `12_3`: a bare number could mean the whole array."""
    _run("scontrol", "requeue", element)


def _run(*command: str) -> str:
    # Without the clusters that the launch chose from, and the user's defaults: the job is on this node's cluster.
    own = {k: v for k, v in os.environ.items() if not k.endswith("_CLUSTERS") and not k.startswith("SQUEUE_")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=own, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StaggerError(f"{command[0]} does not work on this node: {error}") from error
    if done.returncode:
        raise StaggerError(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout


def node_process() -> tuple[int, int]:
    """(number, count) of this process among the processes of a task on several nodes; (0, 1) on one node.

    On several nodes, also set the variables that torch.distributed reads: RANK, WORLD_SIZE, MASTER_ADDR, ...
    """
    processes = int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1)
    if processes == 1:
        return 0, 1
    os.environ["SUBMITIT_EXECUTOR"] = "slurm"  # Makes submitit's JobEnvironment read Slurm's variables.
    from submitit.helpers import TorchDistributedEnvironment

    return TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True).rank, processes
