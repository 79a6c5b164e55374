"""The Slurm jobs of launches: their states in squeue and sacct, and their cancellation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from stagger.executor.activity import Activity, EndJob
from stagger.executor.base import Jobs
from stagger.ranks import format_ranks, parse_ranks
from stagger.rundir.launch_records import SlurmLaunch, write_launch
from stagger.rundir.run_folder import Stage
from stagger.slurm import cluster
from stagger.slurm.answers import QueuedJob
from stagger.slurm.states import has_ended, is_queued
from stagger.terminal import logger


class SlurmJobs(Jobs[SlurmLaunch]):
    """The jobs of Slurm launches. Runs squeue and sacct at most once each, when their output is first needed."""

    @cached_property
    def known(self) -> dict[str, list[QueuedJob]]:
        """Array name -> its elements known to the controller, which forgets ended ones after MinJobAge (300 s)."""
        found: dict[str, list[QueuedJob]] = defaultdict(list)
        for job in cluster.known_jobs([job.name for launch in self._launches for job in launch.jobs]):
            found[job.name].append(job)
        return found

    def alive(self, name: str) -> list[QueuedJob]:
        """The elements of an array that are queued or running."""
        return [job for job in self.known[name] if not has_ended(job.state)]

    @cached_property
    def _ended(self) -> dict[tuple[str, int], str]:
        every = (job for jobs in self.known.values() for job in jobs)
        return {(job.name, job.index): job.state for job in every if has_ended(job.state)}

    @cached_property
    def _accounting(self) -> dict[tuple[str, int], str]:
        ids = [job.job_id for launch in self._launches for job in launch.jobs if job.job_id]
        return cluster.final_states(ids)

    def _end(self, name: str, job_id: str, index: int) -> str | None:
        """The final state of an element; None if unknown. The controller has it earlier, accounting keeps it longer."""
        return self._ended.get((name, index)) or self._accounting.get((job_id, index))

    def activity(self, stage: Stage, launches: Sequence[SlurmLaunch]) -> Activity:
        if not cluster.is_here():
            return unknown_activity(launches)
        activity = Activity()
        for launch in launches:
            activity.ending |= bool(self.alive(launch.finalize.name))
            for array in launch.arrays:
                alive = self.alive(array.name)
                ranks = array.elements(launch.ranks_per_job) if alive else []
                for job in alive:
                    note_job(activity, launch, job, ranks[job.index])
                for job_id in sorted({job.job_id for job in alive}):
                    activity.holders.append(f"Slurm job {job_id} (launch {launch.launch})")
        return activity

    def end_states(self, launch: SlurmLaunch, ranks: set[int]) -> dict[int, str]:
        states: dict[int, str] = {}
        for array in launch.arrays:
            if array.job_id is None or ranks.isdisjoint(array.rank_list):
                continue
            for index, job in enumerate(array.elements(launch.ranks_per_job)):
                wanted = [rank for rank in job if rank in ranks]
                if wanted and (state := self._end(array.name, array.job_id, index)) is not None:
                    states |= dict.fromkeys(wanted, state)
        return states

    def end_job(self, launch: SlurmLaunch) -> EndJob | None:
        if not cluster.is_here():
            return None
        name, job_id = launch.finalize.name, launch.finalize.job_id
        for job in self.known[name]:
            return EndJob(job.state, job.reason)
        return EndJob(self._accounting.get((job_id or "", 0), ""))

    def cancel(self, stage: Stage, launches: Sequence[SlurmLaunch], ranks: set[int] | None = None) -> list[str]:
        return [
            line
            for launch in launches
            for line in (
                self._cancel_launch(stage, launch) if ranks is None else self._cancel_ranks(stage, launch, ranks)
            )
        ]

    def _cancel_launch(self, stage: Stage, launch: SlurmLaunch) -> list[str]:
        """Cancel the queued and running jobs of a launch, its end job included."""
        active = sorted({job.job_id for job_of in launch.jobs for job in self.alive(job_of.name)})
        if any(self.alive(array.name) for array in launch.arrays):
            # Written before scancel: no concurrent reader may take the cancelled jobs for failed.
            write_launch(stage.folder, replace(launch, cancelled="by stagger cancel"))
        cluster.cancel(active)
        return [f"cancelled Slurm job {number}" for number in active]

    def _cancel_ranks(self, stage: Stage, launch: SlurmLaunch, ranks: set[int]) -> list[str]:
        """Cancel the jobs of a launch that run, or would run, any of `ranks`."""
        found: dict[str, list[int]] = {}
        for array in launch.arrays:
            by_index = array.elements(launch.ranks_per_job)
            for job in self.alive(array.name):
                if not ranks.isdisjoint(by_index[job.index]):
                    found[f"{job.job_id}_{job.index}"] = by_index[job.index]
        if not found:
            return []
        stopped = {rank for job in found.values() for rank in job}
        cancelled = format_ranks([*parse_ranks(launch.cancelled_ranks), *stopped])
        write_launch(stage.folder, replace(launch, cancelled_ranks=cancelled))
        cluster.cancel(found)
        others = f"; ranks {format_ranks(stopped - ranks)} were in the same jobs" if stopped - ranks else ""
        jobs = f"{len(found)} job{'s' if len(found) > 1 else ''}"
        return [f"cancelled ranks {format_ranks(stopped & ranks)} ({jobs}){others}"]


def note_job(activity: Activity, launch: SlurmLaunch, job: QueuedJob, ranks: list[int]) -> None:
    """Add the ranks of a queued or running job to a stage's activity."""
    if is_queued(job.state):
        (activity.requeued if was_requeued(job) else activity.pending).update(ranks)
    elif job.seconds is not None and job.seconds <= launch.window_s:
        activity.starting.update(dict.fromkeys(ranks, (launch.launch, ranks[0])))
    else:
        activity.running.update(ranks)


def was_requeued(job: QueuedJob) -> bool:
    """Whether a queued job was requeued: Slurm holds those back with the reason BeginTime."""
    return job.state != "PENDING" or job.reason == "BeginTime"


def unknown_activity(launches: Sequence[SlurmLaunch]) -> Activity:
    """Without squeue any launched rank may still be queued, so all of them count as pending, not as failed."""
    logger.warning("There is no squeue on this machine: ranks that are not done are shown as pending.")
    ranks = {rank for launch in launches for rank in launch.rank_list}
    return Activity(pending=ranks, holders=["Slurm jobs, perhaps: there is no squeue here to check"])
