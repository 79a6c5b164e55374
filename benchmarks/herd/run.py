"""A real herd: a job array on a Slurm cluster, whose tasks use S3 storage with a limit of requests per second.

Runs each start policy in turn, measures it at the storage and from the completion records, and compares it with the
simulation of `stagger plan`. Exit status 1 when a rank is missing, or a request is rejected with `backend_limit`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median, stdev
from typing import Any

from benchmarks.herd import datatrove
from benchmarks.herd.cluster import Cluster, storage
from benchmarks.kit import measure
from benchmarks.kit.peer import Peer, default_folder
from stagger.start.account import most_within
from stagger.start.delays import auto_window
from stagger.start.herd import Herd, simulate

POLICIES = ("none", "uniform", "spread", "limit")

#: Requests of a task: two reads of the plan, its shard, its claim, its output, its completion record, its log.
REQUESTS = 7

#: Seconds between two rounds of the scheduler on the test cluster.
CYCLE_S = 1.0

#: Seconds of the window in which jobs sleep whose beginnings are measured; neighbours of each on either side.
WINDOW_S, NEIGHBOURS = 60, 20

#: Number of simulated herds; predictions are their medians.
SEEDS = 5


def policy_settings(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A policy as keys of the pipeline file."""
    window = options.window if options.window is not None else auto_window(options.tasks)
    workers = {"executor.workers": options.throttle} if options.throttle else {}
    policies: dict[str, dict[str, Any]] = {
        "none": {"randomize_start_duration": 0},
        "uniform": {"start_policy": "uniform", "randomize_start_duration": window},
        "spread": {"start_policy": "spread", "randomize_start_duration": window},
        "limit": {"backend_limit": options.backend_limit},
    }
    return workers | policies[name]


def predict(herd: Herd) -> dict[str, Any]:
    """The prediction of `stagger plan` for a herd, with the requests per second of one simulated herd."""
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
    """Measure this machine without a request limit: seconds per request of a lone task, and how jobs start.

    jobs_per_s: jobs that it can run to their end, if all work at once. starts_per_s and jitter_s: those of jobs that
    sleep first, as `beginnings` finds them.
    """
    alone = min(20, options.tasks)
    measure.say(f"calibrating with {alone} tasks one after another, then with {options.calibrate} at once, twice")
    settings = {"start_policy": "spread", "randomize_start_duration": alone}
    records = cluster.run("alone", alone, None, settings).records
    request_s = median((record["ended"] - record["first_read"]) / 2 for record in records)  # Its shard, its output.
    tasks = min(options.calibrate, options.tasks)
    settings = {"randomize_start_duration": 0, **({"executor.workers": options.throttle} if options.throttle else {})}
    run = cluster.run("calibration", tasks, None, settings)
    ends = sorted(record["ended"] for record in run.records)
    # Leave out the first and the last tenth, in which the machine warms up or runs out of jobs.
    first, last = len(ends) // 10, len(ends) - len(ends) // 10 - 1
    settings |= {"start_policy": "spread", "randomize_start_duration": WINDOW_S}
    starts_per_s, jitter_s = beginnings(cluster.run("beginnings", tasks, None, settings).records)
    return {
        "tasks": tasks,
        "jobs_per_s": round((last - first) / (ends[last] - ends[first]), 2),
        "request_every_s": round(request_s, 4),
        "starts_per_s": starts_per_s,
        "jitter_s": jitter_s,
    }


def beginnings(records: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Scripts begun per second, and the jitter of their beginnings, in seconds: see `Herd.jitter_s`.

    A script's neighbours in the array begin, in the median, when Slurm started it. The jitter is the width of the
    uniform distribution that has the standard deviation of the differences to that.
    """
    by_index = sorted(records, key=lambda record: int(record["job"].rpartition("_")[2]))
    begun = [record["script_started"] for record in by_index]
    apart = [at - median(begun[max(0, place - NEIGHBOURS) : place + NEIGHBOURS + 1]) for place, at in enumerate(begun)]
    return round(len(begun) / (max(begun) - min(begun)), 2), round(math.sqrt(12) * stdev(apart), 2)


def share(measured: float, predicted: float) -> float | None:
    return round(measured / predicted, 3) if predicted else None


def main() -> int:
    parser = measure.parser((__doc__ or "").partition("\n")[0], repeat=1)
    parser.add_argument("--tasks", type=int, default=8000, help="ranks, each a job of the array")
    parser.add_argument("--throttle", type=int, help="throttle: jobs at once, at most (executor.workers)")
    parser.add_argument("--backend-limit", type=float, default=60.0, help="requests per second that the storage takes")
    parser.add_argument("--window", type=int, help="seconds for uniform and spread; by default as stagger does")
    parser.add_argument("--policies", default=",".join(POLICIES), help="which, in which order")
    parser.add_argument("--calibrate", type=int, default=400, help="tasks for measuring what the machine can start")
    parser.add_argument("--engine", default="obstore", help="what speaks to S3: obstore or s3fs")
    parser.add_argument("--timeout", type=int, default=3600, help="seconds to wait for the jobs of one policy")
    parser.add_argument("--peer-tasks", type=int, default=0, help="tasks of datatrove to run as well")
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
            run = cluster.run(name, options.tasks, options.backend_limit, policy_settings(name, options))
            measured = run.figures(options.tasks)
            herd = Herd(
                jobs=options.tasks,
                policy="uniform" if name in ("none", "uniform") else "spread",
                window_s=run.window_s,
                requests=REQUESTS,
                limit=options.backend_limit,
                throttle=options.throttle,
                # With a limit, fewer jobs work at a time than the machine can run.
                dispatch_rate=machine["starts_per_s" if name == "limit" else "jobs_per_s"],
                jitter_s=machine["jitter_s"] if run.window_s else 0.0,
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
                # A difference of one task in that second is allowed in any case.
                most = max(0.15 * predicted["requests_peak_1s"], REQUESTS)
                requirements.append(measure.requirement("limit: peak in 1 s off the predicted one", off, most))
        if options.peer_tasks:
            python = Peer(Path(options.peer_venv)).python
            results["datatrove, one task"] = datatrove.one_task(cluster, python)
            measure.say(f"datatrove: {options.peer_tasks} tasks")
            many = datatrove.many_tasks(cluster, python, options.peer_tasks, options.peer_window, options.backend_limit)
            results["datatrove"] = many
    if options.plot:
        plot(options, {name: results[name] for name in wanted})
    return measure.report(options, results, requirements)


def plot(options: argparse.Namespace, runs: dict[str, Any]) -> None:
    """Plot the measured and predicted requests per second of each policy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.2 * len(runs)), layout="constrained")
    for axes, (name, run) in zip(
        figure.subplots(len(runs), 1, sharex=True, squeeze=False)[:, 0], runs.items(), strict=True
    ):
        axes.plot(run["measured"]["requests_per_second"], color="black", linewidth=0.8, label="measured")
        axes.plot(run["predicted"]["requests_per_second"], color="tab:orange", linewidth=0.8, label="predicted")
        axes.axhline(
            options.backend_limit,
            color="tab:red",
            linestyle="--",
            linewidth=1,
            label=f"limit {options.backend_limit:g}",
        )
        axes.set(ylim=(0, None), ylabel="requests/s")
        axes.set_title(
            f"{name}: window {run['measured']['window_s']} s, {run['measured']['refused']:,} refused", fontsize=10
        )
    axes.set_xlabel("seconds")
    figure.axes[0].legend(loc="upper right")
    figure.savefig(options.plot, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
