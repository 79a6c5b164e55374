"""Runs ranks on this machine, in worker processes that run the same `stagger.task` as Slurm jobs."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator

from stagger.executor.base import ArrayPlan, StageLaunch, StageRunner
from stagger.executor.bundles import write_bundle
from stagger.executor.workers import LocalCrew
from stagger.ranks import format_ranks
from stagger.rundir.launch_records import LocalLaunch, write_launch
from stagger.rundir.lock import Holder
from stagger.spec.executors import EnvSpec
from stagger.storage.storage import join


class LocalRunner(StageRunner):
    """Runs the ranks of a stage on this machine."""

    def window(self, ranks: int) -> int:
        wanted = self.stage.randomize_start_duration
        return 0 if wanted == "auto" else wanted

    def cpus(self, ranks: int) -> int:
        """The processors that this process may use, divided among the ranks that run at once."""
        assert self.stage.executor.type == "local"
        return max(1, len(os.sched_getaffinity(0)) // max(1, min(self.stage.executor.workers, ranks)))

    def arrays(self, launch: StageLaunch) -> list[ArrayPlan]:
        return []

    def check(self) -> None:
        pass

    def execute(self, launch: StageLaunch) -> LocalLaunch:
        """Run the ranks and return when all have ended. Raises Interrupted after Ctrl-C or SIGTERM."""
        me = Holder.this_process()
        record = LocalLaunch(
            launch=launch.number,
            time=time.time(),
            ranks=format_ranks(launch.ranks),
            start_policy=self.stage.start_policy,
            window_s=launch.settings.window_s,
            settings=launch.settings.to_json(),
            host=me.host,
            pid=me.pid,
            user=me.user,
        )
        write_launch(launch.stage.folder, record)
        assert self.stage.executor.type == "local"
        with settings_file(launch) as path:
            LocalCrew(launch, path, self.stage.executor.workers).run()
        return record


@contextlib.contextmanager
def settings_file(launch: StageLaunch) -> Iterator[str]:
    """Write the settings for the workers. Of a run on remote storage they exist only as long as the workers."""
    content = launch.settings.to_json().encode()
    if launch.settings_path is not None:
        launch.stage.folder.storage.write(launch.settings_path, content, private=not launch.settings.shared)
        write_bundle(launch, launch.settings_path, EnvSpec())
        yield launch.settings_path
        return
    with tempfile.TemporaryDirectory(prefix="stagger-") as folder:
        path = join(folder, "settings.json")
        launch.stage.folder.storage.write(path, content, private=True)
        write_bundle(launch, path, EnvSpec())
        yield path
