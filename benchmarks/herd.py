"""A real herd: a job array on a Slurm cluster, whose tasks read and write S3 storage with a limit of requests a second.

Each start policy in turn, measured at the storage and from the completion records, and the simulation of `stagger plan`
beside it. Exit status 1 when a rank is missing, or with `backend_limit` a request was refused.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import herd_peer
import measure
from peer import Peer, default_folder

sys.path.append(str(measure.HERE.parent))
from stagger.start.account import most_within
from stagger.start.delays import auto_window
from stagger.start.herd import Herd, simulate
from tests.s3_server import S3Server, running

STAGGER = [sys.executable, "-m", "stagger"]
POLICIES = ("none", "uniform", "spread", "limit")

#: What a task asks for: two reads of the plan, its shard, its output, its completion record, its log.
REQUESTS = 6

#: The cluster of the tests looks for jobs to start every second.
CYCLE_S = 1.0

#: Predictions are medians over so many herds.
SEEDS = 5


@dataclass(frozen=True)
class Run:
    """One policy's array: what the storage counted, and what the tasks wrote down."""

    storage: dict[str, Any]
    records: list[dict[str, Any]]
    window_s: int
    hold_s: int

    @property
    def starts(self) -> list[float]:
        """When each job's delay was over, since the first job began."""
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
    """The herd's storage and folders, and arrays launched one after another."""

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
        """Launch an array, held, then let it go, and wait until its last job has ended."""
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
        measure.run([*STAGGER, "launch", "herd.yaml", f"--tasks={tasks}", *changes], environment)
        record = self.json(f"{name}/run/launches/1/launch.json")
        jobs = [array["job_id"] for array in record["arrays"]]
        slurm("scancel", record["finalize"]["job_id"])  # What merges the records is no part of the herd.
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
        """The states of those elements that have not ended."""
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
        """The completion records that are there."""
        files = self.files()
        paths = files.ls(f"herd-runs/{name}/run/completions")
        found = [json.loads(data) for data in files.cat(paths).values()]
        assert len({record["rank"] for record in found}) == len(found) <= tasks
        return found


def slurm(*command: str) -> str:
    """A Slurm command's output; squeue fails once it has forgotten the jobs."""
    return subprocess.run(command, capture_output=True, text=True, check=command[0] != "squeue").stdout


def policy_settings(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A policy as keys of the pipeline file."""
    window = options.window if options.window is not None else auto_window(options.tasks)
    workers = {"executor.workers": options.throttle} if options.throttle else {}
    policies: dict[str, dict[str, Any]] = {
        "none": {"randomize_start_duration": 0},
        "uniform": {"start_policy": "uniform", "randomize_start_duration": window},
        "spread": {"start_policy": "spread", "randomize_start_duration": window},
        "limit": {"backend_limit": options.limit},
    }
    return workers | policies[name]


def predict(herd: Herd) -> dict[str, Any]:
    """What `stagger plan` expects of a herd, and when one of the herds asks."""
    outcomes = [simulate(herd, seed) for seed in range(SEEDS)]
    figures: dict[str, list[float]] = {
        "requests_peak_1s": [most_within(outcome.requests, 1.0) for outcome in outcomes],
        "requests_peak_100ms": [most_within(outcome.requests, 0.1) for outcome in outcomes],
        "refused": [outcome.refused for outcome in outcomes],
        "tasks_failed": [outcome.failed for outcome in outcomes],
        "last_start_s": [round(outcome.last_start_s, 1) for outcome in outcomes],
        "asleep_core_h": [round(herd.asleep_s / 3600, 2)],
        "waiting_core_h": [round(outcome.waited_s / 3600, 2) for outcome in outcomes],
    }
    found: dict[str, Any] = {key: median(values) for key, values in figures.items()}
    seconds = Counter(map(int, outcomes[0].requests))
    return {**found, "requests_per_second": [seconds[second] for second in range(max(seconds) + 1)]}


def calibrate(cluster: Cluster, options: argparse.Namespace) -> dict[str, float]:
    """What this machine can do without a limit: how soon a task that is alone asks again, how many jobs it starts."""
    alone = min(20, options.tasks)
    measure.say(f"calibrating with {alone} tasks one after another, then with {options.calibrate} at once")
    settings = {"start_policy": "spread", "randomize_start_duration": alone}
    records = cluster.run("alone", alone, None, settings).records
    request_s = median((record["ended"] - record["first_read"]) / 2 for record in records)  # Its shard, its output.
    tasks = min(options.calibrate, options.tasks)
    settings = {"randomize_start_duration": 0, **({"executor.workers": options.throttle} if options.throttle else {})}
    run = cluster.run("calibration", tasks, None, settings)
    ends = sorted(record["ended"] for record in run.records)
    # Between the first and the last tenth, where it is neither warming up nor running out.
    first, last = len(ends) // 10, len(ends) - len(ends) // 10 - 1
    return {
        "tasks": tasks,
        "jobs_per_s": round((last - first) / (ends[last] - ends[first]), 2),
        "request_every_s": round(request_s, 4),
    }


def make_shards(folder: Path, tasks: int) -> None:
    """A shard for each task, of three documents."""
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


def share(measured: float, predicted: float) -> float | None:
    return round(measured / predicted, 3) if predicted else None


def main() -> int:
    parser = measure.parser((__doc__ or "").partition("\n")[0], repeat=1)
    parser.add_argument("--tasks", type=int, default=8000, help="ranks, each a job of the array")
    parser.add_argument("--throttle", type=int, help="at most so many jobs at once (executor.workers)")
    parser.add_argument("--limit", type=float, default=60.0, help="requests per second that the storage takes")
    parser.add_argument("--window", type=int, help="seconds for uniform and spread; by default as stagger does")
    parser.add_argument("--policies", default=",".join(POLICIES), help="which, in which order")
    parser.add_argument("--calibrate", type=int, default=400, help="tasks for measuring what the machine can start")
    parser.add_argument("--engine", default="obstore", help="what speaks to S3: obstore or s3fs")
    parser.add_argument("--timeout", type=int, default=3600, help="seconds to wait for the jobs of one policy")
    parser.add_argument("--peer-tasks", type=int, default=0, help="run so many tasks of datatrove too")
    parser.add_argument("--peer-window", type=int, default=60, help="datatrove's randomize_start_duration")
    parser.add_argument("--peer-venv", default=str(default_folder()), help="datatrove's environment")
    parser.add_argument("--plot", help="a .png or .svg file for the requests over time")
    parser.add_argument("--set", action="append", default=[], help="a further change, as executor.partition=cpu")
    options = parser.parse_args()
    wanted = [name for name in options.policies.split(",") if name]
    requirements: list[dict[str, Any]] = []
    results: dict[str, Any] = {}
    with storage(options) as cluster:
        machine = results["calibration"] = calibrate(cluster, options) if wanted else {}
        for name in wanted:
            measure.say(f"{name}: {options.tasks} tasks")
            run = cluster.run(name, options.tasks, options.limit, policy_settings(name, options))
            measured = run.figures(options.tasks)
            herd = Herd(
                jobs=options.tasks,
                policy="uniform" if name in ("none", "uniform") else "spread",
                window_s=run.window_s,
                requests=REQUESTS,
                limit=options.limit,
                throttle=options.throttle,
                dispatch_rate=machine["jobs_per_s"],
                task_s=0.0,
                hold_s=run.hold_s,
                latency_s=machine["request_every_s"],
                cycle_s=CYCLE_S,
            )
            predicted = predict(herd)
            alone = predict(replace(herd, dispatch_rate=None, throttle=None, hold_s=0))
            keys = ("requests_peak_1s", "requests_peak_100ms")
            results[name] = {
                "measured": measured,
                "predicted": predicted,
                "predicted_on_a_cluster_without_limits": {k: v for k, v in alone.items() if k != "requests_per_second"},
                "measured_by_predicted": {key: share(measured[key], predicted[key]) for key in keys},
            }
            measure.say(f"{name}: {json.dumps({k: v for k, v in measured.items() if k != 'requests_per_second'})}")
            requirements.append(measure.requirement(f"{name}: ranks not done", measured["tasks_failed"], 0))
            if name == "limit":
                requirements.append(measure.requirement("limit: requests refused", measured["refused"], 0))
                off = abs(measured["requests_peak_1s"] - predicted["requests_peak_1s"])
                # One task more or less in that second is as near as it gets.
                most = max(0.15 * predicted["requests_peak_1s"], REQUESTS)
                requirements.append(measure.requirement("limit: peak in 1 s off the predicted one", off, most))
        if options.peer_tasks:
            python = Peer(Path(options.peer_venv)).python
            results["datatrove, one task"] = herd_peer.one_task(cluster, python)
            measure.say(f"datatrove: {options.peer_tasks} tasks")
            many = herd_peer.many_tasks(cluster, python, options.peer_tasks, options.peer_window, options.limit)
            results["datatrove"] = many
    if options.plot:
        plot(options, {name: results[name] for name in wanted})
    return measure.report(options, results, requirements)


def plot(options: argparse.Namespace, runs: dict[str, Any]) -> None:
    """Requests per second of each policy, measured and predicted."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.2 * len(runs)), layout="constrained")
    for axes, (name, run) in zip(
        figure.subplots(len(runs), 1, sharex=True, squeeze=False)[:, 0], runs.items(), strict=True
    ):
        axes.plot(run["measured"]["requests_per_second"], color="black", linewidth=0.8, label="measured")
        axes.plot(run["predicted"]["requests_per_second"], color="tab:orange", linewidth=0.8, label="predicted")
        axes.axhline(options.limit, color="tab:red", linestyle="--", linewidth=1, label=f"limit {options.limit:g}")
        axes.set(ylim=(0, None), ylabel="requests/s")
        axes.set_title(
            f"{name}: window {run['measured']['window_s']} s, {run['measured']['refused']:,} refused", fontsize=10
        )
    axes.set_xlabel("seconds")
    figure.axes[0].legend(loc="upper right")
    figure.savefig(options.plot, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
