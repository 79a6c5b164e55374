"""The Slurm jobs of launches: their states in squeue and sacct, and their cancellation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from stagger.errors import StaggerError, counted
from stagger.executor.activity import Activity, EndJob, Waiting
from stagger.executor.base import Jobs, NotCancelled
from stagger.ranks import format_ranks, named_ranks, parse_ranks
from stagger.rundir import end_record
from stagger.rundir.crew_notes import read_notes
from stagger.rundir.launch_records import ArrayRecord, EndJobRecord, SlurmLaunch, write_launch
from stagger.rundir.run_folder import Stage
from stagger.slurm import cluster
from stagger.slurm.answers import Accounted, QueuedJob
from stagger.slurm.command import BRIEF, PATIENT, Wait
from stagger.slurm.room import Charge, allows_no_job
from stagger.slurm.states import has_ended, is_queued, never_starts, reason_of, waits_for_jobs
from stagger.terminal import logger

#: Seconds that accounting has to answer: to tell a user how jobs ended, and to decide about retries.
BRIEFLY = Wait(answer_s=6.0)
PATIENTLY = Wait(answer_s=60.0, retry_s=60.0)

#: Seconds from the beginning of a launch in which its jobs are submitted. A requeue submits a job anew.
SUBMITTED_S = 2 * 3600.0

#: Seconds by which the clocks of the controller and of the launching machine may differ.
CLOCK_S = 600.0

Job = tuple[SlurmLaunch, ArrayRecord | EndJobRecord]


class SlurmJobs(Jobs[SlurmLaunch]):
    """The jobs of Slurm launches. Runs squeue and sacct at most once each, when their output is first needed.

    (Once for each cluster, if the launches are on several; sacct once more where a glance asked for end jobs alone.)
    """

    #: Whether accounting was asked, and answered.
    _answered = False

    @cached_property
    def known(self) -> dict[str, list[QueuedJob]]:
        """Array name -> its elements known to the controller, which forgets ended ones after MinJobAge (300 s).

        Raises StaggerError when Slurm does not answer.
        """
        found: dict[str, list[QueuedJob]] = defaultdict(list)
        for name, launches in self._by_cluster().items():
            users = sorted({cluster.own_user(), *(launch.user for launch in launches if launch.user)})
            assign(found, cluster.known_jobs(users, name, BRIEF if self._brief else PATIENT), launches)
        return found

    def _by_cluster(self) -> dict[str, list[SlurmLaunch]]:
        launches: dict[str, list[SlurmLaunch]] = defaultdict(list)
        for launch in self._launches:
            launches[launch.cluster].append(launch)
        return launches

    def alive(self, name: str) -> list[QueuedJob]:
        """The elements of an array that are queued or running."""
        return [job for job in self.known[name] if not has_ended(job.state)]

    @cached_property
    def _unanswered(self) -> str:
        """Why nobody knows which jobs are active; empty if Slurm answers. Raises StaggerError if not `brief`."""
        if not cluster.has_queue():
            return "There is no squeue on this machine."
        try:
            self.known  # noqa: B018  # Asked here, where a failure can be told.
        except StaggerError as error:
            if not self._brief:
                raise
            return str(error)
        return ""

    @cached_property
    def _ended(self) -> dict[tuple[str, int | None], str]:
        every = ((name, job) for name, jobs in self.known.items() for job in jobs)
        return {(name, job.index): job.state for name, job in every if has_ended(job.state)}

    @cached_property
    def _accounting(self) -> dict[tuple[str, str, int | None], Accounted]:
        """(Cluster, job id, index) -> how it ended, as far as accounting answers."""
        ended: dict[tuple[str, str, int | None], Accounted] = {}
        for name, launches in self._by_cluster().items():
            found = self._asked(name, launches, [job.job_id for launch in launches for job in launch.jobs])
            self._answered |= found is not None
            ended |= found or {}
        return ended

    def _asked(
        self, name: str, launches: Sequence[SlurmLaunch], job_ids: Sequence[str | None]
    ) -> dict[tuple[str, str, int | None], Accounted] | None:
        """How some jobs of `launches` on the cluster `name` ended; None without an answer of accounting."""
        ids = [job_id for job_id in job_ids if job_id]
        if not ids:
            return None
        since = min(launch.time for launch in launches)
        try:
            found = cluster.final_states(ids, since, name, BRIEFLY if self._brief else PATIENTLY)
        except StaggerError as error:
            self._note(f"{str(error).rstrip('.')}. How jobs ended is known only from what they left themselves.")
            return None
        return {(name, *job): end for job, end in found.items()}

    @cached_property
    def _end_jobs(self) -> dict[tuple[str, str, int | None], Accounted]:
        """The same, of end jobs at least. A glance asks for these alone: an array may have 100,000 elements."""
        if not self._brief or "_accounting" in vars(self):
            return self._accounting
        ended: dict[tuple[str, str, int | None], Accounted] = {}
        for name, launches in self._by_cluster().items():
            ended |= self._asked(name, launches, [launch.finalize.job_id for launch in launches]) or {}
        return ended

    def _note(self, sentence: str) -> None:
        """Keep a sentence for the user, or log it, if this command does more than to show the status."""
        if self._brief:
            self.notes.append(sentence)
        else:
            logger.warning(sentence)

    def _end(self, launch: SlurmLaunch, array: ArrayRecord, index: int) -> str | None:
        """The final state of an element; None if unknown. The controller has it earlier, accounting keeps it longer.

        An element without a state of its own, in an array that was cancelled, was cancelled before it started.
        """
        for one in (index, None):
            known = self._ended.get((array.name, one))
            if known is None:
                found = self._accounting.get((launch.cluster, array.job_id or "", one))
                known = found and found.state
            if known is not None:
                return known
        return None

    def activity(self, stage: Stage, launches: Sequence[SlurmLaunch]) -> Activity:
        if self._unanswered:
            return self._unknown(stage, launches)
        activity = Activity()
        for launch in launches:
            activity.ending |= any(not is_stuck(job) for job in self.alive(launch.finalize.name))
            for array in launch.arrays:
                alive = self.alive(array.name)
                ranks = array.elements(launch.ranks_per_job) if alive else []
                for job in alive:
                    note_job(activity, launch, job, ranks_of(job, ranks))
                for job_id in sorted({job.job_id for job in alive}):
                    activity.holders.append(f"Slurm job {job_id} (launch {launch.launch})")
        self._add_hidden(stage, activity, launches)
        self._add_forbidden(activity, launches)
        return activity

    def _add_forbidden(self, activity: Activity, launches: Sequence[SlurmLaunch]) -> None:
        """Note which ranks wait for a limit on the number of jobs that is 0: they never start."""
        limited = {rank: why for rank, why in activity.waiting.items() if waits_for_jobs(why.reason)}
        if limited and (limit := self._zero_limit(charge_in(launches[-1].resources))):
            words = f"{limit} is 0, so that none of its jobs starts; ask for another one, or for a higher limit"
            activity.waiting |= {rank: why._replace(starts="never", message=words) for rank, why in limited.items()}

    def _zero_limit(self, charge: Charge) -> str:
        if charge not in self._zero_limits:
            self._zero_limits[charge] = allows_no_job(charge)
        return self._zero_limits[charge]

    @cached_property
    def _zero_limits(self) -> dict[Charge, str]:
        return {}

    def _unknown(self, stage: Stage, launches: Sequence[SlurmLaunch]) -> Activity:
        """Without squeue any launched rank may still be queued or running."""
        self._note(f"{self._unanswered.rstrip('.')}. What is shown is what the run directory says; jobs may be active.")
        ranks = {rank for launch in launches for rank in launch.rank_list}
        return Activity(unknown=ranks, holders=[f"Slurm jobs, perhaps: {self._unanswered}"])

    def _add_hidden(self, stage: Stage, activity: Activity, launches: Sequence[SlurmLaunch]) -> None:
        """Add ranks that another member of the run's group launched, if Slurm hides other users' jobs from this one."""
        if not (others := self._hidden(stage, launches)):
            return
        users = users_of(others)
        self._note(f"Slurm hides the jobs of {users} from you (PrivateData): whether they are active is unknown.")
        activity.unknown |= not_done(stage, others) - activity.ranks
        activity.holders.append(f"jobs of {users}, perhaps: Slurm hides them from you")

    def _hidden(self, stage: Stage, launches: Sequence[SlurmLaunch]) -> list[SlurmLaunch]:
        """The launches of others with ranks that may be active, but that Slurm does not show to this user."""
        others = [one for one in launches if is_of_another(one) and not self._is_known(one)]
        others = [one for one in others if not end_record.has_ended(stage.folder, one.launch)]
        return others if others and not_done(stage, others) and not self._sees_all_users else []

    @cached_property
    def _sees_all_users(self) -> bool:
        return cluster.sees_all_users()

    def _is_known(self, launch: SlurmLaunch) -> bool:
        return any(self.known[job.name] for job in launch.jobs)

    def end_states(self, launch: SlurmLaunch, ranks: set[int]) -> dict[int, str]:
        if self._unanswered:
            return {}
        states: dict[int, str] = {}
        for array in launch.arrays:
            if ranks.isdisjoint(array.rank_list):
                continue
            for index, job in enumerate(array.elements(launch.ranks_per_job)):
                wanted = [rank for rank in job if rank in ranks]
                if wanted and (state := self._end(launch, array, index)) is not None:
                    states |= dict.fromkeys(wanted, state)
        if self._answered and (forgotten := len(ranks - states.keys())):
            self._note(
                f"Neither Slurm's controller nor its accounting has a record any more of the jobs of"
                f" {counted(forgotten, 'rank')} of launch {launch.launch}: how they ended is unknown."
            )
        return states

    def accounted(self, launch: SlurmLaunch, ranks: set[int]) -> dict[int, Accounted]:
        found: dict[int, Accounted] = {}
        for array in launch.arrays:
            for index, job in enumerate(array.elements(launch.ranks_per_job)):
                wanted = ranks.intersection(job)
                end = self._accounting.get((launch.cluster, array.job_id or "", index)) if wanted else None
                if end is not None:
                    found |= dict.fromkeys(wanted, end)
        return found

    def running(self, launch: SlurmLaunch, rank: int) -> dict[str, int]:
        found = {}
        for array in launch.arrays:
            elements = array.elements(launch.ranks_per_job)
            for job in self.alive(array.name):
                if job.state == "RUNNING" and job.index is not None and rank in ranks_of(job, elements):
                    found[f"{job.job_id}_{job.index}"] = job.seconds or 0
        return found

    def end_job(self, launch: SlurmLaunch) -> EndJob | None:
        if self._unanswered or (is_of_another(launch) and not self._is_known(launch) and not self._sees_all_users):
            return None
        name, job_id = launch.finalize.name, launch.finalize.job_id
        for job in self.known[name]:
            return EndJob(job.state, job.reason)
        found = self._end_jobs.get((launch.cluster, job_id or "", None))
        return EndJob(found.state if found else "")

    def cancel(self, stage: Stage, launches: Sequence[SlurmLaunch], ranks: set[int] | None = None) -> list[str]:
        stopped: list[str] = []
        refused: list[str] = []
        for launch in launches:
            try:
                one = self._cancel_launch(stage, launch) if ranks is None else self._cancel_ranks(stage, launch, ranks)
                stopped += one
            except NotCancelled as error:
                refused.append(str(error))
        if hidden := self._hidden(stage, launches):
            users = users_of(hidden)
            refused.append(f"Slurm hides the jobs of {users} from you (PrivateData): only {users} can cancel them.")
        if refused:
            raise NotCancelled(refused, stopped)
        return stopped

    def _cancel_launch(self, stage: Stage, launch: SlurmLaunch) -> list[str]:
        """Cancel the queued and running jobs of a launch, its end job included."""
        alive = [job for job_of in launch.jobs for job in self.alive(job_of.name)]
        active = sorted({job.job_id for job in alive})
        if active:  # A launch of which only the end job is left has no ranks to cancel.
            ranks_left = any(self.alive(array.name) for array in launch.arrays)
            after = replace(launch, cancelled="by stagger cancel") if ranks_left else launch
            scancel(stage, launch, after, active, alive[0].cluster)
        return [f"cancelled Slurm job {number}" for number in active]

    def _cancel_ranks(self, stage: Stage, launch: SlurmLaunch, ranks: set[int]) -> list[str]:
        """Cancel the jobs of a launch that run, or would run, any of `ranks`."""
        found: dict[str, list[int]] = {}
        where = launch.cluster
        for array in launch.arrays:
            by_index = array.elements(launch.ranks_per_job)
            for job in self.alive(array.name):
                if not ranks.isdisjoint(mine := ranks_of(job, by_index)):
                    found[job.job_id if job.index is None else f"{job.job_id}_{job.index}"] = mine
                    where = job.cluster
        if not found:
            return []
        stopped = {rank for job in found.values() for rank in job}
        cancelled = format_ranks([*parse_ranks(launch.cancelled_ranks), *stopped])
        scancel(stage, launch, replace(launch, cancelled_ranks=cancelled), list(found), where)
        others = f"; {named_ranks(stopped - ranks, 'was')} in the same jobs" if stopped - ranks else ""
        return [f"cancelled {named_ranks(stopped & ranks)} ({counted(len(found), 'job')}){others}"]


def scancel(stage: Stage, launch: SlurmLaunch, cancelled: SlurmLaunch, jobs: list[str], where: str) -> None:
    """Cancel jobs of a launch on the cluster `where`, and record that as `cancelled`. Raises NotCancelled when Slurm
    refuses.

    The record is written first: no concurrent end job may take the cancelled jobs for failed. When Slurm refuses, it is
    taken back. Jobs that were cancelled all the same have that state in Slurm, and are not retried either.
    """
    write_launch(stage.folder, cancelled)
    try:
        cluster.cancel(jobs, where)
    except StaggerError as error:
        write_launch(stage.folder, launch)
        reason = str(error).rstrip(".")
        raise NotCancelled([f"{reason}. Jobs of launch {launch.launch} of {stage.name} go on."]) from error


def assign(found: dict[str, list[QueuedJob]], jobs: Iterable[QueuedJob], launches: Sequence[SlurmLaunch]) -> None:
    """Add to `found` the jobs of `launches` among those of a cluster, under the names of their records."""
    by_name: dict[str, Job] = {job.name: (launch, job) for launch in launches for job in launch.jobs}
    by_id = {job.job_id: (launch, job) for launch, job in by_name.values() if job.job_id}
    unlocated = [job.name for _, job in by_name.values() if job.job_id is None]
    for job in jobs:
        if job.name in by_name:
            found[job.name].append(job)
        elif (one := by_id.get(job.job_id)) is not None:
            if job.is_called(one[1].name) or may_be(job, *one):
                found[one[1].name].append(job)
        elif name := next((name for name in unlocated if job.is_called(name)), None):
            found[name].append(job)


def may_be(job: QueuedJob, launch: SlurmLaunch, record: ArrayRecord | EndJobRecord) -> bool:
    """Whether a job with the id of a launch's job, but another name and script, can be it: Slurm may reuse ids.

    A site's plug-ins and wrappers of sbatch may change both. But a launch submits its jobs at once.
    """
    if isinstance(record, EndJobRecord) and job.index is not None:
        return False
    if isinstance(record, ArrayRecord) and (job.index or 0) >= record.jobs:
        return False
    if isinstance(record, ArrayRecord) and job.index is None and not has_ended(job.state):
        return False
    return job.submitted is None or -CLOCK_S <= job.submitted - launch.time <= SUBMITTED_S


def ranks_of(job: QueuedJob, elements: list[list[int]]) -> list[int]:
    """The ranks that a job of an array runs, by its index; all of them for an array that Slurm lists as one job."""
    if job.index is None:
        return [rank for element in elements for rank in element]
    return elements[job.index] if job.index < len(elements) else []


def is_of_another(launch: SlurmLaunch) -> bool:
    """Whether another member of the run's group submitted the jobs of a launch."""
    return launch.user not in ("", cluster.own_user())


def users_of(launches: Sequence[SlurmLaunch]) -> str:
    """The names of the users who submitted the jobs of these launches."""
    return ", ".join(sorted({launch.user for launch in launches}))


def not_done(stage: Stage, launches: Sequence[SlurmLaunch]) -> set[int]:
    return {rank for launch in launches for rank in launch.rank_list} - stage.folder.done()


def note_job(activity: Activity, launch: SlurmLaunch, job: QueuedJob, ranks: list[int]) -> None:
    """Add the ranks of a queued or running job to a stage's activity."""
    if job.state == "COMPLETING":
        activity.completing.update(ranks)
    if is_queued(job.state):
        (activity.requeued if was_requeued(job) else activity.pending).update(ranks)
        if (why := reason_of(job.reason, job.job_id)) is not None:
            activity.waiting |= dict.fromkeys(ranks, Waiting(job.job_id, job.reason, why.starts, why.words))
        elif job.reason not in ("", "None") and not was_requeued(job):
            activity.ordinary |= dict.fromkeys(ranks, job.reason)
    elif launch.crews and (note := read_notes(launch.log_dir, f"{job.job_id}_{job.index}", launch.crews)).running:
        activity.running.update(note.running.intersection(ranks))
        activity.failing.update(note.failed.intersection(ranks))
        activity.pending.update(set(ranks) - note.running - note.failed)
    elif job.seconds is not None and job.seconds <= launch.window_s:
        activity.starting.update(dict.fromkeys(ranks, (launch.launch, ranks[0])))
    else:
        activity.running.update(ranks)


def charge_in(resources: Mapping[str, Any]) -> Charge:
    """What the jobs of a launch with these resources are charged to."""
    options = resources.get("sbatch")
    options = options if isinstance(options, dict) else {}  # Records check only what they need.
    given = {key: options.get(key, resources.get(key)) for key in ("account", "partition", "qos")}
    return Charge(**{key: str(value) for key, value in given.items() if value})


def is_stuck(job: QueuedJob) -> bool:
    """Whether a job is queued and never starts as it is."""
    return is_queued(job.state) and never_starts(job.reason)


def was_requeued(job: QueuedJob) -> bool:
    """Whether a queued job was requeued: Slurm holds those back with the reason BeginTime."""
    return job.state != "PENDING" or job.reason == "BeginTime"
