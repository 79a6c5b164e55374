"""Submits jobs through submitit's `SlurmExecutor`. Only this module overrides submitit's private hooks.

`tests/executor/test_slurm_commands.py` checks that submitit still has them.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from stagger.errors import StaggerError
from stagger.progress import busy
from stagger.slurm.answers import parse_submitted
from stagger.slurm.cluster import is_here, known_jobs, on, partitions, several
from stagger.slurm.command import (
    BUSY,
    CLUSTERS,
    SlurmBusy,
    UnknownCluster,
    outside_environment,
    patiently,
    run,
    wanted_clusters,
)
from stagger.terminal import logger

#: Seconds after which an sbatch without an answer is abandoned, and seconds for which a submission is retried.
SBATCH_TIMEOUT_S = 180
PATIENCE_S = 300.0

#: Minimum seconds between two tries. By then the controller's queue lists a job that it has accepted.
SETTLE_S = 15.0

#: Variables that make the loader and bash search the user's folders before the first line of a script. Scripts get them
#: under names with the prefix LATER, and restore them after their delay (slurm_templates/restore.sh.j2).
DEFERRED = ("BASH_ENV", "LD_LIBRARY_PATH", "LD_PRELOAD")
LATER = "STAGGER_LATER_"

#: Variables of sbatch that say where jobs go -> the option, and the key of the pipeline file for it. They do not count,
#: as a run must not depend on who launches it. (Those of CLUSTERS do: without them jobs would go to another cluster.)
UNHEEDED = {
    "SBATCH_ACCOUNT": ("account", "executor.account"),
    "SBATCH_PARTITION": ("partition", "executor.partition"),
    "SBATCH_QOS": ("qos", "executor.qos"),
    "SBATCH_TIMELIMIT": ("time", "executor.time"),
    "SBATCH_RESERVATION": ("reservation", "executor.sbatch.reservation"),
    "SBATCH_CONSTRAINT": ("constraint", "executor.sbatch.constraint"),
}

#: Slurm's messages about a cluster that it does not know.
NO_CLUSTER = re.compile(r"no cluster '|invalid entry for --cluster", re.IGNORECASE)

#: Patterns of Slurm's messages about rejected jobs, and the key of the pipeline file to change. The sentence of a
#: site's plug-in names the option that it wants, and may speak of anything else besides.
REFUSALS = (
    (NO_CLUSTER.pattern, "executor.sbatch.clusters, or SLURM_CLUSTERS and SBATCH_CLUSTERS"),
    (r"--gpus|--gres", "executor.gpus_per_task"),
    (r"--mem", "executor.mem_per_cpu_gb"),
    (r"--time|(?-i:(^|\s)-t\b)|time limit (specification )?required", "executor.time"),
    (r"--account|(?-i:(^|\s)-A\b)", "executor.account"),
    (r"--qos|(?-i:(^|\s)-q\b)", "executor.qos"),
    (r"--partition|(?-i:(^|\s)-p\b)", "executor.partition"),
    (r"--constraint|(?-i:(^|\s)-C\b)", "the constraint in executor.sbatch"),
    (r"invalid account", "executor.account"),
    (r"partition", "executor.partition"),
    (r"maxwall|requested time limit|time limit is invalid", "executor.time"),
    (r"maxsubmit|joblimit|job submit limit", "executor.ranks_per_job (fewer jobs)"),
    (r"\bqos\b", "executor.qos"),
    (r"memory", "executor.mem_per_cpu_gb"),
    (r"generic resource|\bgres\b|\btres\b|gpu", "executor.gpus_per_task"),
    (r"cpu count|processors|cpus", "executor.cpus_per_task"),
    (r"node count|node configuration", "executor.cpus_per_task, mem_per_cpu_gb, ranks_at_once or the nodes"),
    (r"feature|constraint", "the constraint in executor.sbatch"),
    (r"reservation", "the reservation in executor.sbatch"),
    (r"array", "executor.ranks_per_job"),
    (r"parameter too long|script.*too large", "executor.env.setup, to fewer lines"),
    (r"unrecognized option|invalid option|invalid argument|ambiguous", "executor.sbatch"),
)


class Submitted(NamedTuple):
    """A job, and the cluster that it was submitted to: empty for the one that this machine belongs to."""

    job_id: str
    cluster: str


class _Submitter(submitit.SlurmExecutor):
    """Submits stagger's own script by submitit's means, without its pickle and result file."""

    def __init__(self, folder: Path, script: str, name: str, clusters: str) -> None:
        super().__init__(folder)
        self._script = script
        self._clusters = clusters
        self._path = self._link = self.folder / f".{name}.sh"
        self._submitted = Submitted("", "")

    def submit_script(self) -> Submitted:
        """Submit the script, remove the copies of it that submitit keeps, and return the job."""
        try:
            job = self._submit_command(self._submitit_command_str)
            job.paths.submission_file.unlink(missing_ok=True)
        finally:
            self._path.unlink(missing_ok=True)
            self._link.unlink(missing_ok=True)
        return self._submitted

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return self._script

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        # squeue shows the path of a job's script: by it a job is found whose name a plug-in has changed.
        self._link = submission_file_path
        self._link.rename(self._path)
        self._link.symlink_to(self._path.name)
        # The end job chooses from the same clusters for retries and later stages.
        kept = {*outside_environment(os.environ), *CLUSTERS}
        hidden = [name for name in os.environ if name not in kept]
        unset = [word for name in hidden for word in ("-u", name)]
        program, *arguments = super()._make_submission_command(self._path)
        later = deferred(os.environ, self._script)
        renamed = [f"{LATER}{name}={value}" for name, value in later.items()]
        export = [",".join(["--export=ALL", *(f"{name}=" for name in later)])] if later else []
        options = [*on(self._clusters), *export]
        return ["env", *unset, *renamed, "timeout", str(SBATCH_TIMEOUT_S), program, *options, *arguments]

    def _get_job_id_from_submission_command(self, string: bytes | str) -> str:  # type: ignore[override]
        text = string if isinstance(string, str) else string.decode()
        found = parse_submitted(text)
        if found is None:
            raise FailedSubmissionError(f"sbatch printed no job id, but: {text.strip()}")
        job_id, cluster = found
        self._submitted = Submitted(job_id, cluster or ("" if several(self._clusters) else self._clusters))
        return job_id


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


def submit(folder: str, script: str, name: str, cluster: str = "") -> Submitted:
    """Submit a job script, through a file in `folder`, and return the job. `name` is the job's unique name.

    `cluster` is where earlier jobs of the launch are; the first one goes where the script or the environment says.
    Submits no job twice: Slurm may have accepted a job although sbatch failed, so each further try first looks up the
    job by its name. Raises StaggerError with Slurm's own message when the job is rejected.
    """
    if not is_here():
        raise StaggerError(
            "There is no sbatch on this machine: launch from a login node, run here with --executor local,"
            " or look at the plan with --dry-run."
        )
    clusters = cluster or wanted_clusters(script, os.environ)
    for warning in unheeded(script, os.environ):
        warn_once(warning)
    tried = False

    def attempt() -> Submitted:
        nonlocal tried
        if tried and (job := look_up(name, clusters)):  # Accepted since the last look-up.
            return job
        tried = True
        return submit_once(folder, script, name, clusters)

    return patiently(attempt, PATIENCE_S, least_s=SETTLE_S)


def unheeded(script: str, environment: Mapping[str, str]) -> list[str]:
    r"""A sentence for each variable that would say where sbatch sends jobs, if the script leaves that open.

    >>> unheeded("#SBATCH --qos=long\n", {"SBATCH_ACCOUNT": "bio", "SBATCH_QOS": "long"})
    ['SBATCH_ACCOUNT=bio does not count for runs of stagger; write executor.account: bio.']
    """
    return [
        f"{name}={environment[name]} does not count for runs of stagger; write {key}: {environment[name]}."
        for name, (option, key) in UNHEEDED.items()
        if environment.get(name) and not re.search(rf"^#SBATCH\s+--{option}\b", script, re.MULTILINE)
    ]


@cache
def warn_once(warning: str) -> None:
    """Log a warning, unless this process has done so before."""
    logger.warning(warning)


def look_up(name: str, clusters: str) -> Submitted | None:
    """The job with this name, even if it has ended or was renamed; None if there is none.

    If Slurm does not answer, nobody knows whether the job exists, and the error ends the submission.
    """
    found = (job for job in known_jobs(cluster=clusters) if job.is_called(name))
    return next((Submitted(job.job_id, job.cluster) for job in found), None)


def submit_once(folder: str, script: str, name: str, clusters: str) -> Submitted:
    """Try to submit once. Raises SlurmBusy if a retry may succeed, StaggerError if Slurm rejects the job."""
    try:
        # submitit prints sbatch's message before it raises, but the error contains it anyway.
        with busy("waiting for Slurm to answer sbatch"), contextlib.redirect_stderr(io.StringIO()):
            return _Submitter(Path(folder), script, name, clusters).submit_script()
    except (FailedJobError, FailedSubmissionError) as error:
        words = said(str(error))
        if NO_CLUSTER.search(words):  # Then squeue cannot ask it either.
            raise UnknownCluster(str(Refused(words))) from error
        if job := look_up(name, clusters):
            return job
        if not words or BUSY.search(words):
            raise SlurmBusy(f"sbatch failed: {words or f'no answer within {SBATCH_TIMEOUT_S} s'}") from error
        raise Refused(with_partitions(words)) from error


def with_partitions(words: str) -> str:
    """Slurm's words; those about a partition that it does not have, with the partitions that there are."""
    if "invalid partition" in words.lower():
        with contextlib.suppress(StaggerError):
            return f"{words}; there are {', '.join(dict.fromkeys(one.name for one in partitions()))}"
    return words


def said(text: str) -> str:
    """Join sbatch's messages on one line, each only once."""
    lines = (line.strip().removeprefix("sbatch: ").removeprefix("error: ") for line in text.splitlines())
    return "; ".join(dict.fromkeys(line.rstrip(".") for line in lines if line))


class Refused(StaggerError):
    """Slurm rejected a job: in these `words`, because of this `key` of the pipeline file (empty if unknown)."""

    def __init__(self, words: str, job: str = "the job", key: str | None = None) -> None:
        self.words = words
        self.key = key_to_change(words) if key is None else key
        change = f" ({words}); change {self.key}." if self.key else f": {words}."
        super().__init__(f"Slurm refused {job}{change}")


def key_to_change(words: str) -> str:
    """The key of the pipeline file that a rejection is about; empty if unknown.

    >>> key_to_change("Batch job submission failed: Invalid qos specification")
    'executor.qos'
    """
    return next((key for pattern, key in REFUSALS if re.search(pattern, words, re.IGNORECASE)), "")


def refused(script: str) -> str:
    """Why Slurm would reject a job script now, in its own words; empty if it would accept it. Submits nothing.

    Raises StaggerError when Slurm does not answer.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        try:
            run(["sbatch", "--test-only", file.name])
        except SlurmBusy:
            raise
        except StaggerError as error:
            return said(str(error).removeprefix("sbatch failed: ").replace("; ", "\n"))
    return ""
