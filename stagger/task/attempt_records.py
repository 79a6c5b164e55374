"""The records of an attempt: of the shards that it has committed, and of why it failed."""

from __future__ import annotations

import os
from typing import Any

from stagger.errors import BadInput, Interrupted, StaggerError, counted
from stagger.pipeline import COUNTS
from stagger.pipeline.chain import Step, StepCount, own_seconds
from stagger.pipeline.task_context import EXAMPLES, TaskContext
from stagger.rundir.plan_file import RankPlan
from stagger.rundir.stage_folder import (
    COMPLETION_KEYS,
    StageFolder,
    attempt_name,
    check_progress,
    damaged,
    decode,
    encode,
)
from stagger.storage.storage import without_secrets
from stagger.task import Job, TaskSettings
from stagger.task.attempt_log import log
from stagger.task.own_process import Usage, node_name
from stagger.task.recorded import RecordedOutputs


class AttemptRecords:
    """What one attempt records of its rank. `outputs` are the rank's, with those of earlier attempts."""

    def __init__(self, settings: TaskSettings, job: Job, rank: int, folder: StageFolder, usage: Usage) -> None:
        self.settings = settings
        self.job = job
        self.rank = rank
        self.name = attempt_name(settings.launch, job.restart)
        self.folder = folder
        self.usage = usage
        self.outputs = RecordedOutputs()
        self._before: dict[str, Any] = {}
        self._bytes_in = self._shards = 0

    def earlier(self, path: str) -> dict[str, Any]:
        """A record of an earlier attempt; empty when there is none, or when it belongs to another plan."""
        try:
            record = decode(self.folder.storage.read(path), path, *COMPLETION_KEYS)
        except FileNotFoundError:
            return {}
        return record if record["fingerprint"] == self.settings.fingerprint else {}

    def resume(self, plan: RankPlan) -> dict[str, Any]:
        """Continue the progress record of earlier attempts, and return it: a completion record of the first `shards`
        shards, all committed.

        Empty when there is none, or when one of its outputs is missing or has changed. Raises StaggerError when it is
        damaged, or does not fit the plan.
        """
        path = self.folder.progress(self.rank)
        record = self.earlier(path)
        if not record:
            return {}
        from stagger.rundir.progress_pages import outputs_of

        check_progress(record, len(plan.shards), len(plan.steps), path)
        outputs: list[Any] = outputs_of(self.folder, self.rank, record)
        if sum(output["bytes"] for output in outputs) != record["bytes_out"]:
            raise damaged(path, "its outputs do not have bytes_out bytes")
        there = self.folder.storage.entries([output["path"] for output in outputs])
        for output, entry in zip(outputs, there, strict=True):
            if entry is None or entry.size != output["bytes"]:
                log(f"{output['path']} is gone or changed; the rank starts over", "WARNING")
                return {}
        log(f"resumes after {counted(record['shards'], 'shard')}, committed by attempt {record['attempt']}")
        self.outputs.resume(outputs, record.get("pages", []), len(record["outputs"]))
        self._before = record
        return record

    def completion(
        self, plan: RankPlan, task: TaskContext, steps: list[Step], counts: list[StepCount], shards: int
    ) -> dict[str, Any]:
        """The record of the rank's first `shards` shards, with those of earlier attempts."""
        counts = own_seconds(counts)
        self.outputs.add(task.outputs)
        self._bytes_in += sum(shard.size for shard in plan.shards[self._shards : shards])
        self._shards = shards
        record = {
            "rank": self.rank,
            "world_size": plan.world_size,
            "stage": plan.stage,
            "fingerprint": plan.fingerprint,
            **self._circumstances(),
            "first_read": task.first_read,
            "shards": shards,
            "bytes_in": self._bytes_in,
            "records_in": counts[0].records,
            "records_out": self.outputs.results or counts[-1].records,
            "bytes_out": self.outputs.bytes,
            "outputs": [],
            "bad_records": {"skipped": task.bad_records, "examples": task.bad_examples},
            "steps": [{"name": c.name, "records": c.records, "seconds": round(c.seconds, 6)} for c in counts],
            **({"left_out": task.left_out} if task.left_out else {}),
            **({"notes": task.notes} if task.notes else {}),
        }
        counting = (count.counts or hasattr(step, "stats") for count, step in zip(counts, steps, strict=True))
        if COUNTS or task.made_blocks or any(counting):
            from stagger.task.counted import add_statistics  # Imported late: the steps of most ranks count nothing.

            add_statistics(record, counts, steps, task.made_blocks)
        record = added(self._before, record) if self._before else record
        done = shards == len(plan.shards)
        return record | ({"outputs": self.outputs.entries} if done else self.outputs.progress(self._write_page))

    def _write_page(self, number: int, outputs: list[dict[str, Any]]) -> str:
        path = self.folder.page(self.rank, self.name, number)
        self.folder.storage.write(path, encode({"outputs": outputs}))
        return path.rpartition("/")[2]

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
            **self.usage.fields(),
            "retried": self.folder.storage.retried(),
        }

    def write_failure(self, error: BaseException, counts: list[StepCount]) -> None:
        """Log why the attempt ended, and write a failure record. The run directory itself may be unwritable."""
        import traceback

        kind, message = describe(error, counts)
        message = without_secrets(message)
        step = next((count.name for count in counts if count.error is not None), None)
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
                self.folder.storage.create(path, encode(record))
            else:
                self.folder.storage.write(path, encode(record))
        except Exception as second:
            log(f"the failure record cannot be written: {second}", "ERROR")


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
