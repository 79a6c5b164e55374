"""A job array with a staggered start on a real Slurm cluster: did all ranks run, and start as planned?

Exit status 1 when a rank is missing, a delay is longer than the window, or a rank started before its delay was over.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.kit import measure

HERE = Path(__file__).parent

#: Each bin of a chi-square test should have at least this expected count (Cochran 1954).
LEAST_EXPECTED = 5


def chi_square(delays: list[int], window: int) -> dict[str, Any]:
    """Pearson's chi-square test of the delays against the uniform distribution on 0, 1, ..., window.

    `p` is the probability that uniform delays are at least this uneven, by Wilson and Hilferty's approximation (1931).
    """
    outcomes = window + 1
    width = math.ceil(outcomes * LEAST_EXPECTED / len(delays)) if delays else outcomes
    bins = [range(first, min(first + width, outcomes)) for first in range(0, outcomes, width)]
    counts = Counter(delays)
    statistic = 0.0
    for values in bins:
        expected = len(delays) * len(values) / outcomes
        statistic += (sum(counts[value] for value in values) - expected) ** 2 / expected if expected else 0.0
    freedom = len(bins) - 1
    if freedom == 0:
        return {"statistic": statistic, "degrees_of_freedom": 0, "p": 1.0}
    spread = 2 / (9 * freedom)
    deviation = ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    p = math.erfc(deviation / math.sqrt(2)) / 2
    return {"statistic": round(statistic, 2), "degrees_of_freedom": freedom, "p": round(p, 4)}


def run_array(folder: str, options: argparse.Namespace) -> measure.Cost:
    """Launch from the command line and wait until no job of the run is active. Returns the cost of the launch."""
    environment = {"STAGGER_BENCHMARK": folder}
    changes = [f"--set={change}" for change in (f"randomize_start_duration={options.window}", *options.set)]
    try:
        _, cost = measure.run(
            [*measure.STAGGER, "launch", str(HERE / "array.yaml"), f"--tasks={options.tasks}", *changes], environment
        )
        measure.say(f"launched {options.tasks} ranks in {cost.wall_s:.1f} s; waiting")
        # 1: a rank failed; 3: ranks were never launched; 124: the timeout. Missing ranks are counted below.
        watch = ["timeout", str(options.timeout), *measure.STAGGER, "status", f"{folder}/run", "--watch"]
        measure.run(watch, environment, allowed=(0, 1, 3, 124))
    finally:
        if os.path.isdir(f"{folder}/run"):
            measure.run([*measure.STAGGER, "cancel", f"{folder}/run"], environment, allowed=(0, 2))
    return cost


def read_records(folder: str) -> list[dict[str, Any]]:
    """The completion records of a run."""
    return [json.loads(path.read_text()) for path in sorted(Path(f"{folder}/run/completions").glob("*.json"))]


def figures(records: list[dict[str, Any]], launched: float, window: int) -> dict[str, Any]:
    """Figures on starts and ends, from the completion records. `launched` is in seconds since the epoch."""
    starts = Counter(math.floor(record["started"] - launched) for record in records)
    last_end = max(record["ended"] for record in records) - launched
    return {
        "delay_s": measure.summary(record["delay_s"] for record in records),
        "chi_square_of_delays": chi_square([int(record["delay_s"]) for record in records], window),
        "late_s": measure.summary(r["started"] - r["script_started"] - r["delay_s"] for r in records),
        "script_started_s": measure.summary(record["script_started"] - launched for record in records),
        "launch_to_last_end_s": round(last_end, 2),
        "jobs_per_s": round(len(records) / last_end, 1),
        "most_starts_in_a_second": max(starts.values()),
        "starts_per_second": [starts[second] for second in range(max(starts) + 1)],
        "task_cpu_s": measure.summary(record["cpu_s"] for record in records),
        "task_peak_rss_mb": measure.summary(record["peak_rss_mb"] for record in records),
    }


def main() -> int:
    parser = measure.parser((__doc__ or "").partition("\n")[0], repeat=1)
    parser.add_argument("--tasks", type=int, default=1000, help="ranks, each a job of the array")
    parser.add_argument("--window", type=int, default=60, help="seconds over which the starts are spread")
    parser.add_argument("--timeout", type=int, default=900, help="seconds to wait for the jobs of one run")
    parser.add_argument("--set", action="append", default=[], help="a further change, as executor.partition=cpu")
    options = parser.parse_args()
    runs, costs = [], []
    missing = outside = early = 0
    for number in range(options.repeat if shutil.which("sbatch") else 0):
        folder = tempfile.mkdtemp(prefix="stagger-array-", dir=options.folder)
        try:
            costs.append(run_array(folder, options))
            launched = json.loads(Path(f"{folder}/run/launches/1/launch.json").read_text())["time"]
            records = read_records(folder)
        finally:
            shutil.rmtree(folder)
        ended = [record for record in records if record["ended"] >= record["started"]]
        missing += options.tasks - len(ended)
        outside += sum(not 0 <= record["delay_s"] <= options.window for record in ended)
        early += sum(record["started"] < record["script_started"] + record["delay_s"] for record in ended)
        runs.append(figures(ended, launched, options.window) if ended else {})
        measure.say(f"run {number + 1}: {len(ended)} of {options.tasks} ranks ended")
    results: dict[str, Any] = {"runs": runs}
    if runs:
        results["launch"] = measure.costs(costs)
        for key in ("launch_to_last_end_s", "jobs_per_s", "most_starts_in_a_second"):
            results[key] = measure.summary(run[key] for run in runs if run)
    else:
        results["skipped"] = "there is no sbatch on PATH"
        missing = options.tasks
    requirements = [
        measure.requirement("ranks without a recorded end", missing, 0),
        measure.requirement("delays outside the window", outside, 0),
        measure.requirement("ranks that started before their delay was over", early, 0),
    ]
    return measure.report(options, results, requirements)


if __name__ == "__main__":
    sys.exit(main())
