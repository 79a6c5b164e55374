"""Queries Slurm about the cluster and about jobs, with one command for a whole run; cancels jobs."""

from __future__ import annotations

import getpass
import os
import re
import shutil
from collections.abc import Iterable, Sequence

from stagger.errors import StaggerError
from stagger.slurm.answers import (
    QUEUE_FORMAT,
    Limits,
    Partition,
    QueuedJob,
    parse_accounting,
    parse_config,
    parse_partitions,
    parse_queue,
    parse_time,
)
from stagger.slurm.command import run
from stagger.slurm.states import has_ended

#: Maximum number of job ids in one scancel: the controller needs time for each.
IDS_AT_ONCE = 500


def is_here() -> bool:
    """Whether this machine can submit jobs."""
    return shutil.which("sbatch") is not None


def limits() -> Limits:
    """The cluster's limits, or Slurm's defaults if Slurm cannot be queried."""
    try:
        return parse_config(run(["scontrol", "show", "config"]))
    except StaggerError as error:  # A dry run works anywhere; a real launch fails at sbatch.
        return Limits(assumed=str(error))


def submit_limit() -> int | None:
    """Number of jobs that this user's associations allow at once; None without a limit, or without accounting."""
    command = ["sacctmgr", "--noheader", "--parsable2", "show", "assoc", "where", f"user={getpass.getuser()}"]
    try:
        found = run([*command, "format=MaxSubmitJobs"], patience_s=0)
    except StaggerError:
        return None
    numbers = [int(line.strip()) for line in found.splitlines() if line.strip().isdigit()]
    return max(numbers) if numbers else None


def queue_command(names: Sequence[str]) -> list[str]:
    """The squeue command for jobs of these names. `squeue --jobs` would fail for a job that has left the queue."""
    return [
        "squeue",
        "--noheader",
        "--array",
        "--states=all",
        "--name",
        ",".join(names),
        f"--format={QUEUE_FORMAT}",
    ]


def known_jobs(names: Sequence[str]) -> list[QueuedJob]:
    """All elements of jobs with these names that the controller knows; ended ones stay for MinJobAge (300 s)."""
    return parse_queue(run(queue_command(names))) if names else []


def queue(names: Sequence[str]) -> list[QueuedJob]:
    """The jobs with these names that are queued or running."""
    return [job for job in known_jobs(names) if not has_ended(job.state)]


def accounting_command(job_ids: Sequence[str]) -> list[str]:
    """One sacct command for all arrays. Without --starttime, sacct searches from the epoch; without SLURM_BITSTR_LEN=0,
    it truncates lists of indices.
    """
    return [
        "env",
        "SLURM_BITSTR_LEN=0",
        "sacct",
        "--allocations",
        "--noheader",
        "--parsable2",
        "--duplicates",
        "--starttime=now-60days",
        "--format=JobID,State,ExitCode,NodeList",
        "--jobs",
        ",".join(job_ids),
    ]


def final_states(job_ids: Sequence[str]) -> dict[tuple[str, int], str]:
    """Final states of these arrays' elements, from accounting; empty on a cluster without accounting."""
    if not job_ids or shutil.which("sacct") is None:
        return {}
    try:
        states = parse_accounting(run(accounting_command(job_ids), patience_s=0))
    except StaggerError:
        return {}
    return {job: state for job, state in states.items() if has_ended(state)}


def accounting_answers() -> bool:
    """Whether sacct works here."""
    if shutil.which("sacct") is None:
        return False
    try:
        run(["sacct", "--noheader", "--allocations", "--starttime=now", "--format=JobID"], patience_s=0)
    except StaggerError:
        return False
    return True


def partitions() -> list[Partition]:
    """The cluster's partitions."""
    return parse_partitions(run(["sinfo", "--noheader", "--format=%R|%a|%l|%D"]))


def own_time_limit() -> int | None:
    """The time limit, in seconds, of the job that this process runs in; None outside a job, or without a limit."""
    job = os.environ.get("SLURM_JOB_ID")
    return parse_time(run(["squeue", "--noheader", "--jobs", job, "--format=%l"]).strip()) if job else None


def cancel(jobs: Iterable[str]) -> None:
    """Cancel whole arrays (`12`) or elements (`12_3`). Jobs that have already ended are ignored."""
    wanted = list(jobs)
    for start in range(0, len(wanted), IDS_AT_ONCE):
        try:
            run(["scancel", *wanted[start : start + IDS_AT_ONCE]])
        except StaggerError as error:  # scancel has still tried all the others.
            if not re.search(r"invalid job id|already complet", str(error), re.IGNORECASE):
                raise
