"""Checks whether runs can work from here: Slurm, its compute nodes, the folder that they share, the storage."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from stagger import __version__
from stagger.errors import StaggerError
from stagger.executor.job_script import interpreter, percent, render, sbatch_options
from stagger.progress import busy
from stagger.slurm import cluster
from stagger.spec.executors import EnvSpec
from stagger.storage.storage import Storage, absolute, is_local, join

#: Seconds to wait for the test job, and seconds to try a storage that cannot be reached.
JOB_S, UNREACHABLE_S = 60.0, 10.0

#: Writers that create one file at once.
CREATORS = 8

#: Clocks further apart than this, in seconds, make times in records misleading.
CLOCKS_S = 5.0


@dataclass(frozen=True)
class Check:
    """The result of one check. `text` is the finding and, if `state` is not `ok`, what to do."""

    name: str
    state: Literal["ok", "warning", "problem"]
    text: str


def checks(run_dir: str | None, options: dict[str, dict[str, Any]], partition: str | None) -> Iterator[Check]:
    """Run all checks, one after another."""
    yield Check(
        "versions", "ok", f"stagger {__version__}, Python {platform.python_version()}, submitit {version('submitit')}"
    )
    folder = absolute(run_dir) if run_dir else None
    if folder is not None:
        yield from storage_checks(folder, Storage(options, retry_s=UNREACHABLE_S, unreachable_s=UNREACHABLE_S))
    if not cluster.is_here():
        yield Check(
            "slurm", "problem", "There is no sbatch on this machine: runs work here with --executor local only."
        )
        return
    limits = cluster.limits()
    if limits.assumed:
        yield Check("slurm", "problem", limits.assumed)
        return
    most = cluster.submit_limit() if limits.enforced else None
    yield Check(
        "slurm",
        "ok",
        f"Slurm {limits.version}: MaxArraySize {limits.max_array_size:,}, MaxJobCount {limits.max_job_count:,},"
        f" {'no job limit for you' if most is None else f'at most {most:,} jobs for you'}",
    )
    if cluster.accounting_answers():
        yield Check("accounting", "ok", "sacct answers")
    else:
        yield Check(
            "accounting",
            "warning",
            "sacct does not answer: a few minutes after a job has ended, only its own records show how it ended.",
        )
    yield from partition_checks(partition)
    shared = folder if folder is not None and is_local(folder) else os.getcwd()
    yield from node_checks(shared, partition)


def partition_checks(wanted: str | None) -> Iterator[Check]:
    found = cluster.partitions()
    up = [one for one in found if one.available]
    if wanted is not None and wanted not in {one.name for one in found}:
        yield Check(
            "partition", "problem", f"There is no partition {wanted}; choose from {', '.join(p.name for p in found)}."
        )
    elif not up:
        yield Check("partition", "problem", "No partition is up; ask the cluster's administrators.")
    else:
        texts = [f"{p.name} ({p.nodes} node{'s' if p.nodes > 1 else ''}, {p.time_limit})" for p in up]
        yield Check("partition", "ok", ", ".join(texts))


def storage_checks(folder: str, storage: Storage) -> Iterator[Check]:
    """Make the requests that a run makes to its run directory: write, read, create once, remove.

    Then check that of several that create at once, one succeeds: the lock of a run relies on it.
    """
    path = join(folder, f"stagger-doctor-{uuid.uuid4().hex[:12]}")
    took, started = "", time.monotonic()
    try:
        with busy(f"checking {folder}"):
            storage.check_writable(folder)
            if not is_local(folder):
                created = storage.create(path, b"stagger") and not storage.create(path, b"twice")
                same = storage.read(path) == b"stagger"
                storage.remove(path)
                took = f"; four requests took {time.monotonic() - started:.2f} s"
                lacks = "" if created and same else "conditional writes (If-None-Match)"
                lacks = lacks or creates_at_once(f"{path}-at-once", storage)
                if lacks:
                    text = (
                        f"{folder} does not support {lacks}: of several launches at once more than one would run. It"
                        " can hold input and output, but no run_dir: put that on a shared file system or another store."
                    )
                    yield Check("storage", "problem", text)
                    return
    except (StaggerError, OSError) as error:
        yield Check("storage", "problem", f"{error}")
        return
    yield Check("storage", "ok", f"{folder} can be written{took}")


def creates_at_once(path: str, storage: Storage) -> str:
    """Create one file from several threads at once: exactly one may succeed. Returns what the store lacks, or ""."""
    with ThreadPoolExecutor(CREATORS) as threads:
        contents = [f"stagger {number}".encode() for number in range(CREATORS)]
        won = list(threads.map(lambda content: storage.create(path, content), contents))
    kept = storage.read(path)
    storage.remove(path)
    if [content for content, first in zip(contents, won, strict=True) if first] == [kept]:
        return ""
    return f"conditional writes (If-None-Match) of several writers at once ({won.count(True)} of {CREATORS} succeeded)"


def node_checks(folder: str, partition: str | None) -> Iterator[Check]:
    """Check a compute node with a tiny job. Waits for it up to JOB_S seconds, and removes its files."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    try:
        place = tempfile.mkdtemp(prefix=".stagger-doctor-", dir=folder)
    except OSError as error:
        yield Check("node", "problem", f"{folder} cannot be written from here: {error}.")
        return
    job = None
    try:
        token, name = uuid.uuid4().hex, f"stagger-doctor-{uuid.uuid4().hex[:12]}"
        with open(os.path.join(place, "login"), "w") as file:
            file.write(token)
        before = time.time()
        job = submit(place, name, token, partition)
        with busy("waiting for a compute node"):
            answer = wait_for(os.path.join(place, "answer"), name)
        if answer is None:
            yield not_answered(place, name, job)
            return
        job = None
        yield from judged(answer, place, before, time.time())
    except StaggerError as error:
        yield Check("node", "problem", str(error))
    finally:
        if job is not None:
            cluster.cancel([job])
        shutil.rmtree(place, ignore_errors=True)


def submit(place: str, name: str, token: str, partition: str | None) -> str:
    from stagger.slurm import sbatch

    options = {"job-name": name, "output": f"{percent(place)}/out", "time": "5", "ntasks": "1", "chdir": "/"}
    if partition:
        options["partition"] = partition
    script = render(
        "doctor.sbatch.j2",
        options=sbatch_options(options),
        folder=place,
        token=token,
        python=interpreter(EnvSpec()),
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
        return Check(
            "node", "warning", f"The test job {job} did not start within {JOB_S:.0f} s ({state}); try again later."
        )
    return Check(
        "node",
        "problem",
        f"A test job ran, but its answer is not in {os.path.dirname(place)}: compute nodes do not see this folder;"
        " choose a shared one with --run-dir.",
    )


def judged(answer: dict[str, str], place: str, before: float, after: float) -> Iterator[Check]:
    """Turn the job's answer into checks."""
    host = answer.get("host", "the node")
    shared = os.path.dirname(place)
    if answer.get("folder") == "yes":
        yield Check("folder", "ok", f"{host} reads and writes {shared}")
    else:
        yield Check(
            "folder", "problem", f"{host} does not see files that this machine writes to {shared}; use a shared folder."
        )
    if answer.get("python") == "yes":
        yield Check("python", "ok", f"{host} imports stagger with this interpreter")
    else:
        yield Check(
            "python",
            "problem",
            f"{host} cannot import stagger with this interpreter: install it in a folder that nodes share, or set"
            " executor.env to an environment there.",
        )
    missing = [command for command in ("scontrol", "sbatch") if answer.get(command) != "yes"]
    if missing:
        yield Check(
            "commands",
            "warning",
            f"{' and '.join(missing)} do not work on {host}: jobs cannot requeue themselves or launch the next stage;"
            " use stagger retry from here.",
        )
    else:
        yield Check("commands", "ok", f"scontrol and sbatch work on {host}")
    there = float(answer.get("time", before))
    off = max(before - there, there - after, 0.0)
    if off > CLOCKS_S:
        yield Check("clock", "warning", f"The clock of {host} is {off:.0f} s off; times in records will be misleading.")
    else:
        yield Check("clock", "ok", f"the clock of {host} agrees with this machine's")
