"""One attempt of one rank: slice of the plan -> steps -> commit -> completion record."""

from __future__ import annotations

import os
import time
from functools import cached_property
from typing import TYPE_CHECKING

from stagger.errors import Interrupted, counted
from stagger.pipeline import COUNTS
from stagger.pipeline.chain import Step, StepCount, chain
from stagger.pipeline.hooks import writers
from stagger.pipeline.task_context import Circumstances, StopFlag, TaskContext
from stagger.rundir.plan_file import RankPlan, read_rank
from stagger.rundir.stage_folder import StageFolder, attempt_name, attempt_order, encode
from stagger.storage.storage import Storage, is_local, without_secrets
from stagger.task import Committed, Job, Superseded, TaskSettings
from stagger.task.attempt_log import AttemptLog, log
from stagger.task.making_steps import committed_blocks, hand_on, made_steps, repeatable_steps, step_counts
from stagger.task.own_process import Usage, gpus_watched

if TYPE_CHECKING:
    from stagger.task.attempt_records import AttemptRecords
    from stagger.task.commit import RankCommit
    from stagger.task.upload_notes import UploadNotes

#: Seconds of a job's age below which a rank's first attempt on remote storage does not check for a later attempt: this
#: saves a request per rank. Slurm gives up an unreachable node after SlurmdTimeout, 300 s by default, and restarts its
#: jobs two minutes later (slurm.conf(5)). On a node that responds, the old job is killed before its requeue.
YOUNG_S = 300.0


class Attempt:
    """One execution of one rank."""

    def __init__(self, settings: TaskSettings, storage: Storage, job: Job, rank: int, stop: StopFlag) -> None:
        self.settings = settings
        self.storage = storage
        self.job = job
        self.rank = rank
        self.stop = stop
        self.name = attempt_name(settings.launch, job.restart)
        self.folder = StageFolder(storage, settings.stage_dir)
        self.usage = Usage()
        self.steps: list[Step] = []
        self.counts: list[StepCount] = []
        self.uploads: UploadNotes | None = None
        self.commit: RankCommit | None = None

    @cached_property
    def records(self) -> AttemptRecords:
        """Its records. Of a first attempt, their module is imported after the first read."""
        from stagger.task.attempt_records import AttemptRecords

        return AttemptRecords(self.settings, self.job, self.rank, self.folder, self.usage)

    @property
    def repeated(self) -> bool:
        """Whether there may have been an earlier attempt."""
        return self.settings.launch > 1 or self.job.restart > 0

    def run(self) -> bool:
        """Run the rank and record the outcome. True when the rank is done and its completion record written."""
        if self.repeated and self.records.earlier(self.folder.completion(self.rank)):
            log(f"rank {self.rank} is already done")
            return True
        name = f"{self.name}.node{self.job.process}" if self.job.process else self.name
        with AttemptLog(self.storage, self.folder.log(self.rank, name), announce=self.repeated):
            log(f"rank {self.rank}, attempt {self.name}, job {self.job.id} on {os.uname().nodename}")
            try:
                self._work()
            except Interrupted as error:
                self.record_failure(error)
                raise
            except BaseException as error:  # Including SystemExit: a step that calls sys.exit() has not finished.
                self.record_failure(error)
                return False
        hand_on(self.folder.plan(self.settings.fingerprint), self.steps)
        self.job.advanced = True
        return True

    def _work(self) -> None:
        """Run the steps, commit their outputs, write the completion record, in this order."""
        plan = read_rank(
            self.storage, self.folder.plan(self.settings.fingerprint), self.settings.fingerprint, self.rank
        )
        before = self.records.resume(plan) if self.repeated and self.settings.commit == "shard" else {}
        task = self._context(plan, before.get("shards", 0))
        task.notes.update(before.get("notes", {}))
        COUNTS.clear()
        try:
            self._make_steps(plan, task)
            with committed_blocks(self.steps, task), gpus_watched() as self.usage.gpus:
                self._run_steps(self.steps, plan, task)
                self._commit(plan, task, len(plan.shards))
        except Committed:
            task.abort()
            log(f"rank {self.rank} is already done: an earlier attempt has committed it meanwhile")
        except BaseException:
            self.stop.in_steps = False
            task.abort()
            raise
        finally:
            task.close()
            if self.uploads is not None:
                self.uploads.end()
            for protocol, library in self.storage.libraries().items():
                log(f"{protocol}: requests by {without_secrets(library)}")

    def _context(self, plan: RankPlan, committed: int) -> TaskContext:
        """What the steps know of their task. The first `committed` shards have been read and committed before."""
        return TaskContext(
            self.storage,
            self.rank,
            plan.world_size,
            plan.shards[committed:],
            f"{self.folder.tag}-{self.name}" + (f"-{self.job.process}" if self.job.process else ""),
            read_ahead_bytes=self.settings.read_ahead_mb * 10**6,
            request_share=self.settings.request_share,
            begin_upload=self._begin_upload,
            cpus=self.settings.cpus,
            circumstances=Circumstances(
                self.settings.stage_dir,
                self.name,
                self.job.id,
                self.stop,
                self.settings.run_dir,
                self.settings.uses,
                plan.stage,
                self.settings.users,
            ),
        )

    def _make_steps(self, plan: RankPlan, task: TaskContext) -> None:
        """Make the steps. From here to the commit, a stop signal that they ignore interrupts them (stopping.py)."""
        self.stop.in_steps = True
        self.steps = made_steps(self.settings, self.folder, plan, task)
        self.counts = step_counts(self.settings, plan, task)

    def record_failure(self, error: BaseException) -> None:
        """Log why the attempt ended, and write a failure record."""
        self.records.write_failure(error, self.counts)

    def _begin_upload(self, path: str) -> None:
        """Write a note before a multipart upload begins. Few ranks write that much; the others skip the import."""
        if self.uploads is None:
            from stagger.task.upload_notes import UploadNotes

            self.uploads = UploadNotes(self.folder, self.rank, self.name)
        self.uploads.begin(path)

    def _commit(self, plan: RankPlan, task: TaskContext, shards: int) -> None:
        """Commit the outputs since the last commit, and with them the record of the rank's first `shards` shards.

        Raises what a step has raised, also if a later step swallowed it; and Superseded.
        """
        self.stop.in_steps = False
        self.stop.check()
        for count in self.counts:
            if count.error is not None:  # The records after it are missing.
                raise count.error
        if self.job.process:
            task.abort()
            self.stop.in_steps = shards < len(plan.shards)
            return
        from stagger.task.commit import RankCommit

        self._check_latest()
        files = task.finish()
        record = self.records.completion(plan, task, self.steps, self.counts, shards)
        done = shards == len(plan.shards)
        path = self.folder.completion(self.rank) if done else self.folder.progress(self.rank)
        keep = {output["path"] for output in record["outputs"]} if done else None
        if self.commit is None:
            self.commit = RankCommit(self.folder, self.rank, self.name, self.job.id, repeated=self.repeated)
        self.commit.publish(files, path, encode(record), keep)
        task.committed()
        self.stop.in_steps = not done
        if done:
            log(f"done: {counted(record['records_in'], 'record')} in, {record['records_out']:,} out", "SUCCESS")
            if "dropped" in record or "counts" in record:
                from stagger.task.counted import lines

                for line in lines(record):
                    log(line)

    def _check_latest(self) -> None:
        """Raise Superseded when a later attempt of the rank has started: every attempt has a log from its start."""
        path = self.folder.log(self.rank, self.name)
        young = not self.repeated and time.time() - self.job.script_started < YOUNG_S
        if young and not is_local(path):
            return
        logs = self.storage.list(path.rpartition("/")[0])
        latest = max((entry.name.removesuffix(".log") for entry in logs), key=attempt_order, default=self.name)
        if attempt_order(latest) > attempt_order(self.name):
            raise Superseded(f"Attempt {latest} of this rank has started: attempt {self.name} commits nothing.")

    def _run_steps(self, steps: list[Step], plan: RankPlan, task: TaskContext) -> None:
        """Exhaust the last step, which runs all steps, once for the whole rank or once per shard."""
        removal = [count.removal for count in self.counts if count.removal is not None]
        named = [*writers(steps), *removal]
        by_shard = any(writer.shard_by_shard for writer in named)
        if by_shard and self.settings.commit != "shard" and not all(may := repeatable_steps(plan, steps)):
            from stagger.pipeline.shard_boundaries import RankSteps

            RankSteps(steps, may, self.counts, task, self.stop.check).run()
            return
        ended = len(plan.shards) - len(task.all_shards)
        for shard in task.shard_by_shard() if by_shard else [None]:
            if shard is not None:
                for writer in named:
                    writer.begin_shard(shard)
            for _ in chain(steps, self.counts, self.rank, task.world_size, self.stop.check):
                pass
            for writer in named:
                writer.end_shard()
            if self.settings.commit == "shard" and shard is not None:
                ended += 1
                if ended < len(plan.shards):  # The last is committed with the rank.
                    self._commit(plan, task, ended)
                self.job.advanced = True
