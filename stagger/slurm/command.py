"""Runs Slurm's commands, and retries them with full jitter while Slurm is busy or restarts."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from stagger.backoff import full_jitter
from stagger.errors import StaggerError
from stagger.progress import busy
from stagger.terminal import logger

#: Prefixes of variables that a surrounding job or the user's defaults set. They must not affect the commands run here.
LEAKING = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SUBMITIT_")
#: Exception: the path of Slurm's own configuration.
KEPT = ("SLURM_CONF",)

#: Without it, Slurm's commands cut lists of array indices.
ADDED = {"SLURM_BITSTR_LEN": "0"}

#: Most lines of a command's errors that are shown.
SHOWN = 3

#: Messages with which Slurm fails while it is busy, restarting, or out of reach: the same command may succeed later.
BUSY = re.compile(
    r"temporarily unable|timed out|unable to contact slurm controller|zero bytes were transmitted"
    r"|resource temporarily unavailable|connection (refused|reset)|connect failure|communication connection failure"
    r"|controller not responding|in standby mode|unexpected message|service unavailable",
    re.IGNORECASE,
)


#: Variables that name the clusters to submit to, often set by a site's modules. The first one that is set counts.
CLUSTERS = ("SBATCH_CLUSTERS", "SLURM_CLUSTERS")


@dataclass(frozen=True)
class Wait:
    """How long to wait for Slurm, in seconds: `answer_s` for one answer, `retry_s` for a Slurm that is busy."""

    answer_s: float
    retry_s: float = 0.0


#: For commands that decide by the answer: they wait as long as a restart of Slurm takes.
PATIENT = Wait(answer_s=120.0, retry_s=120.0)
#: For commands that only show something: they say what they know without Slurm instead.
BRIEF = Wait(answer_s=10.0)


class SlurmFailed(StaggerError):
    """Slurm rejected a command. `lines` is what it wrote."""

    def __init__(self, program: str, lines: list[str]) -> None:
        self.lines = lines
        super().__init__(f"{program} failed: {'; '.join(lines[:SHOWN])}")


class SlurmBusy(StaggerError):
    """Slurm did not answer, or is too busy now. A retry may succeed."""

    exit_status = 1


class UnknownCluster(StaggerError):
    """There is no such cluster, so nothing was submitted to it."""


def outside_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without the variables of a surrounding job and the user's defaults for Slurm's commands."""
    return {k: v for k, v in environment.items() if k in KEPT or not k.startswith(LEAKING)}


def wanted_clusters(script: str, environment: Mapping[str, str]) -> str:
    r"""The clusters that a script is for: its own option, or else the variable that the user or a site's module sets.

    >>> wanted_clusters("#SBATCH --clusters=east,west\n", {"SLURM_CLUSTERS": "north"})
    'east,west'
    >>> wanted_clusters("#!/bin/bash\n", {"SLURM_CLUSTERS": "north"})
    'north'
    """
    own = re.search(r"^#SBATCH\s+(?:--clus\w*[= ]|-M\s*)['\"]?([^'\"\s]+)", script, re.MULTILINE)
    return own[1] if own else next((environment[name] for name in CLUSTERS if environment.get(name)), "")


def run(command: Sequence[str], wait: Wait = PATIENT) -> str:
    """Run a Slurm command and return its output. Raises StaggerError with Slurm's own message when it fails."""
    return patiently(lambda: run_once(command, wait.answer_s), wait.retry_s)


Answer = TypeVar("Answer")


def patiently(
    call: Callable[[], Answer],
    patience_s: float,
    *,
    least_s: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] | None = None,
) -> Answer:
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


def run_once(command: Sequence[str], answer_s: float = PATIENT.answer_s) -> str:
    """Run a Slurm command once and return its output.

    Raises SlurmBusy if a retry may succeed, SlurmFailed if Slurm rejects the command, StaggerError if there is none.
    """
    program = os.path.basename(command[0])
    try:
        with busy(f"waiting for Slurm to answer {program}"):
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=answer_s,
                env={**outside_environment(os.environ), **ADDED},
                check=False,
            )
    except FileNotFoundError:
        raise StaggerError(f"There is no {program} on this machine; use a login node of the cluster.") from None
    except (OSError, ValueError) as error:  # ValueError: a damaged record has put a null byte into an argument.
        raise StaggerError(f"{program} cannot be run here: {error}.") from error
    except subprocess.TimeoutExpired:
        raise SlurmBusy(f"Slurm did not answer {program} within {answer_s:.0f} s; try again later.") from None
    if done.returncode:
        said = (line.strip().removeprefix(f"{program}: ").removeprefix("error: ") for line in done.stderr.splitlines())
        lines = [line for line in said if line]
        failed = SlurmFailed(program, list(dict.fromkeys(lines)) or [f"exit status {done.returncode}"])
        raise SlurmBusy(str(failed)) if BUSY.search(done.stderr) else failed
    return done.stdout
