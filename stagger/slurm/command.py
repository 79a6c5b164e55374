"""Runs Slurm's commands, and retries them with full jitter while Slurm is busy or restarts."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from random import Random

from stagger.backoff import full_jitter
from stagger.errors import StaggerError
from stagger.terminal import logger

#: Prefixes of variables that a surrounding job or the user's defaults set. They must not affect the commands run here.
LEAKING = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SUBMITIT_")
#: Exception: the path of Slurm's own configuration.
KEPT = ("SLURM_CONF",)

#: Seconds after which a command without an answer is abandoned, and seconds for which a command is retried.
TIMEOUT_S = 120
PATIENCE_S = 120.0

#: Messages with which Slurm fails while it is busy, restarting, or out of reach: the same command may succeed later.
BUSY = re.compile(
    r"temporarily unable|timed out|unable to contact slurm controller|zero bytes were transmitted"
    r"|resource temporarily unavailable|connection (refused|reset)|connect failure|communication connection failure"
    r"|controller not responding|in standby mode|unexpected message|service unavailable",
    re.IGNORECASE,
)


class SlurmBusy(StaggerError):
    """Slurm did not answer, or is too busy now. A retry may succeed."""

    exit_status = 1


def outside_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without the variables of a surrounding job and the user's defaults for Slurm's commands."""
    return {k: v for k, v in environment.items() if k in KEPT or not k.startswith(LEAKING)}


def run(command: Sequence[str], *, patience_s: float = PATIENCE_S) -> str:
    """Run a Slurm command and return its output. Raises StaggerError with Slurm's own message when it fails."""
    return patiently(lambda: run_once(command), patience_s)


def patiently(
    call: Callable[[], str],
    patience_s: float,
    *,
    least_s: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] | None = None,
) -> str:
    """Call `call` until Slurm is no longer busy, and return its result. At least `least_s` seconds pass between calls.

    Raises SlurmBusy when Slurm is still busy after `patience_s` seconds.
    """
    random = Random()  # noqa: S311 # Unseeded: clients rejected together must not retry together.
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
                logger.warning(f"{str(error).rstrip('.')}; retrying for up to {patience_s:.0f} s")
            (sleep or time.sleep)(wait)


def run_once(command: Sequence[str]) -> str:
    """Run a Slurm command once and return its output. Raises SlurmBusy if a retry may succeed, else StaggerError."""
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
