"""The one place that talks to Slurm: command lines, the parsing of answers, and one thin runner.

Submission goes through submitit's `SlurmExecutor`, whose private hooks are touched here only;
`tests/test_slurm_room.py` holds submitit to them.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from stagger.errors import StaggerError

#: Variables of a job, and defaults for Slurm's commands, that must not leak into what is asked here.
LEAKING = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SUBMITIT_")
#: Where Slurm itself is configured.
KEPT = ("SLURM_CONF",)

#: Slurm's own default of MaxArraySize (slurm.conf(5)).
DEFAULT_MAX_ARRAY_SIZE = 1001

#: States of a job that has not started, or will start again; every other state in squeue has processes, or just had.
QUEUED = frozenset(
    {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD", "CONFIGURING"}
)
#: States in which squeue still lists a job that has ended.
ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT"}
)

#: Seconds after which a command that does not answer is given up.
TIMEOUT_S = 120


@dataclass(frozen=True)
class Limits:
    """What the cluster allows; or, where none can be asked, Slurm's defaults, and in `assumed` why."""

    max_array_size: int
    assumed: str = ""


def is_here() -> bool:
    """Whether this machine can submit jobs."""
    return shutil.which("sbatch") is not None


def outside_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what a surrounding job, or the user's defaults for Slurm's commands, put there."""
    return {k: v for k, v in environment.items() if k in KEPT or not k.startswith(LEAKING)}


def run(command: Sequence[str]) -> str:
    """A Slurm command's output. Raises StaggerError with Slurm's own words when it fails."""
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
        raise StaggerError(f"Slurm did not answer {command[0]} within {TIMEOUT_S} s; try again later.") from None
    if done.returncode:
        words = done.stderr.strip().partition("\n")[0] or f"exit status {done.returncode}"
        raise StaggerError(f"{command[0]} failed: {words}")
    return done.stdout


def limits() -> Limits:
    """The cluster's limits, or Slurm's defaults where there is no Slurm."""
    try:
        return parse_config(run(["scontrol", "show", "config"]))
    except StaggerError as error:  # A dry run works anywhere; sbatch says the same again when it comes to that.
        return Limits(DEFAULT_MAX_ARRAY_SIZE, assumed=str(error))


def parse_config(text: str) -> Limits:
    r"""From `scontrol show config`; `max_array_tasks` among the scheduler's parameters can lower the array size.

    >>> parse_config("MaxArraySize            = 1001\nSchedulerParameters     = bf_continue,max_array_tasks=500")
    Limits(max_array_size=500, assumed='')
    """
    size = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
    lowered = re.search(r"\bmax_array_tasks=(\d+)", text)
    largest = int(size[1]) if size else DEFAULT_MAX_ARRAY_SIZE
    return Limits(min(largest, int(lowered[1])) if lowered else largest)


@dataclass(frozen=True)
class QueuedJob:
    """An element of an array (or a single job, index 0) that Slurm still knows of."""

    job_id: str
    index: int
    state: str
    name: str


def queue_command(names: Sequence[str]) -> list[str]:
    """By job name: `squeue --jobs` fails for a job that has left the queue, a name is never wrong."""
    return ["squeue", "--noheader", "--array", "--states=all", "--name", ",".join(names), "--format=%F|%K|%T|%j"]


def parse_queue(text: str) -> list[QueuedJob]:
    r"""The jobs in `queue_command`'s output.

    >>> parse_queue("12|3|RUNNING|a-1\n13|N/A|PENDING|b-2\n")[1]
    QueuedJob(job_id='13', index=0, state='PENDING', name='b-2')
    """
    rows = (line.strip().split("|", 3) for line in text.splitlines() if line.strip())
    return [QueuedJob(job, int(index) if index.isdigit() else 0, state, name) for job, index, state, name in rows]


def queue(names: Sequence[str]) -> list[QueuedJob]:
    """The jobs with these names that are queued or running now."""
    if not names:
        return []
    return [job for job in parse_queue(run(queue_command(names))) if job.state not in ENDED]


def accounting_command(job_ids: Sequence[str]) -> list[str]:
    """One question for all arrays. Without -S sacct searches from the epoch; without the variable it cuts lists."""
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


def parse_accounting(text: str) -> dict[tuple[str, int], str]:
    r"""(array job id, index) -> final state, as `sacct` tells it; `CANCELLED by 0` is CANCELLED.

    >>> parse_accounting("12_3|FAILED|1:0|n1\n12_4|CANCELLED by 0|0:15|n2\n12_[5-6%2]|PENDING|0:0|None assigned\n")
    {('12', 3): 'FAILED', ('12', 4): 'CANCELLED', ('12', 5): 'PENDING', ('12', 6): 'PENDING'}
    """
    states: dict[tuple[str, int], str] = {}
    for line in text.splitlines():
        number, state, *_ = line.split("|")
        array, _, index = number.partition("_")
        for one in expand_indices(index):
            states[array, one] = state.partition(" ")[0]
    return states


def expand_indices(text: str) -> list[int]:
    """The indices in the part of a job id behind its underscore.

    >>> expand_indices("[3,5-9:2%4]"), expand_indices("7"), expand_indices("")
    ([3, 5, 7, 9], [7], [0])
    """
    indices: list[int] = []
    for part in text.strip("[]").partition("%")[0].split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if match:
            first, last, step = match.groups()
            indices.extend(range(int(first), int(last or first) + 1, int(step or 1)))
    return indices or [0]


def final_states(job_ids: Sequence[str]) -> dict[tuple[str, int], str]:
    """How accounting says that these arrays' elements ended; empty on a cluster without accounting."""
    if not job_ids or shutil.which("sacct") is None:
        return {}
    try:
        states = parse_accounting(run(accounting_command(job_ids)))
    except StaggerError:
        return {}
    return {job: state for job, state in states.items() if state in ENDED}


def cancel(job_ids: Iterable[str]) -> None:
    """Cancel whole arrays, whatever of them is left."""
    wanted = list(job_ids)
    if wanted:
        run(["scancel", *wanted])


class _Submitter(submitit.SlurmExecutor):
    """submitit's submission, with a script of ours in place of its own. No pickle, no result file."""

    def __init__(self, folder: Path, script: str) -> None:
        super().__init__(folder)
        self._script = script

    def submit_script(self) -> str:
        """The id of the submitted job."""
        return str(self._submit_command(self._submitit_command_str).job_id)

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return self._script

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        hidden = [name for name in os.environ if name not in outside_environment(os.environ)]
        unset = [word for name in hidden for word in ("-u", name)]
        return ["env", *unset, *super()._make_submission_command(submission_file_path)]


def submit(folder: str, script: str, name: str) -> str:
    """Submit a job script, and keep it in `folder` under the job's id. `name` is the job's unique name. The job id.

    Raises StaggerError with Slurm's own words when it is refused. An sbatch that timed out may have been accepted all
    the same: the job is looked up by its name first.
    """
    if not is_here():
        raise StaggerError(
            "There is no sbatch on this machine: launch from a login node, run here with --executor local,"
            " or look at the plan with --dry-run."
        )
    try:
        # submitit prints what sbatch said before it raises; it is in the error anyway.
        with contextlib.redirect_stderr(io.StringIO()):
            return _Submitter(Path(folder), script).submit_script()
    except (FailedJobError, FailedSubmissionError) as error:
        words = " ".join(str(error).split()).removeprefix("sbatch: error: ")
        with contextlib.suppress(StaggerError):
            for job in queue([name]):
                return job.job_id
        raise StaggerError(f"Slurm refused the job: {words.replace(' sbatch: error:', ';')}") from error
