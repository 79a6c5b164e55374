"""Runs ranks as Slurm job arrays."""

from __future__ import annotations

import math
import os
import time
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loguru import logger

from stagger.errors import StaggerError
from stagger.executor.arrays import array_record, block_scripts, refuse_too_many, split, throttles, unique_name
from stagger.executor.base import ArrayPlan, StageLaunch, StageRunner
from stagger.executor.job_script import ScriptContext, activate_script, array_script, finalize_script
from stagger.executor.more_resources import Defaults, scaled
from stagger.executor.slurm_queue import (
    jobs_of,
)
from stagger.plan.requests import requests_per_start
from stagger.ranks import format_ranks
from stagger.rundir.launch_records import write_launch
from stagger.slurm import cluster
from stagger.slurm.answers import Limits, parse_time
from stagger.spec.executors import SlurmSpec
from stagger.start.account import most_within
from stagger.start.delays import (
    LONG_WINDOW_S,
    LONGEST_WINDOW_S,
    SCHEDULER_CYCLE_S,
    Slots,
    auto_window,
    window_for_limit,
)
from stagger.storage.local_files import make_folder
from stagger.storage.storage import is_local, join

if TYPE_CHECKING:
    from stagger.start.herd import Herd


class SlurmRunner(StageRunner):
    """Submits the ranks of a stage as Slurm job arrays."""

    @property
    def settings(self) -> SlurmSpec:
        assert isinstance(self.stage.executor, SlurmSpec)
        return self.stage.executor

    def window(self, ranks: int) -> int:
        wanted = self.stage.randomize_start_duration
        needed = self.needed_window(ranks)
        window = (needed or auto_window(ranks)) if wanted == "auto" else wanted
        limit = self.settings.sbatch.get("time", self.settings.time)
        limit_s = parse_time(str(limit)) if limit is not None else None
        if limit_s is not None and 0 < limit_s <= window:
            raise StaggerError(
                f"executor.time lets a job of {self.stage.name} run for {limit_s} s, and up to {window} s of that it"
                " sleeps before it starts: allow more time, or set a smaller randomize_start_duration or throttle"
                " (executor.workers)."
            )
        return window

    def needed_window(self, ranks: int) -> int:
        """Seconds over which the first wave has to start for `backend_limit`; 0 when there is none."""
        if self.stage.backend_limit is None:
            return 0
        wave = min(self.jobs(ranks), self.settings.workers or ranks)
        window = math.ceil(min(window_for_limit(wave, self.requests(), self.stage.backend_limit), 1e12))
        if window > LONGEST_WINDOW_S:
            raise StaggerError(
                f"backend_limit {self.stage.backend_limit:g} would spread {wave:,} starts of {self.stage.name} over"
                f" {window:,} s, more than a day: set a smaller throttle (executor.workers), or a larger limit."
            )
        return window

    def jobs(self, ranks: int) -> int:
        """How many jobs so many ranks are."""
        return math.ceil(ranks / self.settings.ranks_per_job)

    def requests(self) -> int:
        """Requests that a job's start stands for. Raises StaggerError when they are limited, and there are none."""
        requests = requests_per_start(self.spec, self.stage, self.input)
        if not requests and self.stage.backend_limit is not None:
            raise StaggerError(
                f"backend_limit counts requests to remote storage, and {self.stage.name} makes none when it starts: its"
                " run_dir, input and output are local paths. Set randomize_start_duration instead."
            )
        return requests

    def hold(self, ranks: int) -> int:
        """Without it, jobs shorter than the window would ask for more in a second as they take turns than they did in
        the first wave.
        """
        throttled = self.settings.workers is not None and self.settings.workers < self.jobs(ranks)
        return self.needed_window(ranks) if throttled else 0

    def herd(self, ranks: int) -> Herd:
        """What so many ranks are to the storage as they start."""
        from stagger.start.herd import Herd

        return Herd(
            jobs=self.jobs(ranks),
            policy=self.stage.start_policy,
            window_s=self.window(ranks),
            requests=self.requests(),
            limit=self.stage.backend_limit,
            throttle=self.settings.workers,
            hold_s=self.hold(ranks),
            retry_s=self.spec.retry_seconds,
        )

    def check(self) -> None:
        if not cluster.is_here():
            raise StaggerError(
                "There is no sbatch on this machine: launch from a login node, run here with --executor local,"
                " or look at the plan with --dry-run."
            )
        if self.settings.env.venv and not os.path.isfile(script := activate_script(self.settings.env.venv)):
            raise StaggerError(f"executor.env.venv: there is no {script}; give a virtual environment's folder.")
        image = self.settings.env.container
        if image and "://" not in image and not os.path.exists(image):
            raise StaggerError(f"executor.env.container: there is no {image}; give a path, or docker://...")

    def arrays(self, launch: StageLaunch) -> list[ArrayPlan]:
        limits = cluster.limits()
        if limits.assumed:
            logger.warning(
                f"{limits.assumed.rstrip('.')}. Assuming Slurm's default MaxArraySize, {limits.max_array_size}."
            )
        self.advise(len(launch.ranks))
        refuse_too_many(self.jobs(len(launch.ranks)), limits.max_job_count, "the cluster's MaxJobCount")
        if limits.enforced:
            refuse_too_many(self.jobs(len(launch.ranks)), cluster.submit_limit(), "your MaxSubmitJobs")
        context = self._context(launch)
        parts = [
            (group, jobs)
            for group in launch.groups
            for jobs in split(group.ranks, self.settings.ranks_per_job, limits.max_array_size)
        ]
        more = any(group.tries for group in launch.groups)
        given = defaults(limits) if more else Defaults()
        arrays = []
        started = 0
        for (group, part), throttle in zip(
            parts, throttles(self.settings.workers, [len(jobs) for _, jobs in parts]), strict=True
        ):
            name = unique_name(launch.stage.name)
            slots = self._slots(launch, started, min(len(part), throttle or len(part)))
            started += slots.wave
            spread = slots if self.stage.start_policy == "spread" else None
            script = array_script(
                replace(context, spec=scaled(self.settings, group, given)),
                name,
                part,
                throttle,
                launch.settings.window_s,
                launch.settings.to_json(),
                spread,
            )
            arrays.append(ArrayPlan(name, group, part, throttle, script))
        return arrays

    def _slots(self, launch: StageLaunch, first: int, wave: int) -> Slots:
        window = launch.settings.window_s
        salt = zlib.crc32(f"{launch.settings.fingerprint} {launch.number}".encode())
        return Slots(window, first, wave, min(window, SCHEDULER_CYCLE_S), salt)

    def advise(self, ranks: int) -> None:
        """Say what a long window costs, and when a short one breaks the limit."""
        from stagger.start.forecast import first_wave

        window, needed, limit = self.window(ranks), self.needed_window(ranks), self.stage.backend_limit
        if limit is not None and window >= needed:
            most = most_within(first_wave(self.herd(ranks)), 1.0)
            if most * self.requests() > limit:
                other = ": leave start_policy out" if self.stage.start_policy == "uniform" else ""
                logger.warning(
                    f"{self.stage.name}: up to {most} jobs start within a second, and ask for {most * self.requests()}"
                    f" requests; what is more than backend_limit is refused, and made again{other}"
                )
        if window < needed:
            logger.warning(
                f"{self.stage.name}: starts over {window} s ask for more than 0.8 of backend_limit; it needs {needed}"
                " s: leave randomize_start_duration out, or set a smaller throttle (executor.workers)"
            )
        if window > LONG_WINDOW_S:
            logger.warning(
                f"{self.stage.name}: each job of the first wave sleeps {window / 2:.0f} s on average on its processors;"
                " a throttle (executor.workers) or several launches with --begin (executor.sbatch) cost less"
            )

    def start_summary(self, ranks: int) -> str:
        from stagger.start.forecast import summary

        return summary(self.herd(ranks), self.settings.cpus_per_task)

    def execute(self, launch: StageLaunch) -> None:
        """Submit the arrays, and the job that runs when they have ended. All of them or none."""
        from stagger.slurm import sbatch  # submitit takes its time.

        context = self._context(launch)
        make_folder(context.log_dir, 0o700)
        record: dict[str, Any] = {
            "launch": launch.number,
            "executor": "slurm",
            "time": time.time(),
            "ranks": format_ranks(launch.ranks),
            "ranks_per_job": self.settings.ranks_per_job,
            "start_policy": self.stage.start_policy,
            "window_s": launch.settings.window_s,
            "settings": launch.settings.to_json(),
            "resources": self.settings.model_dump(mode="json"),
            "log_dir": context.log_dir,
        }
        arrays = self.arrays(launch)
        record["arrays"] = [array_record(array) for array in arrays]
        record["finalize"] = {"name": unique_name(f"{launch.stage.name}-end"), "job_id": None}
        write_launch(launch.folder, record)  # Before the first job: by its name each can be found, whatever happens.
        try:
            for array, entry in zip(arrays, record["arrays"], strict=True):
                path = join(launch.folder.launch(launch.number), f"{array.name}.sh")
                launch.folder.storage.write(path, array.script.encode())
                entry["job_id"] = sbatch.submit(context.log_dir, array.script, array.name)
            after = [entry["job_id"] for entry in record["arrays"]]
            script = finalize_script(context, record["finalize"]["name"], after)
            path = join(launch.folder.launch(launch.number), f"{record['finalize']['name']}.sh")
            launch.folder.storage.write(path, script.encode())
            record["finalize"]["job_id"] = sbatch.submit(context.log_dir, script, record["finalize"]["name"])
        except BaseException as error:
            record["cancelled"] = f"the launch failed: {error}"
            cluster.cancel(job["job_id"] for job in jobs_of(record) if job["job_id"])
            raise
        finally:
            write_launch(launch.folder, record)
        count = len(arrays)
        logger.info(
            f"{launch.stage.name}: submitted {len(launch.ranks)} ranks in {count} array{'s' if count > 1 else ''}"
            f" (job {', '.join(after)})"
        )
        logger.info(f"{launch.stage.name}: {self.start_summary(len(launch.ranks))}")

    def _context(self, launch: StageLaunch) -> ScriptContext:
        log_dir = self.settings.log_dir
        if log_dir is not None:
            log_dir = os.path.join(log_dir, f"launch-{launch.number}")
        elif is_local(launch.folder.path):
            log_dir = join(launch.folder.launch(launch.number), "slurm")
        else:
            log_dir = os.path.join(
                self.spec.cwd, "slurm_logs", f"{launch.stage.name}-{launch.settings.fingerprint[:8]}-{launch.number}"
            )
        return ScriptContext(
            spec=self.settings,
            run_dir=launch.run_dir,
            stage=launch.stage.name,
            number=launch.number,
            cwd=self.spec.cwd,
            log_dir=log_dir,
            storage_options=self.spec.storage_options,
            **block_scripts(launch.stage),
        )


def defaults(limits: Limits) -> Defaults:
    """What jobs get that do not ask. The job that ends a stage got the same, and Slurm says it what."""
    memory = os.environ.get("SLURM_MEM_PER_CPU") or limits.def_mem_per_cpu
    return Defaults(int(memory) if memory else None, cluster.own_time_limit())
