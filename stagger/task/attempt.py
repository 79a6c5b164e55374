"""One attempt of one rank: slice of the plan -> steps -> commit -> completion record."""

from __future__ import annotations

import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from stagger.errors import BadInput, Interrupted, StaggerError, counted
from stagger.pipeline import COUNTS
from stagger.pipeline.chain import Step, StepCount, build, chain, own_seconds
from stagger.pipeline.hooks import bound_steps, kept_names, writers
from stagger.pipeline.task_context import EXAMPLES, Circumstances, StopFlag, TaskContext
from stagger.rundir.plan_file import RankPlan, read_rank
from stagger.rundir.stage_folder import (
    COMPLETION_KEYS,
    StageFolder,
    attempt_name,
    attempt_order,
    check_progress,
    damaged,
    decode,
    encode,
)
from stagger.storage.storage import Storage, is_local, without_secrets
from stagger.task import Committed, Superseded, TaskSettings
from stagger.task.attempt_log import AttemptLog, log

if TYPE_CHECKING:
    from stagger.task.commit import RankCommit
    from stagger.task.gpus import GpuSampler
    from stagger.task.recorded import RecordedOutputs
    from stagger.task.upload_notes import UploadNotes

#: Seconds of a job's age below which a rank's first attempt on remote storage does not check for a later attempt: this
#: saves a request per rank. Slurm gives up an unreachable node after SlurmdTimeout, 300 s by default, and restarts its
#: jobs two minutes later (slurm.conf(5)). On a node that responds, the old job is killed before its requeue.
YOUNG_S = 300.0


@dataclass
class Job:
    """Where attempts run: the Slurm job or local process, and its staggered start.

    `delay_s` is the drawn delay in seconds; `script_started` is the time (seconds since the epoch) at which the job
    began to sleep; `process` numbers the processes of a job on several nodes, of which only process 0 commits and
    records; `advanced` is set once the job has completed work that will not be repeated.
    """

    id: str
    restart: int
    delay_s: float
    script_started: float
    process: int = 0
    processes: int = 1
    advanced: bool = False


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
        self.cpu_started = cpu_seconds()
        self.children_started = children_cpu_s()
        self.steps: list[Step] = []
        self.counts: list[StepCount] = []
        self.before: dict[str, Any] = {}
        self.bytes_in = self.shards_in = 0
        self.uploads: UploadNotes | None = None
        self.commit: RankCommit | None = None
        self.gpus: GpuSampler | None = None

    @cached_property
    def recorded(self) -> RecordedOutputs:
        """What the records list as outputs. Its module is imported after the first read, at the first commit."""
        from stagger.task.recorded import RecordedOutputs

        return RecordedOutputs()

    @property
    def repeated(self) -> bool:
        """Whether there may have been an earlier attempt."""
        return self.settings.launch > 1 or self.job.restart > 0

    def run(self) -> bool:
        """Run the rank and record the outcome. True when the rank is done and its completion record written."""
        if self.repeated and self._record(self.folder.completion(self.rank)):
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
        if self.repeated and self.settings.commit == "shard":
            self.before = self._progress(plan)
        task = TaskContext(
            self.storage,
            self.rank,
            plan.world_size,
            plan.shards[self.before.get("shards", 0) :],
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
        task.notes.update(self.before.get("notes", {}))
        COUNTS.clear()
        try:
            self._make_steps(plan, task)
            with committed_blocks(self.steps, task), gpus_watched() as self.gpus:
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

    def _make_steps(self, plan: RankPlan, task: TaskContext) -> None:
        """Make the steps. From here to the commit, a stop signal that they ignore interrupts them (stopping.py)."""
        self.stop.in_steps = True
        self.steps = self._bound_steps(plan, task)
        self.counts = [StepCount(step["use"]) for step in plan.steps]
        self._keep_removed(plan, task)

    def _begin_upload(self, path: str) -> None:
        """Write a note before a multipart upload begins. Few ranks write that much; the others skip the import."""
        if self.uploads is None:
            from stagger.task.upload_notes import UploadNotes

            self.uploads = UploadNotes(self.folder, self.rank, self.name)
        self.uploads.begin(path)

    def _progress(self, plan: RankPlan) -> dict[str, Any]:
        """The progress record of earlier attempts: a completion record of the first `shards` shards, all committed.

        Empty when there is none, or when one of its outputs is missing or has changed. Raises StaggerError when it is
        damaged, or does not fit the plan.
        """
        path = self.folder.progress(self.rank)
        record = self._record(path)
        if not record:
            return {}
        from stagger.rundir.progress_pages import outputs_of

        check_progress(record, len(plan.shards), len(plan.steps), path)
        outputs: list[Any] = outputs_of(self.folder, self.rank, record)
        if sum(output["bytes"] for output in outputs) != record["bytes_out"]:
            raise damaged(path, "its outputs do not have bytes_out bytes")
        there = self.storage.entries([output["path"] for output in outputs])
        for output, entry in zip(outputs, there, strict=True):
            if entry is None or entry.size != output["bytes"]:
                log(f"{output['path']} is gone or changed; the rank starts over", "WARNING")
                return {}
        log(f"resumes after {counted(record['shards'], 'shard')}, committed by attempt {record['attempt']}")
        self.recorded.resume(outputs, record.get("pages", []), len(record["outputs"]))
        return record

    def _record(self, path: str) -> dict[str, Any]:
        """A record of an earlier attempt; empty when there is none, or when it belongs to another plan."""
        try:
            record = decode(self.storage.read(path), path, *COMPLETION_KEYS)
        except FileNotFoundError:
            return {}
        return record if record["fingerprint"] == self.settings.fingerprint else {}

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
        record = self._completion(plan, task, shards)
        done = shards == len(plan.shards)
        record |= {"outputs": self.recorded.entries} if done else self.recorded.progress(self._write_page)
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

    def _write_page(self, number: int, outputs: list[dict[str, Any]]) -> str:
        path = self.folder.page(self.rank, self.name, number)
        self.storage.write(path, encode({"outputs": outputs}))
        return path.rpartition("/")[2]

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

    def _bound_steps(self, plan: RankPlan, task: TaskContext) -> list[Step]:
        """The steps, created anew for each rank so that no state carries over, and bound to the task."""
        steps = load_steps(self.settings, self.storage, plan)
        take_over(self.folder.plan(self.settings.fingerprint), steps)
        for step in bound_steps(steps):
            step.bind(task)
        return steps

    def _keep_removed(self, plan: RankPlan, task: TaskContext) -> None:
        """Let the documents be written that steps remove, for the steps of which that is wanted."""
        if any("removed" in step for step in plan.steps):
            from stagger.steps.removed import removal_writers  # Imported late: few pipelines keep what they remove.

            for count, writer in zip(
                self.counts, removal_writers(plan.steps, self.settings.commit == "shard"), strict=True
            ):
                if writer is not None:
                    writer.bind(task)
                    count.removal = writer

    def _completion(self, plan: RankPlan, task: TaskContext, shards: int) -> dict[str, Any]:
        """The record of the rank's first `shards` shards, with those of earlier attempts, but without its outputs."""
        counts = own_seconds(self.counts)
        self.recorded.add(task.outputs)
        self.bytes_in += sum(shard.size for shard in plan.shards[self.shards_in : shards])
        self.shards_in = shards
        record = {
            "rank": self.rank,
            "world_size": plan.world_size,
            "stage": plan.stage,
            "fingerprint": plan.fingerprint,
            **self._circumstances(),
            "first_read": task.first_read,
            "shards": shards,
            "bytes_in": self.bytes_in,
            "records_in": counts[0].records,
            "records_out": self.recorded.results or counts[-1].records,
            "bytes_out": self.recorded.bytes,
            "outputs": [],
            "bad_records": {"skipped": task.bad_records, "examples": task.bad_examples},
            "steps": [{"name": c.name, "records": c.records, "seconds": round(c.seconds, 6)} for c in counts],
            **({"left_out": task.left_out} if task.left_out else {}),
            **({"notes": task.notes} if task.notes else {}),
        }
        counting = (count.counts or hasattr(step, "stats") for count, step in zip(counts, self.steps, strict=True))
        if COUNTS or task.made_blocks or any(counting):
            from stagger.task.counted import add_statistics  # Imported late: the steps of most ranks count nothing.

            add_statistics(record, counts, self.steps, task.made_blocks)
        return added(self.before, record) if self.before else record

    def _circumstances(self) -> dict[str, Any]:
        return {
            "attempt": self.name,
            "launch": self.settings.launch,
            "restart": self.job.restart,
            "job": self.job.id,
            "host": node_name(),
            "pid": os.getpid(),
            "start_policy": self.settings.start_policy,
            "window_s": self.settings.window_s,
            "delay_s": self.job.delay_s,
            "script_started": self.job.script_started,
            "started": self.started,
            "ended": time.time(),
            "cpu_s": round(cpu_seconds() - self.cpu_started, 6),
            "peak_rss_mb": peak_rss_mb() + self._children_mib(),
            "retried": self.storage.retried(),
            **({"gpus": self.gpus.use} if self.gpus is not None and self.gpus.use else {}),
        }

    def _children_mib(self) -> int:
        """Peak memory of the processes that this attempt's steps started, in MiB; 0 without any."""
        if not has_children() and children_cpu_s() == self.children_started:
            return 0
        from stagger.task.children import peak_mib

        return peak_mib()

    def record_failure(self, error: BaseException) -> None:
        """Log why the attempt ended, and write a failure record. The run directory itself may be unwritable."""
        import traceback

        kind, message = describe(error, self.counts)
        message = without_secrets(message)
        step = next((count.name for count in self.counts if count.error is not None), None)
        trace = [without_secrets(part) for part in traceback.format_exception(type(error), error, error.__traceback__)]
        log(f"rank {self.rank} failed: {message}", "ERROR", trace)
        record = {"rank": self.rank, "kind": kind, "step": step, "error": message, "traceback": "".join(trace)}
        record["where"] = innermost_line(error)
        if isinstance(error, Interrupted):
            record["signal"] = error.signal.name
        record |= self._circumstances()
        path = self.folder.failure(self.rank, self.name)
        try:
            if self.job.processes > 1:  # The first process to fail is the cause; the others are stopped because of it.
                self.storage.create(path, encode(record))
            else:
                self.storage.write(path, encode(record))
        except Exception as second:
            log(f"the failure record cannot be written: {second}", "ERROR")


def committed_blocks(steps: list[Step], task: TaskContext) -> AbstractContextManager[None]:
    """A context in which what blocks of datatrove write are outputs of the task, unless all steps are stagger's."""
    if all(type(step).__module__.startswith("stagger.") for step in steps):
        return nullcontext()
    from stagger.datatrove.patches import committed_with

    return committed_with(task, steps)


def gpus_watched() -> AbstractContextManager[GpuSampler | None]:
    """A context in which the GPUs are sampled that the job may use, if any."""
    if not os.environ.get("CUDA_VISIBLE_DEVICES"):
        return nullcontext()
    from stagger.task.gpus import GpuSampler

    return GpuSampler()


def node_name() -> str:
    """The name of the machine: inside a job, Slurm's name of the node, which may be another than its host name."""
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename


def added(before: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """The completion record of this attempt, plus the counts that earlier attempts committed."""
    from stagger.pipeline.statistics import merged, summed

    earlier, later = before["bad_records"], record["bad_records"]
    skipped = summed(earlier["skipped"], later["skipped"])
    counts = {key: summed(before.get(key, {}), record.get(key, {})) for key in ("left_out", "counts", "dropped")}
    return {
        **record,
        **{key: before[key] + record[key] for key in ("records_in", "records_out", "bytes_out", "cpu_s")},
        "bad_records": {"skipped": skipped, "examples": [*earlier["examples"], *later["examples"]][:EXAMPLES]},
        **{key: numbers for key, numbers in counts.items() if numbers},
        "steps": [
            {
                "name": now["name"],
                "records": one["records"] + now["records"],
                "seconds": round(one["seconds"] + now["seconds"], 6),
                **merged(one, now),
            }
            for one, now in zip(before["steps"], record["steps"], strict=True)
        ],
    }


def cpu_seconds() -> float:
    """CPU seconds of this process, of its children that have ended, and of those that live."""
    used = time.process_time() + children_cpu_s()
    if not has_children():
        return used
    from stagger.task.children import living_cpu_s

    return used + living_cpu_s()


def children_cpu_s() -> float:
    """CPU seconds of this process's children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def has_children() -> bool:
    """Whether the process has children. Takes one system call, and no file."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def peak_rss_mb() -> int:
    """Peak resident memory of the process, in MiB. getrusage would include the parent's before exec."""
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) // 1024
    return 0


def innermost_line(error: BaseException) -> str:
    """`steps.py:14`: the innermost line of the user's code that the error passed through; empty if there is none.

    Without one in the user's own files, that of an installed package: a step may come from one.
    """
    import traceback

    ours = f"{os.path.dirname(os.path.dirname(__file__))}/"
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith((ours, "<"))
    ]
    packages = [frame for frame in frames if "-packages/" in frame.filename]
    own = [f for f in frames if f not in packages and not f.filename.startswith(f"{os.path.dirname(os.__file__)}/")]
    return f"{os.path.basename(found[-1].filename)}:{found[-1].lineno}" if (found := own or packages) else ""


def describe(error: BaseException, counts: list[StepCount]) -> tuple[str, str]:
    """(kind, message) for a failure record. The message names the step that raised the error first."""
    if isinstance(error, Interrupted):
        return "interrupted", f"stopped by {error}"
    step = next((count.name for count in counts if count.error is not None), None)
    where = f" in {step}" if step else ""
    if isinstance(error, (BadInput, StaggerError)):
        return type(error).__name__, f"{error}"
    return type(error).__name__, f"{type(error).__name__}{where}: {error}"


#: What the steps of the last rank that this process has done hand on, by the plan of the rank: number of the step ->
#: attribute -> value.
HANDED_ON: dict[str, dict[int, dict[str, Any]]] = {}


def handed_on() -> bool:
    """Whether steps have handed something on."""
    return any(any(kept.values()) for kept in HANDED_ON.values())


def take_over(plan: str, steps: list[Step]) -> None:
    """Give steps what those of an earlier rank of this plan have loaded (`kept` in hooks.py)."""
    for number, values in HANDED_ON.get(plan, {}).items():
        vars(steps[number]).update(values)


def hand_on(plan: str, steps: list[Step]) -> None:
    """Keep what the steps of a rank that is done have loaded, for the next rank of this process."""
    kept: dict[int, dict[str, Any]] = {}
    for number, step in enumerate(steps):
        names = kept_names(step)
        if not names and "datatrove" in sys.modules:
            from stagger.datatrove.kept import kept_by_block

            names = kept_by_block(step)
        if names:
            kept[number] = {name: value for name, value in vars(step).items() if name in names}
    HANDED_ON.clear()
    HANDED_ON[plan] = kept


def load_steps(settings: TaskSettings, storage: Storage, plan: RankPlan) -> list[Step]:
    """The steps of the plan, by name; for a run of Python objects, from its pickle."""
    if settings.pickle_path:
        from stagger.pipeline.pickled import load_pickle

        return load_pickle(storage, settings.pickle_path, settings.pickle_sha256)
    return [build(step["use"], step["params"]) for step in plan.steps]


def repeatable_steps(plan: RankPlan, steps: list[Step]) -> list[bool]:
    """For each step of a rank, whether it may be called once per shard."""
    if len(bound_steps(steps)) == len(steps):
        return [True] * len(steps)
    from stagger.datatrove.state import repeatable

    return [
        repeatable(step, declared=spec.get("stateless", False)) for spec, step in zip(plan.steps, steps, strict=True)
    ]
