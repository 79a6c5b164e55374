"""One attempt of one rank: slice of the plan -> steps -> commit -> completion record."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from stagger.attempt_log import AttemptLog, log
from stagger.errors import BadInput, Interrupted, StaggerError
from stagger.pipeline import Step, StepCount, build, chain, own_seconds
from stagger.plan import RankPlan, read_rank
from stagger.rundir import StageFolder, attempt_name, encode
from stagger.storage import Storage
from stagger.task_context import TaskContext
from stagger.task_settings import TaskSettings
from stagger.uploads import UploadNotes


@dataclass(frozen=True)
class Job:
    """Where an attempt runs: the Slurm job or local process, and how its staggered start went.

    `delay_s` is the drawn delay; `script_started` the time (seconds since the epoch) at which the job began to sleep.
    """

    id: str
    restart: int
    delay_s: float
    script_started: float


class StopFlag:
    """Set by a signal handler, looked at between records: a handler that raised could be swallowed by a step."""

    def __init__(self) -> None:
        self.signal = ""

    def check(self) -> None:
        """Raise Interrupted when a signal has asked the task to stop."""
        if self.signal:
            raise Interrupted(self.signal)


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
        self.started = time.time()
        self.cpu_started = time.process_time()
        self.counts: list[StepCount] = []

    def run(self) -> bool:
        """Run the rank and record how it ended. True when it is done, its completion record in place."""
        with AttemptLog(self.storage, self.folder.log(self.rank, self.name)):
            log(f"rank {self.rank}, attempt {self.name}, job {self.job.id} on {os.uname().nodename}")
            try:
                self._work()
            except Interrupted as error:
                self._record_failure(error)
                raise
            except BaseException as error:  # Also SystemExit: a step that calls sys.exit() has not finished its rank.
                self._record_failure(error)
                return False
        return True

    def _work(self) -> None:
        """Run the steps, commit their outputs, write the completion record: in this order."""
        plan = read_rank(
            self.storage, self.folder.plan(self.settings.fingerprint), self.settings.fingerprint, self.rank
        )
        tag = f"{self.folder.tag}-{self.name}"
        uploads = UploadNotes(self.folder, self.rank, self.name)
        task = TaskContext(
            self.storage,
            self.rank,
            plan.world_size,
            plan.shards,
            tag,
            repeated=self.settings.launch > 1 or self.job.restart > 0,
            read_ahead_bytes=self.settings.read_ahead_mb * 10**6,
            begin_upload=uploads.begin,
        )
        try:
            steps = self._bound_steps(plan, task)
            self.counts = [StepCount(step["use"]) for step in plan.steps]
            self._run_steps(steps, task)
            self.stop.check()
            for count in self.counts:
                if count.error is not None:  # A later step swallowed it, and the records after it are missing.
                    raise count.error
            task.commit()
        except BaseException:
            task.abort()
            uploads.end()
            raise
        record = self._completion(plan, task)
        self.storage.write(self.folder.completion(self.rank), encode(record))
        uploads.end()
        log(f"done: {record['records_in']} records in, {record['records_out']} out", "SUCCESS")

    def _run_steps(self, steps: list[Step], task: TaskContext) -> None:
        """Pull the last step's records: that runs all steps, for the rank as a whole or for each of its shards."""
        rounds = task.shard_by_shard() if any(getattr(step, "shard_by_shard", False) for step in steps) else [None]
        for _ in rounds:
            for _ in chain(steps, self.counts, self.rank, task.world_size, self.stop.check):
                pass
            for step in steps:
                if hasattr(step, "end_shard"):
                    step.end_shard()

    def _bound_steps(self, plan: RankPlan, task: TaskContext) -> list[Step]:
        """The steps, made anew for each rank, so that none keeps anything of another; those that ask know the task."""
        steps = load_steps(self.settings, self.storage, plan)
        for step in steps:
            if hasattr(step, "bind"):
                step.bind(task)
        return steps

    def _completion(self, plan: RankPlan, task: TaskContext) -> dict[str, Any]:
        counts = own_seconds(self.counts)
        outputs = [{"path": o.output.path, "bytes": o.output.size, "records": o.records} for o in task.outputs]
        return {
            "rank": self.rank,
            "world_size": plan.world_size,
            "stage": plan.stage,
            "fingerprint": plan.fingerprint,
            **self._circumstances(),
            "first_read": task.first_read,
            "shards": len(plan.shards),
            "bytes_in": sum(shard.size for shard in plan.shards),
            "records_in": counts[0].records,
            "records_out": sum(o.records for o in task.outputs) if outputs else counts[-1].records,
            "bytes_out": sum(o.output.size for o in task.outputs),
            "outputs": outputs,
            "bad_records": {"skipped": task.bad_records, "examples": task.bad_examples},
            "steps": [{"name": c.name, "records": c.records, "seconds": round(c.seconds, 6)} for c in counts],
        }

    def _circumstances(self) -> dict[str, Any]:
        return {
            "attempt": self.name,
            "launch": self.settings.launch,
            "restart": self.job.restart,
            "job": self.job.id,
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "start_policy": self.settings.start_policy,
            "window_s": self.settings.window_s,
            "delay_s": self.job.delay_s,
            "script_started": self.job.script_started,
            "started": self.started,
            "ended": time.time(),
            "cpu_s": round(time.process_time() - self.cpu_started, 6),
            "peak_rss_mb": peak_rss_mb(),
            "retried": self.storage.retried(),
        }

    def _record_failure(self, error: BaseException) -> None:
        """Say in the log and in a failure record why the attempt ended. The run directory itself may be the reason."""
        import traceback

        kind, message = describe(error, self.counts)
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        log(f"rank {self.rank} failed: {message}\n{trace}", "ERROR")
        record = {"rank": self.rank, "kind": kind, "error": message, "traceback": trace, **self._circumstances()}
        try:
            self.storage.write(self.folder.failure(self.rank, self.name), encode(record))
        except Exception as second:
            log(f"the failure record cannot be written: {second}", "ERROR")


def peak_rss_mb() -> int:
    """The process's largest resident memory, in MiB. Not getrusage's: that one starts from the parent's at the exec."""
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) // 1024
    return 0


def describe(error: BaseException, counts: list[StepCount]) -> tuple[str, str]:
    """(kind, sentence) for a failure record; the step is named that raised the error first."""
    if isinstance(error, Interrupted):
        return "interrupted", f"stopped by {error}"
    step = next((count.name for count in counts if count.error is not None), None)
    where = f" in {step}" if step else ""
    if isinstance(error, (BadInput, StaggerError)):
        return type(error).__name__, f"{error}"
    return type(error).__name__, f"{type(error).__name__}{where}: {error}"


def load_steps(settings: TaskSettings, storage: Storage, plan: RankPlan) -> list[Step]:
    """The steps by their names in the plan; only those of a run of Python objects come from a pickle."""
    if settings.pickle_path:
        from stagger.pickled import load_pickle

        return load_pickle(storage, settings.pickle_path, settings.pickle_sha256)
    return [build(step["use"], step["params"]) for step in plan.steps]
