"""The herd of run.py with datatrove: requests that its tasks make before and after their sleep, and request peaks."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.kit import measure

if TYPE_CHECKING:
    from benchmarks.herd.cluster import Cluster

#: Seconds between submission and start of the array, so that the requests of the launch are not counted.
BEGIN_S = 8

#: A task without a request for this many seconds is asleep: otherwise it makes many requests per second.
ASLEEP_S = 4

#: Longest sleep of the single task, in seconds, and how often it is run again if it draws a sleep below ASLEEP_S.
WINDOW_S, TRIALS = 20, 6


def submit(tasks: int, window: int, place: str, work: str, activate: str, partition: str) -> list[str]:
    """Submit datatrove's array and return the job ids. Runs in the interpreter of datatrove's environment."""
    from datatrove.executor import SlurmPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    executor = SlurmPipelineExecutor(
        [JsonlReader("s3://herd-input", glob_pattern="*.jsonl.gz"), JsonlWriter(f"{place}/output")],
        tasks=tasks,
        time="01:00:00",
        partition=partition,
        mem_per_cpu_gb=1,
        randomize_start_duration=window,
        logging_dir=f"{place}/logs",
        slurm_logs_folder=f"{work}/datatrove-logs",
        venv_path=activate,
        sbatch_args={"begin": f"now+{BEGIN_S}"},
        max_array_size=10_000,
    )
    executor.run()
    return [str(executor.job_id)]


def launch(cluster: Cluster, python: str, name: str, tasks: int, window: int) -> list[str]:
    """Submit an array with datatrove, and reset the counts of the storage before it starts. Returns the job ids."""
    Path(cluster.work, "datatrove-logs").mkdir(exist_ok=True)
    activate = str(Path(python).parent / "activate")
    place = f"s3://herd-runs/{name}"
    jobs, _ = measure.fresh(
        submit,
        python=python,
        environment=cluster.environment,
        tasks=tasks,
        window=window,
        place=place,
        work=cluster.work,
        activate=activate,
        partition="cpu",
    )
    cluster.server.reset()
    return [str(job) for job in jobs]


def one_task(cluster: Cluster, python: str) -> dict[str, Any]:
    """Count the requests of one task before and after its sleep. Raises RuntimeError when no run sleeps long enough."""
    for trial in range(TRIALS):
        jobs = launch(cluster, python, f"datatrove-one-{trial}", 1, WINDOW_S)
        seen: list[tuple[float, int]] = []
        while cluster.left(jobs):
            seen.append((time.monotonic(), sum(cluster.server.stats()["requests"].values())))
            time.sleep(0.2)
        total = sum(cluster.server.stats()["requests"].values())
        changes = [seen[0], *(now for before, now in itertools.pairwise(seen) if now[1] != before[1])]
        pauses = [(b[0] - a[0], a[1]) for a, b in itertools.pairwise(changes) if a[1]]
        asleep_s, before = max(pauses, default=(0.0, 0))
        if asleep_s >= ASLEEP_S:
            kinds = cluster.server.stats()["requests"]
            return {"before_the_sleep": before, "after_it": total - before, "requests": kinds, "asleep_s": asleep_s}
    raise RuntimeError(f"in {TRIALS} runs datatrove's task never slept for {ASLEEP_S} s")


def many_tasks(cluster: Cluster, python: str, tasks: int, window: int, limit: float) -> dict[str, Any]:
    """Run an array of `tasks` datatrove tasks against a storage with a limit of `limit` requests per second."""
    jobs = launch(cluster, python, "datatrove", tasks, window)
    cluster.server.set_faults(rate=limit)
    cluster.wait("datatrove", jobs)
    stats = cluster.server.stats()
    cluster.server.set_faults()
    done = cluster.files().glob("herd-runs/datatrove/logs/completions/*")
    return {
        "tasks": tasks,
        "window_s": window,
        "requests": sum(stats["requests"].values()),
        "requests_by_kind": stats["requests"],
        "requests_peak_1s": stats["peak_1s"],
        "requests_peak_100ms": stats["peak_100ms"],
        "refused": stats["statuses"].get("503", 0),
        "tasks_failed": tasks - len(done),
    }
