"""Runs the ranks of a stage as Slurm job arrays."""

from __future__ import annotations

import os
import time
from dataclasses import replace

from stagger.errors import StaggerError, counted, plural
from stagger.executor.arrays import array_record, block_scripts, split, throttles, unique_name
from stagger.executor.base import ArrayPlan, StageLaunch, StageRunner
from stagger.executor.bundles import write_bundle
from stagger.executor.end_job import end_key
from stagger.executor.job_script import ScriptContext, activate_script, array_script, finalize_script
from stagger.executor.limits import clusters_of
from stagger.executor.more_resources import Defaults, scaled, without_nodes
from stagger.executor.slurm_start import SlurmStart
from stagger.ranks import format_ranks
from stagger.rundir.access import check_folder
from stagger.rundir.launch_records import EndJobRecord, SlurmLaunch, write_launch
from stagger.rundir.run_folder import StageInput
from stagger.slurm import cluster
from stagger.slurm.answers import Limits
from stagger.slurm.command import UnknownCluster, wanted_clusters
from stagger.spec.models import RunSpec, StageSpec
from stagger.storage.local_files import SHARED_FOLDER, make_folder
from stagger.storage.storage import is_local, join
from stagger.terminal import logger


class SlurmRunner(StageRunner):
    """Submits the ranks of a stage as Slurm job arrays."""

    def __init__(self, spec: RunSpec, stage: StageSpec, planned: StageInput | None = None) -> None:
        super().__init__(spec, stage, planned)
        self.start = SlurmStart(spec, stage, self.input)
        self.settings = self.start.settings

    def window(self, ranks: int) -> int:
        return self.start.window(ranks)

    def hold(self, ranks: int) -> int:
        return self.start.hold(ranks)

    def share(self, ranks: int) -> float:
        return self.start.share(ranks)

    def cpus(self, ranks: int) -> int:
        return self.settings.cpus_per_task

    def start_summary(self, ranks: int) -> str:
        return self.start.summary(ranks)

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
        limits = cluster.limits(clusters_of(self.settings))
        if limits.assumed:
            most = limits.max_array_size
            self.assumed = f"{limits.assumed.rstrip('.')}. Assuming Slurm's default MaxArraySize, {most}."
        self.start.advise(len(launch.ranks))
        context = self._context(launch)
        given = defaults(limits) if any(group.tries for group in launch.groups) else Defaults()
        parts = [
            (group, jobs)
            for group in launch.groups
            for jobs in split(group.ranks, self.settings.ranks_per_job, limits.max_array_size)
        ]
        shares = throttles(self.settings.workers, [len(jobs) for _, jobs in parts])
        arrays = []
        started = 0
        settings = launch.settings
        for (group, part), throttle in zip(parts, shares, strict=True):
            name = unique_name(self.settings.name_prefix + launch.stage.name)
            wave = min(len(part), throttle or len(part))
            slots = self.start.slots(settings.fingerprint, launch.number, settings.window_s, started, wave)
            started += wave
            script = array_script(
                replace(context, spec=without_nodes(scaled(self.settings, group, given), launch.avoided)),
                name,
                part,
                throttle,
                settings.window_s,
                slots if self.stage.start_policy == "spread" else None,
            )
            arrays.append(ArrayPlan(name, group, part, throttle, script))
        return arrays

    def end_script(self, launch: StageLaunch) -> str:
        name = unique_name(f"{self.settings.name_prefix}{launch.stage.name}-end")
        return finalize_script(self._context(launch), name, ["ARRAYS"])  # Their ids are unknown yet.

    def execute(self, launch: StageLaunch) -> SlurmLaunch:
        """Submit the arrays and the end job: all of them, or none."""
        context = self._context(launch)
        shared = self.spec.shared is not None
        make_folder(context.log_dir, SHARED_FOLDER if shared else 0o700)
        check_folder(context.log_dir, shared)
        arrays = self.arrays(launch)
        if self.assumed:
            logger.warning(self.assumed)
        record = self._record(launch, arrays, context.log_dir)
        settings = launch.settings
        launch.stage.folder.storage.write(context.settings, settings.to_json().encode(), private=not settings.shared)
        write_bundle(launch, context.settings, self.settings.env)
        write_launch(launch.stage.folder, record)  # Before sbatch runs: a crash leaves no job without a recorded name.
        try:
            for array in arrays:
                record = submitted(record, launch, context, array.name, array.script)
            after = [array.job_id or "" for array in record.arrays]
            record = end_submitted(record, launch, context, after)
        except BaseException as error:
            known = "" if isinstance(error, UnknownCluster) else record.cluster
            record = replace(record, refused=f"the launch failed: {error}", cluster=known)
            cluster.cancel((job.job_id for job in record.jobs if job.job_id), record.cluster)
            raise
        finally:
            write_launch(launch.stage.folder, record)
        name, ranks = launch.stage.name, counted(len(launch.ranks), "rank")
        logger.info(
            f"{name}: submitted {ranks} in {counted(len(arrays), 'array')}"
            f" ({plural(len(after), 'job')} {', '.join(after)})"
        )
        logger.info(f"{name}: {self.start_summary(len(launch.ranks))}")
        if not self.settings.nodes_submit and (left := left_to_commands(self.spec, self.stage)):
            logger.info(
                f"{name}: jobs may not submit jobs (executor.nodes_submit is false): {left} will be started by launch"
                f" --wait, or when you type: stagger retry {self.spec.run_dir}"
            )
        return record

    def _record(self, launch: StageLaunch, arrays: list[ArrayPlan], log_dir: str) -> SlurmLaunch:
        return SlurmLaunch(
            launch=launch.number,
            time=time.time(),
            ranks=format_ranks(launch.ranks),
            start_policy=self.stage.start_policy,
            window_s=launch.settings.window_s,
            settings=launch.settings.to_json(),
            ranks_per_job=self.settings.ranks_per_job,
            resources=self.settings.model_dump(mode="json"),
            log_dir=log_dir,
            arrays=tuple(map(array_record, arrays)),
            avoided=launch.avoided,
            finalize=EndJobRecord(None, unique_name(f"{self.settings.name_prefix}{launch.stage.name}-end")),
            user=cluster.own_user(),
            cluster=wanted_clusters(arrays[0].script, os.environ),
        )

    def _context(self, launch: StageLaunch) -> ScriptContext:
        name, folder = launch.stage.name, launch.stage.folder
        log_dir = self.settings.log_dir
        if log_dir is not None:
            log_dir = os.path.join(log_dir, f"launch-{launch.number}")
        elif is_local(folder.path):
            log_dir = join(folder.launch(launch.number), "slurm")
        else:
            log_dir = os.path.join(
                self.spec.cwd, "slurm_logs", f"{name}-{launch.settings.fingerprint[:8]}-{launch.number}"
            )
        return ScriptContext(
            spec=self.settings,
            run_dir=launch.stage.run.path,
            stage=name,
            number=launch.number,
            cwd=self.spec.cwd,
            log_dir=log_dir,
            # Runs may share `log_dir`, and must not overwrite each other's settings while jobs are queued.
            settings=launch.settings_path
            or os.path.join(os.path.abspath(log_dir), f"settings-{folder.tag}-{launch.number}.json"),
            tasks=self.stage.tasks,
            **block_scripts(self.stage),
        )


def submitted(record: SlurmLaunch, launch: StageLaunch, context: ScriptContext, name: str, script: str) -> SlurmLaunch:
    """Save a script in the launch's folder and submit it, to the cluster of the launch's first job. Returns the record
    with the job's id and cluster.
    """
    from stagger.slurm import sbatch  # Imported late: submitit is slow to import.

    folder = launch.stage.folder
    folder.storage.write(join(folder.launch(launch.number), f"{name}.sh"), script.encode())
    job = sbatch.submit(context.log_dir, script, name, record.cluster)
    return record.submitted(name, job.job_id, job.cluster)


def end_submitted(record: SlurmLaunch, launch: StageLaunch, context: ScriptContext, after: list[str]) -> SlurmLaunch:
    """Submit the end job, which runs after the arrays with the ids `after`. Returns the record with its id."""
    name = record.finalize.name
    try:
        return submitted(record, launch, context, name, finalize_script(context, name, after))
    except StaggerError as error:
        from stagger.slurm.sbatch import Refused

        if isinstance(error, Refused):
            key = end_key(error.key) or "executor.end"
            raise Refused(error.words, f"the end job of {launch.stage.name}", key) from error
        raise


def left_to_commands(spec: RunSpec, stage: StageSpec) -> str:
    """What may have to be started when the stage has ended; empty if there is nothing."""
    waiting = [other.name for other in spec.stages if stage.name in other.depends]
    return ", ".join([*(["retries"] if stage.retries is not None else []), *(f"the stage {one}" for one in waiting)])


def defaults(limits: Limits) -> Defaults:
    """The memory and time of a job that requests neither: those of the end job, which this code runs in."""
    memory = os.environ.get("SLURM_MEM_PER_CPU") or limits.def_mem_per_cpu
    return Defaults(int(memory) if memory else None, cluster.own_time_limit())
