"""Runs the local stages of a run in a process of its own, which goes on when the process that launched it has ended.

`python -I -m stagger.launch.background` reads what to do from its standard input, as JSON: a `Job`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import IO, Any

import orjson

from stagger.errors import Interrupted, StaggerError
from stagger.launch.check import enter
from stagger.launch.retry import retry
from stagger.launch.stages import run_stages
from stagger.rundir.launch_records import LocalLaunch, read_launches
from stagger.rundir.run_folder import RunFolder, RunRecord
from stagger.status.look import look_at_run
from stagger.storage.storage import hide_secrets, is_local, join, without_secrets
from stagger.terminal import logger, say

#: The process's messages: a file of the run directory.
LOG = "local.log"

#: Seconds between two looks whether the process has begun.
NAP_S = 0.05

#: Processes of this one: Python warns when such an object is removed while its process runs.
_started: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Job:
    """What the process does: launch the run's ranks that are not done, or retry ranks.

    storage_options: access to the run directory.
    limit: only the first `limit` ranks of each stage.
    retry: the arguments of `retry`; None to launch.
    """

    run_dir: str
    storage_options: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None
    retry: dict[str, Any] | None = None


def start(run: RunFolder, record: RunRecord, *, limit: int | None = None, again: dict[str, Any] | None = None) -> None:
    """Start the process, and return when it runs ranks, or when it has found none to run.

    Args:
        run: the run directory, whose lock nobody holds.
        record: its run.json.
        limit: only the first `limit` ranks of each stage.
        again: retry, with these arguments of `retry`.

    Raises:
        StaggerError: with the process's own error, when it launched nothing.
    """
    job = Job(run.path, record.spec.storage_options, limit, again)
    with run.changing(record), _log(run, record) as log:
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", "stagger.launch.background"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    _started[:] = [*(one for one in _started if one.poll() is None), process]
    assert process.stdin is not None
    assert process.stdout is not None
    where = f"; its messages are in {join(run.path, LOG)}" if is_local(run.path) else ""
    with process.stdout:
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(orjson.dumps(asdict(job)))
        while process.poll() is None and not _runs_ranks(run, record, process.pid):
            time.sleep(NAP_S)
        if process.returncode:
            ended = f"The process for the local ranks ended with exit status {process.returncode}{where}."
            raise StaggerError(*process.stdout.read().decode().splitlines() or [ended])
    if process.poll() is None:
        logger.info(f"process {process.pid} runs the local ranks{where}")


def _runs_ranks(run: RunFolder, record: RunRecord, pid: int) -> bool:
    """Whether the process `pid` has begun to run ranks of a stage."""
    launches = (read_launches(stage.folder)[-1:] for stage in run.stages(record) if stage.spec.executor.type == "local")
    return any(isinstance(one, LocalLaunch) and one.pid == pid for latest in launches for one in latest)


@contextlib.contextmanager
def _log(run: RunFolder, record: RunRecord) -> Iterator[IO[bytes] | int]:
    """The file that takes the process's messages; none if the run directory is on remote storage."""
    if not is_local(run.path):
        yield subprocess.DEVNULL
        return
    mode = 0o600 if record.spec.shared is None else 0o660
    with open(join(run.path, LOG), "ab", opener=lambda path, flags: os.open(path, flags, mode)) as file:
        yield file


def main() -> int:
    """Do what standard input says. Prints the error if that fails, and returns the exit status."""
    job = Job(**orjson.loads(sys.stdin.buffer.read()))
    try:
        with contextlib.redirect_stdout(sys.stderr):  # What the user's modules print is no error.
            do(job)
    except StaggerError as error:
        with contextlib.suppress(BrokenPipeError):
            for line in without_secrets(str(error)).split("\n"):
                say(line, flush=True)
        logger.error(str(error))
        return error.exit_status
    except Interrupted as interrupted:
        return interrupted.exit_status
    return 0


def do(job: Job) -> None:
    """Launch or retry, and return when all local ranks have ended."""
    run, record = RunFolder.open(job.run_dir, job.storage_options)
    if job.retry is not None:
        ranks = job.retry["ranks"]
        retry(run, record, **{**job.retry, "ranks": None if ranks is None else set(ranks)})
        return
    with run.changing(record):
        enter(record.spec)
        with run.lock.held():
            record = run.load() or record
            run_stages(run, record, look_at_run(run, record), limit=job.limit)


if __name__ == "__main__":
    logger.configure(patcher=hide_secrets)
    sys.exit(main())
