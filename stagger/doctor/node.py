"""Checks a compute node with a tiny job: what the node sees and can do, and the environment of the tasks there."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from typing import Any

from stagger import __version__
from stagger.doctor.check import Check
from stagger.errors import StaggerError
from stagger.executor.job_script import command, percent, quoted_env, render, resources, sbatch_options
from stagger.progress import busy
from stagger.slurm import cluster
from stagger.slurm.answers import format_time, parse_time
from stagger.slurm.states import why_waiting
from stagger.spec.executors import EnvSpec, SlurmSpec

#: Seconds to wait for the test job, and its longest time limit in seconds.
JOB_S, JOB_LIMIT_S = 60.0, 300

#: The setting for a cluster whose compute nodes cannot submit jobs.
NO_SUBMITTING = "executor.nodes_submit: false"

#: Clocks further apart than this, in seconds, make times in records misleading.
CLOCKS_S = 5.0


def node_checks(folder: str, spec: SlurmSpec, end_script: str, *, accepted: bool) -> Iterator[Check]:
    """Check a compute node with a tiny job. Waits for it up to JOB_S seconds, and removes its files.

    The job tries whether it could submit `end_script`. `accepted` is whether this machine could.
    """
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    try:
        place = tempfile.mkdtemp(prefix=".stagger-doctor-", dir=folder)
    except OSError as error:
        yield Check("node", "problem", f"{folder} cannot be written from here: {error}.")
        return
    job = None
    try:
        token, name = uuid.uuid4().hex, f"{spec.name_prefix}stagger-doctor-{uuid.uuid4().hex[:12]}"
        for file_name, text in (("login", token), ("end.sh", end_script)):
            with open(os.path.join(place, file_name), "w") as file:
                file.write(text)
        before = time.time()
        job = submit(place, name, token, spec)
        with busy("waiting for a compute node"):
            answer = wait_for(os.path.join(place, "answer"), name)
        if answer is None:
            yield not_answered(place, name, job)
            return
        job = None
        if not accepted:
            answer["sbatch"] = "refused here, too"
        yield from judged(answer, place, before, time.time(), spec)
    except StaggerError as error:
        yield Check("node", "problem", str(error))
    finally:
        if job is not None:
            cluster.cancel([job])
        shutil.rmtree(place, ignore_errors=True)


def submit(place: str, name: str, token: str, spec: SlurmSpec) -> str:
    from stagger.slurm import sbatch

    options: dict[str, Any] = {"job-name": name, "output": f"{percent(place)}/out", "nodes": "1", "ntasks": "1"}
    limit_s = parse_time(spec.time_limit) if spec.time_limit is not None else None
    time_limit = format_time(min(JOB_LIMIT_S, limit_s or JOB_LIMIT_S))
    options |= {**resources(spec), **spec.sbatch, "time": time_limit, "chdir": spec.chdir}
    script = render(
        "doctor.sbatch.j2",
        options=sbatch_options(options),
        directives=spec.directives,
        folder=place,
        token=token,
        cwd=os.getcwd(),
        env=quoted_env(spec.env),
        python=command(SlurmSpec(type="slurm", env=spec.env), os.getcwd(), place),
    )
    return sbatch.submit(place, script, name).job_id


def wait_for(path: str, name: str) -> dict[str, str] | None:
    """The job's answer; None if it comes too late, or if the job has ended without one."""
    deadline = time.monotonic() + JOB_S
    ended = False
    while True:
        os.listdir(os.path.dirname(path))  # Makes NFS refresh its view of the folder.
        if os.path.exists(path):
            with open(path) as file:
                return dict(line.rstrip("\n").split(" ", 1) for line in file if " " in line)
        if ended or time.monotonic() > deadline:
            return None
        time.sleep(1)
        ended = not cluster.queue(name)


def not_answered(place: str, name: str, job: str) -> Check:
    waiting = cluster.queue(name)
    if waiting:
        state = f"{waiting[0].state}, {waiting[0].reason}"
        remedy = why_waiting(waiting[0].reason, job) or "try again later"
        return Check(
            "node", "warning", f"The test job {job} has not answered within {JOB_S:.0f} s ({state}): {remedy}."
        )
    return Check(
        "node",
        "problem",
        f"A test job ran, but its answer is not in {os.path.dirname(place)}: compute nodes do not see this folder;"
        " choose a shared one with --run-dir.",
    )


def judged(answer: dict[str, str], place: str, before: float, after: float, spec: SlurmSpec) -> Iterator[Check]:
    """Turn the job's answer into checks."""
    host = answer.get("host", "the node")
    shared = os.path.dirname(place)
    if answer.get("folder") == "yes":
        yield Check("folder", "ok", f"{host} reads and writes {shared}")
    else:
        yield Check(
            "folder", "problem", f"{host} does not see files that this machine writes to {shared}; use a shared folder."
        )
    yield from environment_checks(answer, host, spec.env)
    yield commands_check(answer, host, spec)
    there = float(answer.get("time", before))
    off = max(before - there, there - after, 0.0)
    if off > CLOCKS_S:
        yield Check("clock", "warning", f"The clock of {host} is {off:.0f} s off; times in records will be misleading.")
    else:
        yield Check("clock", "ok", f"the clock of {host} agrees with this machine's")


def environment_checks(answer: dict[str, str], host: str, env: EnvSpec) -> Iterator[Check]:
    """Check what the job's environment is like: whether its commands work, and which stagger is in it."""
    said, own = answer.get("error", "").strip() or "no message", env == EnvSpec()
    if answer.get("environment") != "yes":
        yield Check("environment", "problem", f"executor.env cannot be set up on {host} ({said}): correct it.")
        return
    if not own:
        yield Check("environment", "ok", f"{host} sets up executor.env")
    there = answer.get("stagger", "")
    which = "this interpreter" if own else "the interpreter of executor.env"
    if not there:
        remedy = "install it there" if not own else "install it in a folder that nodes share, or set executor.env"
        yield Check("python", "problem", f"{host} cannot import stagger with {which} ({said}): {remedy}.")
    elif there != __version__:
        text = f"{host} has stagger {there} with {which}, but this machine has {__version__}: install the same version."
        yield Check("python", "problem", text)
    else:
        yield Check("python", "ok", f"{host} imports stagger {there} with {which}")


def commands_check(answer: dict[str, str], host: str, spec: SlurmSpec) -> Check:
    """Check whether jobs can requeue themselves, and submit further jobs."""
    lacks = []
    if answer.get("scontrol") != "yes":
        lacks.append("scontrol does not work: jobs cannot requeue themselves")
    if answer.get("sbatch") == "refused here, too":
        lacks.append("it is unknown whether sbatch works, as Slurm refuses the end job from this machine, too")
    elif answer.get("sbatch") != "yes" and spec.nodes_submit:
        said = answer.get("sbatch_error", "").strip() or "no message"
        lacks.append(
            f"sbatch does not work ({said}): jobs cannot launch retries or the next stage; set {NO_SUBMITTING}"
        )
    if lacks:
        return Check("commands", "warning", f"On {host} {'; '.join(lacks)}.")
    return Check("commands", "ok", f"scontrol and sbatch work on {host}")
