"""Submits jobs through submitit's `SlurmExecutor`. Only this module overrides submitit's private hooks.

`tests/executor/test_slurm_commands.py` checks that submitit still has them.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from stagger.errors import StaggerError
from stagger.slurm.answers import parse_submitted
from stagger.slurm.cluster import is_here, known_jobs
from stagger.slurm.command import BUSY, SlurmBusy, outside_environment, patiently

#: Seconds after which an sbatch without an answer is abandoned, and seconds for which a submission is retried.
SBATCH_TIMEOUT_S = 180
PATIENCE_S = 300.0

#: Minimum seconds between two tries. By then the controller's queue lists a job that it has accepted.
SETTLE_S = 15.0

#: Variables that make the loader and bash search the user's folders before the first line of a script. Scripts get them
#: under names with the prefix LATER, and restore them after their delay (slurm_templates/restore.sh.j2).
DEFERRED = ("BASH_ENV", "LD_LIBRARY_PATH", "LD_PRELOAD")
LATER = "STAGGER_LATER_"

#: Patterns of Slurm's messages about rejected jobs, and the key of the pipeline file to change.
REFUSALS = (
    (r"invalid account", "executor.account"),
    (r"partition", "executor.partition"),
    (r"maxwall|--time|requested time limit|time limit is invalid", "executor.time"),
    (r"maxsubmit|joblimit|job submit limit", "executor.ranks_per_job (fewer jobs)"),
    (r"\bqos\b", "executor.qos"),
    (r"memory|--mem", "executor.mem_per_cpu_gb"),
    (r"generic resource|\bgres\b|\btres\b|gpu", "executor.gpus_per_task"),
    (r"cpu count|processors|cpus", "executor.cpus_per_task"),
    (r"node count|node configuration", "executor.cpus_per_task, mem_per_cpu_gb, ranks_at_once or the nodes"),
    (r"feature|constraint", "the constraint in executor.sbatch"),
    (r"reservation", "the reservation in executor.sbatch"),
    (r"array", "executor.ranks_per_job"),
    (r"parameter too long|script.*too large", "executor.env.setup, to fewer lines"),
    (r"unrecognized option|invalid option|invalid argument|ambiguous", "executor.sbatch"),
)


class _Submitter(submitit.SlurmExecutor):
    """Submits stagger's own script by submitit's means, without its pickle and result file."""

    def __init__(self, folder: Path, script: str) -> None:
        super().__init__(folder)
        self._script = script

    def submit_script(self) -> str:
        """Submit the script, remove the copy of it that submitit keeps, and return the job id."""
        job = self._submit_command(self._submitit_command_str)
        job.paths.submission_file.unlink(missing_ok=True)
        return str(job.job_id)

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return self._script

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        hidden = [name for name in os.environ if name not in outside_environment(os.environ)]
        unset = [word for name in hidden for word in ("-u", name)]
        program, *arguments = super()._make_submission_command(submission_file_path)
        later = deferred(os.environ, self._script)
        renamed = [f"{LATER}{name}={value}" for name, value in later.items()]
        export = [",".join(["--export=ALL", *(f"{name}=" for name in later)])] if later else []
        return ["env", *unset, *renamed, "timeout", str(SBATCH_TIMEOUT_S), program, *export, *arguments]

    @staticmethod
    def _get_job_id_from_submission_command(string: bytes | str) -> str:
        text = string if isinstance(string, str) else string.decode()
        number = parse_submitted(text)
        if number is None:
            raise FailedSubmissionError(f"sbatch printed no job id, but: {text.strip()}")
        return number


def deferred(environment: Mapping[str, str], script: str) -> dict[str, str]:
    r"""Variables that a script gets only after its delay. Empty if it does not restore them, or sets `--export` itself.

    >>> deferred({"LD_LIBRARY_PATH": "/apps/lib", "LD_PRELOAD": "", "HOME": "/h"}, "for name in ${!STAGGER_LATER_*}")
    {'LD_LIBRARY_PATH': '/apps/lib'}
    >>> deferred({"LD_LIBRARY_PATH": "/apps/lib"}, "#!/bin/bash\n# Of the user's own.")
    {}
    """
    if LATER not in script or re.search(r"^#SBATCH --export\b", script, re.MULTILINE):
        return {}
    return {name: environment[name] for name in DEFERRED if environment.get(name)}


def submit(folder: str, script: str, name: str) -> str:
    """Submit a job script, through a file in `folder`, and return the job id. `name` is the job's unique name.

    Submits no job twice: Slurm may have accepted a job although sbatch failed, so each further try first looks up the
    job by its name. Raises StaggerError with Slurm's own message when the job is rejected.
    """
    if not is_here():
        raise StaggerError(
            "There is no sbatch on this machine: launch from a login node, run here with --executor local,"
            " or look at the plan with --dry-run."
        )
    tried = False

    def attempt() -> str:
        nonlocal tried
        if tried and (job_id := look_up(name)):  # Accepted since the last look-up.
            return job_id
        tried = True
        return submit_once(folder, script, name)

    return patiently(attempt, PATIENCE_S, least_s=SETTLE_S)


def look_up(name: str) -> str | None:
    """The id of the job with this name, even if it has ended; None if there is none.

    If Slurm does not answer, nobody knows whether the job exists, and the error ends the submission.
    """
    return next((job.job_id for job in known_jobs([name])), None)


def submit_once(folder: str, script: str, name: str) -> str:
    """Try to submit once. Raises SlurmBusy if a retry may succeed, StaggerError if Slurm rejects the job."""
    try:
        # submitit prints sbatch's message before it raises, but the error contains it anyway.
        with contextlib.redirect_stderr(io.StringIO()):
            return _Submitter(Path(folder), script).submit_script()
    except (FailedJobError, FailedSubmissionError) as error:
        words = said(str(error))
        if job_id := look_up(name):
            return job_id
        if not words or BUSY.search(words):
            raise SlurmBusy(f"sbatch failed: {words or f'no answer within {SBATCH_TIMEOUT_S} s'}") from error
        raise StaggerError(refusal(words)) from error


def said(text: str) -> str:
    """Join sbatch's messages on one line, each only once."""
    lines = (line.strip().removeprefix("sbatch: ").removeprefix("error: ") for line in text.splitlines())
    return "; ".join(dict.fromkeys(line.rstrip(".") for line in lines if line))


def refusal(words: str) -> str:
    """The error message for a job that Slurm rejected.

    >>> refusal("Batch job submission failed: Invalid qos specification")
    'Slurm refused the job (Batch job submission failed: Invalid qos specification); change executor.qos.'
    """
    for pattern, key in REFUSALS:
        if re.search(pattern, words, re.IGNORECASE):
            return f"Slurm refused the job ({words}); change {key}."
    return f"Slurm refused the job: {words}."
