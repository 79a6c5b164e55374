"""Queries Slurm about the cluster and about jobs, with one command for a whole run; cancels jobs."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import time
from collections.abc import Iterable, Sequence
from datetime import datetime

from stagger.errors import StaggerError
from stagger.slurm.answers import (
    QUEUE_FORMAT,
    Accounted,
    Limits,
    Partition,
    QueuedJob,
    parse_accounting,
    parse_config,
    parse_partitions,
    parse_queue,
    parse_time,
)
from stagger.slurm.command import PATIENT, SlurmFailed, Wait, run
from stagger.slurm.states import has_ended

#: Messages with which scancel skips jobs that have ended.
ENDED = re.compile(r"invalid job id|already complet", re.IGNORECASE)

#: Seconds by which the clocks of machines may differ.
CLOCK_S = 3600.0

#: For queries that a command can do without: it does not wait for a Slurm that is busy.
ONCE = Wait(answer_s=PATIENT.answer_s)

#: Maximum number of job ids in one scancel: the controller needs time for each.
IDS_AT_ONCE = 500


def is_here() -> bool:
    """Whether this machine can submit jobs."""
    return shutil.which("sbatch") is not None


def has_queue() -> bool:
    """Whether this machine can ask which jobs are queued or running."""
    return shutil.which("squeue") is not None


def limits(cluster: str = "") -> Limits:
    """The limits of a cluster (of several, of this machine's), or Slurm's defaults if Slurm cannot be queried."""
    try:
        return parse_config(run(["scontrol", *on("" if several(cluster) else cluster), "show", "config"]))
    except StaggerError as error:  # A dry run works anywhere; a real launch fails at sbatch.
        return Limits(assumed=str(error))


def submit_limit() -> int | None:
    """Number of jobs that this user's associations allow at once; None without a limit, or without accounting."""
    command = ["sacctmgr", "--noheader", "--parsable2", "show", "assoc", "where", f"user={own_user()}"]
    try:
        found = run([*command, "format=MaxSubmitJobs"], ONCE)
    except StaggerError:
        return None
    numbers = [int(line.strip()) for line in found.splitlines() if line.strip().isdigit()]
    return max(numbers) if numbers else None


def own_user() -> str:
    """The name of the user whose jobs this process submits; the number of one without a name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def sees_all_users() -> bool:
    """Whether Slurm shows this user the jobs of others, too (PrivateData in slurm.conf)."""
    return os.geteuid() == 0 or not limits().private


def on(cluster: str) -> list[str]:
    """The option that sends a command to this cluster; none for the one that this machine, or job, belongs to.

    With the option, commands ask slurmdbd for the cluster's address: compute nodes may not reach it.
    """
    return [f"--clusters={cluster}"] if cluster not in ("", os.environ.get("SLURM_CLUSTER_NAME")) else []


def queue_command(users: Sequence[str], cluster: str = "") -> list[str]:
    """The squeue command for the jobs of these users, on one cluster, or on several, separated by commas.

    It selects no job by its name, which a plug-in may have changed, nor by its id: `--jobs` fails if the job has left
    the queue, and excludes jobs whose ids are not known yet. With `--all` it also lists jobs in hidden partitions. The
    controller sends only the jobs of the user, if it is one.
    """
    heading = [] if several(cluster) else ["--noheader"]
    what = ["--all", "--array", "--states=all", f"--user={','.join(users)}", f"--format={QUEUE_FORMAT}"]
    return ["squeue", *on(cluster), *heading, *what]


def several(cluster: str) -> bool:
    """Whether this value of --clusters can name more than one cluster. squeue's headings then name them."""
    return "," in cluster or cluster == "all"


def known_jobs(users: Sequence[str] = (), cluster: str = "", wait: Wait = PATIENT) -> list[QueuedJob]:
    """All elements of jobs of these users (by default, of this user) that the controller knows.

    Those that have ended stay for MinJobAge (300 s).
    """
    only = "" if several(cluster) else cluster
    return parse_queue(run(queue_command(users or [own_user()], cluster), wait), only)


def queue(name: str) -> list[QueuedJob]:
    """The elements of this user's job with a unique name that are queued or running."""
    return [job for job in known_jobs() if job.is_called(name) and not has_ended(job.state)]


def accounting_command(job_ids: Sequence[str], since: float, cluster: str = "") -> list[str]:
    """One sacct command for all arrays, the first of them submitted at `since`, in seconds since the epoch."""
    start = datetime.fromtimestamp(max(0.0, min(since, time.time()) - CLOCK_S)).isoformat(timespec="seconds")
    what = ["--allocations", "--noheader", "--parsable2", "--duplicates", "--format=JobID,State,ExitCode,NodeList"]
    return ["sacct", *on(cluster), *what, f"--starttime={start}", f"--jobs={','.join(job_ids)}"]


def final_states(
    job_ids: Sequence[str], since: float, cluster: str = "", wait: Wait = PATIENT
) -> dict[tuple[str, int | None], Accounted]:
    """Final states of these arrays' elements, from accounting. `since` is the time of the first submission.

    Raises StaggerError when there is no accounting here, or when it does not answer.
    """
    jobs = parse_accounting(run(accounting_command(job_ids, since, cluster), wait))
    return {job: found for job, found in jobs.items() if has_ended(found.state)}


def accounting_answers() -> bool:
    """Whether sacct works here."""
    try:
        run(["sacct", "--noheader", "--allocations", "--starttime=now", "--format=JobID"], ONCE)
    except StaggerError:
        return False
    return True


def partitions() -> list[Partition]:
    """The cluster's partitions, hidden ones included."""
    return parse_partitions(run(["sinfo", "--all", "--noheader", "--format=%R|%a|%l|%D"]))


def node_names() -> set[str]:
    """The names of the cluster's nodes."""
    return set(run(["sinfo", "--all", "--noheader", "--Node", "--format=%N"]).split())


def own_time_limit() -> int | None:
    """The time limit, in seconds, of the job that this process runs in; None outside a job, or without a limit."""
    job = os.environ.get("SLURM_JOB_ID")
    return parse_time(run(["squeue", "--noheader", "--jobs", job, "--format=%l"]).strip()) if job else None


def cancel(jobs: Iterable[str], cluster: str = "") -> None:
    """Cancel whole arrays (`12`) or elements (`12_3`) on one cluster. Jobs that have already ended are ignored.

    Raises StaggerError when Slurm refuses one of them, after it has tried all the others.
    """
    wanted = list(jobs)
    refused: StaggerError | None = None
    for start in range(0, len(wanted), IDS_AT_ONCE):
        try:
            run(["scancel", *on(cluster), *wanted[start : start + IDS_AT_ONCE]])
        except SlurmFailed as error:
            if lines := [line for line in error.lines if not ENDED.search(line)]:
                refused = SlurmFailed("scancel", lines)
    if refused:
        raise refused
