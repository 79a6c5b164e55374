"""Runs ranks as Slurm job arrays."""

from __future__ import annotations

import math
import os
import time
import uuid
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loguru import logger

from stagger import slurm
from stagger.errors import StaggerError
from stagger.executor.base import Activity, ArrayPlan, PipelineExecutor, RunOptions, StageLaunch
from stagger.job_script import ScriptContext, activate_script, array_script, finalize_script
from stagger.launches import write_launch
from stagger.local_files import make_folder
from stagger.pipeline import Step
from stagger.ranks import format_ranks, parse_ranks
from stagger.rundir import StageFolder
from stagger.spec.models import SlurmSpec
from stagger.start import LONG_WINDOW_S, SCHEDULER_CYCLE_S, Slots, auto_window, window_for_limit
from stagger.start_requests import requests_per_start
from stagger.storage import is_local, join

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from stagger.planner.simulation import Herd


class SlurmExecutor(PipelineExecutor):
    """Runs a pipeline as Slurm job arrays.

    Args:
        pipeline: the steps: callables `(data, rank, world_size) -> iterator`. The first reads, the last usually writes.
        run_dir: where the run keeps its records: a shared folder, or `s3://...`.
        partition: the partition; by default the cluster's.
        time: time limit of a job, as Slurm writes it.
        cpus_per_task: processors of a job.
        mem_per_cpu_gb: memory per processor, in GiB.
        gpus_per_task: GPUs of a job.
        workers: the throttle: at most so many jobs at once, over the whole run.
        ranks_per_job: ranks that one job runs, one after another.
        qos: the quality of service.
        account: the account to charge.
        env: what a job sets up before Python starts: `modules`, `venv`, `conda`, `setup`.
        sbatch: any further option of sbatch, by its long name.
        template: a job script template of your own.
        log_dir: a folder that all nodes share, for what jobs print outside their ranks.
        run: `tasks`, `name` and the others that `RunOptions` lists.

    Raises:
        StaggerError: an argument is wrong.
    """

    type = "slurm"

    def __init__(
        self,
        pipeline: Sequence[Step],
        *,
        run_dir: str,
        partition: str | None = None,
        time: str | int | None = None,
        cpus_per_task: int = 1,
        mem_per_cpu_gb: float | None = None,
        gpus_per_task: int = 0,
        workers: int | None = None,
        ranks_per_job: int = 1,
        qos: str | None = None,
        account: str | None = None,
        env: Mapping[str, Any] | None = None,
        sbatch: Mapping[str, str | int | float | bool] | None = None,
        template: str | None = None,
        log_dir: str | None = None,
        **run: Unpack[RunOptions],
    ) -> None:
        options = {
            "partition": partition,
            "time": time,
            "cpus_per_task": cpus_per_task,
            "mem_per_cpu_gb": mem_per_cpu_gb,
            "gpus_per_task": gpus_per_task,
            "workers": workers,
            "ranks_per_job": ranks_per_job,
            "qos": qos,
            "account": account,
            "env": env,
            "sbatch": sbatch,
            "template": template,
            "log_dir": log_dir,
        }
        super().__init__(pipeline, run_dir, options, run)

    @property
    def settings(self) -> SlurmSpec:
        assert isinstance(self.stage.executor, SlurmSpec)
        return self.stage.executor

    def window(self, ranks: int) -> int:
        wanted = self.stage.randomize_start_duration
        needed = self.needed_window(ranks)
        return (needed or auto_window(ranks)) if wanted == "auto" else wanted

    def needed_window(self, ranks: int) -> int:
        """Seconds over which the first wave has to start for `backend_limit`; 0 when there is none."""
        if self.stage.backend_limit is None:
            return 0
        wave = min(self.jobs(ranks), self.settings.workers or ranks)
        return math.ceil(window_for_limit(wave, self.requests(), self.stage.backend_limit))

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
        from stagger.planner.simulation import Herd

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
        if not slurm.is_here():
            raise StaggerError(
                "There is no sbatch on this machine: launch from a login node, run here with --executor local,"
                " or look at the plan with --dry-run."
            )
        if self.settings.env.venv and not os.path.isfile(script := activate_script(self.settings.env.venv)):
            raise StaggerError(f"executor.env.venv: there is no {script}; give a virtual environment's folder.")

    def arrays(self, launch: StageLaunch) -> list[ArrayPlan]:
        limits = slurm.limits()
        if limits.assumed:
            logger.warning(
                f"{limits.assumed.rstrip('.')}. Assuming Slurm's default MaxArraySize, {limits.max_array_size}."
            )
        self.advise(len(launch.ranks))
        context = self._context(launch)
        per_job = self.settings.ranks_per_job
        jobs = [launch.ranks[i : i + per_job] for i in range(0, len(launch.ranks), per_job)]
        parts = [jobs[i : i + limits.max_array_size] for i in range(0, len(jobs), limits.max_array_size)]
        arrays = []
        started = 0
        for part, throttle in zip(parts, throttles(self.settings.workers, [len(p) for p in parts]), strict=True):
            name = unique_name(launch.stage.name)
            slots = self._slots(launch, started, min(len(part), throttle or len(part)))
            started += slots.wave
            spread = slots if self.stage.start_policy == "spread" else None
            script = array_script(
                context, name, part, throttle, launch.settings.window_s, launch.settings.to_json(), spread
            )
            arrays.append(ArrayPlan(name, part, throttle, script))
        return arrays

    def _slots(self, launch: StageLaunch, first: int, wave: int) -> Slots:
        window = launch.settings.window_s
        salt = zlib.crc32(f"{launch.settings.fingerprint} {launch.number}".encode())
        return Slots(window, first, wave, min(window, SCHEDULER_CYCLE_S), salt)

    def advise(self, ranks: int) -> None:
        """Say what a long window costs, and when a short one breaks the limit."""
        window, needed = self.window(ranks), self.needed_window(ranks)
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
        from stagger.planner.plan import summary

        return summary(self.herd(ranks), self.settings.cpus_per_task)

    def execute(self, launch: StageLaunch) -> None:
        """Submit the arrays, and the job that runs when they have ended. All of them or none."""
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
                entry["job_id"] = slurm.submit(context.log_dir, array.script, array.name)
            after = [entry["job_id"] for entry in record["arrays"]]
            script = finalize_script(context, record["finalize"]["name"], after)
            record["finalize"]["job_id"] = slurm.submit(context.log_dir, script, record["finalize"]["name"])
        except BaseException as error:
            record["cancelled"] = f"the launch failed: {error}"
            slurm.cancel(job["job_id"] for job in jobs_of(record) if job["job_id"])
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
        )

    @classmethod
    def activity(cls, folder: StageFolder, launches: list[dict[str, Any]], run_dir: str) -> Activity:
        if not slurm.is_here():
            return unknown_activity(launches)
        names = [job["name"] for launch in launches for job in jobs_of(launch)]
        queued = defaultdict(list)
        for job in slurm.queue(names):
            queued[job.name].append(job)
        activity = Activity()
        for launch in launches:
            activity.ending |= launch["finalize"]["name"] in queued
            for array in launch["arrays"]:
                jobs = elements(array, launch["ranks_per_job"])
                for job in queued[array["name"]]:
                    group = activity.pending if job.state in slurm.QUEUED else activity.running
                    group.update(jobs[job.index])
                for job_id in sorted({job.job_id for job in queued[array["name"]]}):
                    activity.holders.append(f"Slurm job {job_id} (launch {launch['launch']})")
        return activity

    @classmethod
    def end_states(cls, launch: dict[str, Any], ranks: set[int]) -> dict[int, str]:
        mine = [a for a in launch["arrays"] if a["job_id"] and not ranks.isdisjoint(parse_ranks(a["ranks"]))]
        ends = slurm.final_states([array["job_id"] for array in mine])
        return {
            rank: ends[array["job_id"], index]
            for array in mine
            for index, job in enumerate(elements(array, launch["ranks_per_job"]))
            for rank in job
            if rank in ranks and (array["job_id"], index) in ends
        }

    @classmethod
    def cancel(cls, folder: StageFolder, launches: list[dict[str, Any]], run_dir: str) -> list[str]:
        stopped = []
        for launch in launches:
            active = sorted({job.job_id for job in slurm.queue([job["name"] for job in jobs_of(launch)])})
            slurm.cancel(active)
            if active:
                write_launch(folder, {**launch, "cancelled": "by stagger cancel"})
            stopped += [f"cancelled Slurm job {number}" for number in active]
        return stopped


def unknown_activity(launches: list[dict[str, Any]]) -> Activity:
    """Where no Slurm can be asked, whatever was launched may still be waiting, and is not called failed."""
    logger.warning("There is no squeue on this machine: ranks that are not done are shown as pending.")
    ranks = {rank for launch in launches for rank in parse_ranks(launch["ranks"])}
    return Activity(pending=ranks, holders=["Slurm jobs, perhaps: there is no squeue here to ask"])


def array_record(array: ArrayPlan) -> dict[str, Any]:
    """What launch.json says of an array; its job id is known once it is submitted."""
    return {
        "job_id": None,
        "name": array.name,
        "jobs": len(array.ranks),
        "ranks": format_ranks(rank for job in array.ranks for rank in job),
        "throttle": array.throttle,
    }


def jobs_of(launch: dict[str, Any]) -> list[dict[str, Any]]:
    """The arrays of a launch, and the job that ends it."""
    return [*launch["arrays"], launch["finalize"]]


def elements(array: dict[str, Any], ranks_per_job: int) -> list[list[int]]:
    """The ranks of each element of a launched array."""
    ranks = parse_ranks(array["ranks"])
    return [ranks[i : i + ranks_per_job] for i in range(0, len(ranks), ranks_per_job)]


def unique_name(name: str) -> str:
    """A job name that no other job has, so that a job can be found by it."""
    return f"{name}-{uuid.uuid4().hex[:12]}"


def throttles(workers: int | None, sizes: Sequence[int]) -> list[int | None]:
    """The throttle of each array, so that together they hold the run's: Slurm's %K counts per array.

    >>> throttles(100, [1001, 1001, 998]), throttles(5, [3]), throttles(None, [7])
    ([34, 33, 33], [3], [None])
    """
    if workers is None:
        return [None for _ in sizes]
    if workers < len(sizes):
        raise StaggerError(
            f"executor.workers is {workers}, but the run needs {len(sizes)} arrays, each of which runs one job at"
            f" least; set workers to {len(sizes)} or more, or raise ranks_per_job."
        )
    share, rest = divmod(workers, len(sizes))
    return [min(share + (i < rest), size) for i, size in enumerate(sizes)]
