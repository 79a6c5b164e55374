"""The herd's storage and folders, and its arrays on a Slurm cluster, one after another."""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kit import measure
from stagger.start.account import most_within
from tests.kit.s3_server import S3Server, running

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Run:
    """One policy's array: the counts of the storage, and the completion records of the tasks."""

    storage: dict[str, Any]
    records: list[dict[str, Any]]
    window_s: int
    hold_s: int

    @property
    def starts(self) -> list[float]:
        """Seconds from the start of the first job to the end of each job's delay, ascending."""
        return sorted(record["script_started"] + record["delay_s"] - self.began for record in self.records)

    @property
    def began(self) -> float:
        return float(min(record["script_started"] for record in self.records))

    def figures(self, tasks: int) -> dict[str, Any]:
        records = self.records
        asleep_s = sum(record["delay_s"] for record in records)
        waited_s = sum(record["retried"]["waited_s"] for record in records)
        return {
            "window_s": self.window_s,
            "hold_s": self.hold_s,
            "requests": sum(self.storage["requests"].values()),
            "requests_by_kind": self.storage["requests"],
            "requests_peak_1s": self.storage["peak_1s"],
            "requests_peak_100ms": self.storage["peak_100ms"],
            "refused": self.storage["statuses"].get("503", 0),
            "tasks_failed": tasks - len(records),
            "starts_peak_1s": most_within(self.starts, 1.0),
            "starts_peak_100ms": most_within(self.starts, 0.1),
            "last_start_s": round(max(record["first_read"] for record in records) - self.began, 1),
            "last_end_s": round(max(record["ended"] for record in records) - self.began, 1),
            "asleep_core_h": round(asleep_s / 3600, 2),
            "waiting_core_h": round(waited_s / 3600, 2),
            "task_s": measure.summary(r["ended"] - r["script_started"] - r["delay_s"] for r in records),
            "task_cpu_s": measure.summary(record["cpu_s"] for record in records),
            "requests_per_second": self.storage["per_second"],
        }


class Cluster:
    """The storage and folders of the herd; launches arrays one after another."""

    def __init__(self, server: S3Server, work: str, options: argparse.Namespace) -> None:
        self.server = server
        self.work = work
        self.options = options
        self.environment = {
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def run(self, name: str, tasks: int, limit: float | None, settings: dict[str, Any]) -> Run:
        """Launch a held array, release it, and wait until its last job has ended."""
        place = f"s3://herd-runs/{name}"
        environment = {
            **self.environment,
            "STAGGER_HERD_RUN": f"{place}/run",
            "STAGGER_HERD_OUTPUT": f"{place}/output",
            "STAGGER_HERD_LOGS": f"{self.work}/logs",
            "STAGGER_HERD_ENGINE": self.options.engine,
        }
        changes = [f"--set={key}={value}" for key, value in settings.items()]
        changes += [f"--set={change}" for change in self.options.set]
        measure.run([*measure.STAGGER, "launch", str(HERE / "herd.yaml"), f"--tasks={tasks}", *changes], environment)
        record = self.json(f"{name}/run/launches/1/launch.json")
        jobs = [array["job_id"] for array in record["arrays"]]
        slurm("scancel", record["finalize"]["job_id"])  # The end job is not part of the herd.
        self.server.reset()
        self.server.set_faults(**({"rate": limit} if limit else {}))
        for job in jobs:
            slurm("scontrol", "release", job)
        self.wait(name, jobs)
        storage = self.server.stats()
        self.server.set_faults()
        window_s, told = record["window_s"], json.loads(record["settings"])
        return Run(storage, self.records(name, tasks), window_s, told["hold_s"])

    def wait(self, name: str, jobs: list[str]) -> None:
        said = time.monotonic()
        deadline = said + self.options.timeout
        while left := self.left(jobs):
            if time.monotonic() > deadline:
                slurm("scancel", *jobs)
                deadline += 120
            if time.monotonic() - said > 60:
                said = time.monotonic()
                asked = sum(self.server.stats()["requests"].values())
                measure.say(f"{name}: {len(left)} jobs left, {left.count('RUNNING')} running, {asked} requests")
            time.sleep(2)

    def left(self, jobs: list[str]) -> list[str]:
        """The states of the array elements that have not ended."""
        return slurm("squeue", "--noheader", "--array", f"--jobs={','.join(jobs)}", "--format=%T").split()

    def files(self) -> Any:
        import s3fs

        return s3fs.S3FileSystem(
            endpoint_url=self.server.endpoint,
            key="key",
            secret="secret",
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def json(self, path: str) -> Any:
        return json.loads(self.files().cat(f"herd-runs/{path}"))

    def records(self, name: str, tasks: int) -> list[dict[str, Any]]:
        """The completion records of the run, at most one per rank."""
        files = self.files()
        paths = files.ls(f"herd-runs/{name}/run/completions")
        found = [json.loads(data) for data in files.cat(paths).values()]
        assert len({record["rank"] for record in found}) == len(found) <= tasks
        return found


def slurm(*command: str) -> str:
    """The output of a Slurm command. A failing squeue is no error: it fails once Slurm has forgotten the jobs."""
    return subprocess.run(command, capture_output=True, text=True, check=command[0] != "squeue").stdout


def make_shards(folder: Path, tasks: int) -> None:
    """Write one shard of three documents per task."""
    folder.mkdir()
    for index in range(tasks):
        lines = [json.dumps({"text": f"document {index}-{i} " * 20, "id": f"{index}-{i}"}) for i in range(3)]
        (folder / f"{index:06d}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode(), 1))


@contextmanager
def storage(options: argparse.Namespace) -> Iterator[Cluster]:
    work = tempfile.mkdtemp(prefix="stagger-herd-", dir=options.folder)
    try:
        measure.say(f"making {options.tasks} shards")
        make_shards(Path(work, "input"), options.tasks)
        with running("--serve", f"herd-input={work}/input", "--bucket", "herd-runs") as server:
            yield Cluster(server, work, options)
    finally:
        shutil.rmtree(work)
