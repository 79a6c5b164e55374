"""Runs ranks on this machine, in worker processes that are tasks like any other (`stagger.task`)."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from stagger.errors import StaggerError
from stagger.executor.activity import Activity
from stagger.executor.base import ArrayPlan, Jobs, StageLaunch, StageRunner
from stagger.executor.workers import Crew, running_path
from stagger.ranks import format_ranks, parse_ranks
from stagger.rundir.launch_records import write_launch
from stagger.rundir.lock import Holder
from stagger.rundir.run_folder import RunFolder
from stagger.rundir.stage_folder import StageFolder, decode


class LocalRunner(StageRunner):
    """Runs the ranks of a stage on this machine."""

    def window(self, ranks: int) -> int:
        wanted = self.stage.randomize_start_duration
        return 0 if wanted == "auto" else wanted

    def arrays(self, launch: StageLaunch) -> list[ArrayPlan]:
        return []

    def check(self) -> None:
        pass

    def execute(self, launch: StageLaunch) -> None:
        """Run the ranks. Returns when each has ended; raises Interrupted after Ctrl-C or SIGTERM."""
        record = {
            "launch": launch.number,
            "executor": "local",
            "time": time.time(),
            "ranks": format_ranks(launch.ranks),
            "start_policy": self.stage.start_policy,
            "window_s": launch.settings.window_s,
            "settings": launch.settings.to_json(),
            **{key: getattr(Holder.this_process(), key) for key in ("host", "pid", "user")},
        }
        write_launch(launch.folder, record)
        assert self.stage.executor.type == "local"
        Crew(launch, min(self.stage.executor.workers, len(launch.ranks))).run()


class LocalJobs(Jobs):
    """The worker processes of local launches, by the lock of their run."""

    def activity(self, folder: StageFolder, launches: list[dict[str, Any]], run_dir: str) -> Activity:
        holder = RunFolder(folder.storage, run_dir).holder()
        if not launches or holder is None or holder.is_dead() or launches[-1]["pid"] != holder.pid:
            return Activity()
        if holder.is_this_process():  # It asks between two of its launches.
            return Activity()
        path = running_path(folder, launches[-1]["launch"])
        try:
            running = set(parse_ranks(decode(folder.storage.read(path), path)["running"]))
        except FileNotFoundError:
            running = set()
        ranks = set(parse_ranks(launches[-1]["ranks"]))
        return Activity(running, pending=ranks - running, holders=[str(holder)])

    def cancel(
        self, folder: StageFolder, launches: list[dict[str, Any]], run_dir: str, ranks: set[int] | None = None
    ) -> list[str]:
        holder = RunFolder(folder.storage, run_dir).holder()
        if holder is None or holder.is_dead():
            return []
        if ranks is not None:
            raise StaggerError("A local run is cancelled as a whole; leave --rank out.")
        if holder.host != os.uname().nodename:
            raise StaggerError(f"The run is held by {holder}; cancel it there.")
        os.kill(holder.pid, signal.SIGTERM)
        return [f"stopped {holder}"]
