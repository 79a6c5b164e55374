"""Running one of Slurm's commands; asking again, with full jitter, when Slurm is only busy, or restarts."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from random import Random

from loguru import logger

from stagger.backoff import full_jitter
from stagger.errors import StaggerError

#: Variables of a job, and defaults for Slurm's commands, that must not leak into what is asked here.
LEAKING = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SUBMITIT_")
#: Where Slurm itself is configured.
KEPT = ("SLURM_CONF",)

#: Seconds after which a command that does not answer is given up, and for how long one is asked again.
TIMEOUT_S = 120
PATIENCE_S = 120.0

#: What Slurm says when the same command may succeed in a moment: it is busy, restarting, or out of reach.
BUSY = re.compile(
    r"temporarily unable|timed out|unable to contact slurm controller|zero bytes were transmitted"
    r"|resource temporarily unavailable|connection (refused|reset)|connect failure|communication connection failure"
    r"|controller not responding|in standby mode|unexpected message|service unavailable",
    re.IGNORECASE,
)


class SlurmBusy(StaggerError):
    """Slurm did not answer, or could not now."""

    exit_status = 1


def outside_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what a surrounding job, or the user's defaults for Slurm's commands, put there."""
    return {k: v for k, v in environment.items() if k in KEPT or not k.startswith(LEAKING)}


def run(command: Sequence[str], *, patience_s: float = PATIENCE_S) -> str:
    """A Slurm command's output. Raises StaggerError with Slurm's own words when it fails."""
    return patiently(lambda: run_once(command), patience_s)


def patiently(
    call: Callable[[], str],
    patience_s: float,
    *,
    least_s: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] | None = None,
) -> str:
    """What `call` returns, called again while Slurm is busy, for so many seconds; `least_s` pass between two calls."""
    random = Random()  # noqa: S311 # So that those who were turned away together do not come back together.
    deadline = clock() + patience_s
    failures = 0
    while True:
        try:
            return call()
        except SlurmBusy as error:
            wait = least_s + full_jitter(failures, random)
            failures += 1
            if clock() + wait > deadline:
                raise
            if failures == 1:
                logger.warning(f"{str(error).rstrip('.')}; asking again for up to {patience_s:.0f} s")
            (sleep or time.sleep)(wait)


def run_once(command: Sequence[str]) -> str:
    """A Slurm command's output. Raises SlurmBusy when it may succeed in a moment, StaggerError when it will not."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=outside_environment(os.environ),
            check=False,
        )
    except FileNotFoundError:
        raise StaggerError(f"There is no {command[0]} on this machine; use a login node of the cluster.") from None
    except subprocess.TimeoutExpired:
        raise SlurmBusy(f"Slurm did not answer {command[0]} within {TIMEOUT_S} s; try again later.") from None
    if done.returncode:
        words = done.stderr.strip().partition("\n")[0] or f"exit status {done.returncode}"
        kind = SlurmBusy if BUSY.search(done.stderr) else StaggerError
        raise kind(f"{command[0]} failed: {words}")
    return done.stdout
