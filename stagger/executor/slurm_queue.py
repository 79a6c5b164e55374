"""The Slurm jobs of launches, by their launch records: what Slurm says of them, and cancelling them."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from typing import Any

from loguru import logger

from stagger.executor.activity import Activity
from stagger.executor.base import Jobs
from stagger.ranks import format_ranks, parse_ranks
from stagger.rundir.launch_records import write_launch
from stagger.rundir.stage_folder import StageFolder
from stagger.slurm import cluster
from stagger.slurm.answers import QueuedJob
from stagger.slurm.states import has_ended, is_queued


def jobs_of(launch: dict[str, Any]) -> list[dict[str, Any]]:
    """The arrays of a launch, and the job that ends it."""
    return [*launch["arrays"], launch["finalize"]]


def elements(array: dict[str, Any], ranks_per_job: int) -> list[list[int]]:
    """The ranks of each element of a launched array."""
    ranks = parse_ranks(array["ranks"])
    return [ranks[i : i + ranks_per_job] for i in range(0, len(ranks), ranks_per_job)]


class SlurmJobs(Jobs):
    """What Slurm says of the jobs of some launches: asked once, when it is first wanted, whatever their number."""

    @cached_property
    def jobs(self) -> dict[str, list[QueuedJob]]:
        """The elements of each array, by its name, that the controller knows; those that ended, for a few minutes."""
        found: dict[str, list[QueuedJob]] = defaultdict(list)
        for job in cluster.known_jobs([job["name"] for launch in self._launches for job in jobs_of(launch)]):
            found[job.name].append(job)
        return found

    @cached_property
    def _ended(self) -> dict[tuple[str, int], str]:
        return {(job.name, job.index): job.state for jobs in self.jobs.values() for job in jobs if has_ended(job.state)}

    @cached_property
    def _accounting(self) -> dict[tuple[str, int], str]:
        arrays = [array["job_id"] for launch in self._launches for array in launch["arrays"] if array["job_id"]]
        return cluster.final_states(arrays)

    def end(self, name: str, job_id: str, index: int) -> str | None:
        """How an element ended, None when nobody knows. The controller knows it first, accounting for longer."""
        return self._ended.get((name, index)) or self._accounting.get((job_id, index))

    def activity(self, folder: StageFolder, launches: list[dict[str, Any]], run_dir: str) -> Activity:
        if not cluster.is_here():
            return unknown_activity(launches)
        activity = Activity()
        for launch in launches:
            activity.ending |= any(not has_ended(job.state) for job in self.jobs[launch["finalize"]["name"]])
            for array in launch["arrays"]:
                queued = [job for job in self.jobs[array["name"]] if not has_ended(job.state)]
                ranks = elements(array, launch["ranks_per_job"]) if queued else []
                for job in queued:
                    mine = ranks[job.index]
                    if is_queued(job.state):
                        (activity.requeued if began_before(job) else activity.pending).update(mine)
                    elif job.seconds is not None and job.seconds <= launch["window_s"]:
                        activity.starting.update(dict.fromkeys(mine, (launch["launch"], mine[0])))
                    else:
                        activity.running.update(mine)
                for job_id in sorted({job.job_id for job in queued}):
                    activity.holders.append(f"Slurm job {job_id} (launch {launch['launch']})")
        return activity

    def end_states(self, launch: dict[str, Any], ranks: set[int]) -> dict[int, str]:
        mine = [a for a in launch["arrays"] if a["job_id"] and not ranks.isdisjoint(parse_ranks(a["ranks"]))]
        return {
            rank: state
            for array in mine
            for index, job in enumerate(elements(array, launch["ranks_per_job"]))
            for rank in job
            if rank in ranks and (state := self.end(array["name"], array["job_id"], index)) is not None
        }

    def cancel(
        self, folder: StageFolder, launches: list[dict[str, Any]], run_dir: str, ranks: set[int] | None = None
    ) -> list[str]:
        return [
            line
            for launch in launches
            for line in (
                cancel_launch(folder, launch, self) if ranks is None else cancel_ranks(folder, launch, self, ranks)
            )
        ]


def began_before(job: QueuedJob) -> bool:
    """Whether a queued job has run before: it waits a while, as Slurm has it."""
    return job.state != "PENDING" or job.reason == "BeginTime"


def cancel_launch(folder: StageFolder, launch: dict[str, Any], jobs: SlurmJobs) -> list[str]:
    """Cancel what is left of a launch, the job that ends it included."""
    names = [job["name"] for job in jobs_of(launch)]
    active = sorted({job.job_id for name in names for job in jobs.jobs[name] if not has_ended(job.state)})
    if active:  # Written first: whoever looks at it meanwhile is to know that it is on purpose.
        write_launch(folder, {**launch, "cancelled": "by stagger cancel"})
    cluster.cancel(active)
    return [f"cancelled Slurm job {number}" for number in active]


def cancel_ranks(folder: StageFolder, launch: dict[str, Any], jobs: SlurmJobs, ranks: set[int]) -> list[str]:
    """Cancel the jobs of a launch that run, or would run, any of these ranks."""
    found: dict[str, list[int]] = {}
    for array in launch["arrays"]:
        by_index = elements(array, launch["ranks_per_job"])
        for job in jobs.jobs[array["name"]]:
            if not has_ended(job.state) and not ranks.isdisjoint(by_index[job.index]):
                found[f"{job.job_id}_{job.index}"] = by_index[job.index]
    if not found:
        return []
    stopped = {rank for job in found.values() for rank in job}
    before = parse_ranks(launch.get("cancelled_ranks", ""))
    write_launch(folder, {**launch, "cancelled_ranks": format_ranks([*before, *stopped])})
    cluster.cancel(found)
    others = f"; ranks {format_ranks(stopped - ranks)} were in the same jobs" if stopped - ranks else ""
    return [
        f"cancelled ranks {format_ranks(stopped & ranks)} ({len(found)} job{'s' if len(found) > 1 else ''}){others}"
    ]


def unknown_activity(launches: list[dict[str, Any]]) -> Activity:
    """Where no Slurm can be asked, whatever was launched may still be waiting, and is not called failed."""
    logger.warning("There is no squeue on this machine: ranks that are not done are shown as pending.")
    ranks = {rank for launch in launches for rank in parse_ranks(launch["ranks"])}
    return Activity(pending=ranks, holders=["Slurm jobs, perhaps: there is no squeue here to ask"])
