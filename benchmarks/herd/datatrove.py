"""The herd of run.py with datatrove: what its tasks ask for before their sleep and after it, and its peaks."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.kit import measure

if TYPE_CHECKING:
    from benchmarks.herd.cluster import Cluster

#: Seconds between a submission and the array's begin: the launch's own requests are not counted.
BEGIN_S = 8

#: A task that asks for nothing for so long is asleep: it asks many times a second otherwise.
ASLEEP_S = 4

#: Seconds over which one task may sleep; a shorter sleep than ASLEEP_S is drawn now and then, and it is run again.
WINDOW_S, TRIALS = 20, 6


def submit(tasks: int, window: int, place: str, work: str, activate: str, partition: str) -> list[str]:
    """Called by datatrove's own interpreter: submits its array. The ids of its jobs."""
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
    """Submit an array of datatrove's, and set the storage's counts to nothing before it begins."""
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
    """How many requests a task makes before it sleeps, and how many after."""
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
    """An array of datatrove's against the storage's limit."""
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
