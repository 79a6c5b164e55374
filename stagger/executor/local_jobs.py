"""The worker processes of local launches: which ranks they run, and how they are stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from stagger.errors import StaggerError
from stagger.executor.activity import Activity
from stagger.executor.base import Jobs
from stagger.executor.workers import is_at_work, running_path
from stagger.ranks import parse_ranks
from stagger.rundir.launch_records import LocalLaunch
from stagger.rundir.lock import Holder, Lock
from stagger.rundir.run_folder import Stage
from stagger.rundir.stage_folder import damaged, decode
from stagger.storage.ownership import user_name
from stagger.task.crew import open_pidfd


class LocalJobs(Jobs[LocalLaunch]):
    """The worker processes of local launches. Their parent holds the run's lock."""

    #: The process that `cancel` has signalled. It runs all local stages, and a second signal would kill its workers.
    _stopped: Holder | None = None

    def activity(self, stage: Stage, launches: Sequence[LocalLaunch]) -> Activity:
        holder = stage.run.lock.holder()
        if not launches or holder is None or holder.is_dead() or launches[-1].pid != holder.pid:
            return Activity()
        path = running_path(stage.folder, launches[-1].launch)
        if holder.is_this_process() and not is_at_work(path):  # It is between two of its launches.
            return Activity()
        try:
            text = decode(stage.folder.storage.read(path), path, "running")["running"]
            running = set(parse_ranks(str(text)))
        except FileNotFoundError:
            running = set()
        except ValueError as error:
            raise damaged(path, f"running: {error}") from error
        return Activity(running, pending=set(launches[-1].rank_list) - running, holders=[str(holder)])

    def cancel(self, stage: Stage, launches: Sequence[LocalLaunch], ranks: set[int] | None = None) -> list[str]:
        lock = stage.run.lock
        holder = lock.holder()
        if holder is None or holder.is_dead() or holder == self._stopped:
            return []
        if ranks is not None:
            raise StaggerError("A local run can only be cancelled as a whole; leave --rank out.")
        if not holder.is_here():
            raise StaggerError(f"The run is held by {holder}; run stagger cancel on that machine.")
        terminate(holder, lock)
        self._stopped = holder
        return [f"stopped {holder}"]


def terminate(holder: Holder, lock: Lock) -> None:
    """Send SIGTERM to the process that holds the lock. Raises StaggerError when that is not proven, or not allowed."""
    owner = lock.owner()
    if os.geteuid() not in (owner, 0):
        raise StaggerError(
            f"The run is held by {holder}, and only {user_name(owner)} can stop that process: let them run"
            f" stagger cancel {os.path.dirname(lock.path)}"
        )
    pidfd = open_pidfd(holder.pid)  # Before the check: it stays this process's, whoever gets the pid after it.
    try:
        if doubt := holder.doubt(owner):
            raise StaggerError(
                f"{lock.path} names process {holder.pid}, but that process {doubt}: it is not stopped. If it is the"
                f" run, stop it with: kill {holder.pid}; if it is not, remove {lock.path}"
            )
        if pidfd is None:
            os.kill(holder.pid, signal.SIGTERM)
        else:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
    finally:
        if pidfd is not None:
            os.close(pidfd)
