"""Launching thousands of tasks on a real Slurm cluster: seconds, calls of sbatch, files, array elements.

The jobs are held, then cancelled. Launches once with the MaxArraySize of the cluster and once with 1001, and compares
with datatrove 0.10.1. Exit status 1 when a requirement is not met.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.kit import measure
from benchmarks.kit.peer import Peer, default_folder


def stand_ins(folder: str) -> dict[str, str]:
    """An environment that counts calls of sbatch. With SMALL set, scontrol reports a MaxArraySize of 1001."""
    place = Path(folder, "bin")
    place.mkdir()
    for name in ("sbatch", "scontrol"):
        real = shutil.which(name)
        change = " | sed -E 's/^(MaxArraySize *= ).*/\\11001/'" if name == "scontrol" else ""
        count = f'echo "$@" >> {folder}/{name}.calls'
        (place / name).write_text(
            f'#!/bin/bash\n{count}\nif [[ $SMALL ]]; then {real} "$@"{change}; else {real} "$@"; fi\n'
        )
        (place / name).chmod(0o755)
    return {"PATH": f"{place}:{os.environ['PATH']}"}


def launch_datatrove(folder: str, tasks: int, max_array_size: int) -> int:
    """Launch a held pipeline with datatrove. Returns the number of tasks."""
    from datatrove.executor.slurm import SlurmPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    from benchmarks.launching import steps

    pipeline = [JsonlReader(f"{folder}/input"), steps.keep, JsonlWriter(f"{folder}/datatrove", compression=None)]
    SlurmPipelineExecutor(
        pipeline,
        tasks=tasks,
        time="1:00:00",
        partition="cpu",
        logging_dir=f"{folder}/datatrove-logs",
        slurm_logs_folder=f"{folder}/datatrove-logs/slurm",
        max_array_size=max_array_size,
        sbatch_args={"hold": ""},
    ).run()
    return tasks


def submitted(folder: str, prefix: str) -> dict[str, int]:
    """Count the queued jobs and arrays whose names start with `prefix`, then cancel them."""
    command = ["squeue", "--noheader", "--array", "--format=%F %j"]
    lines = [
        line.split() for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    ]
    jobs = [job for job, name in lines if re.match(prefix, name)]
    subprocess.run(["scancel", *sorted(set(jobs))], check=True)
    return {"jobs": len(jobs), "arrays": len({job for job in jobs if jobs.count(job) > 1})}


def one(folder: str, tasks: int, small: bool) -> dict[str, Any]:
    """The figures of one launch with stagger; `small` simulates a MaxArraySize of 1001."""
    environment = {**stand_ins(folder), "STAGGER_BENCHMARK": folder, **({"SMALL": "1"} if small else {})}
    _, cost = measure.run([*measure.STAGGER, "launch", str(measure.HELD), f"--tasks={tasks}"], environment)
    record = json.loads(Path(folder, "run", "launches", "1", "launch.json").read_text())
    files = sum(len(names) for _, _, names in os.walk(f"{folder}/run"))
    in_queue = submitted(folder, "held-")
    return {
        "wall_s": round(cost.wall_s, 2),
        "cpu_s": round(cost.cpu_s, 2),
        "sbatch_calls": len(Path(folder, "sbatch.calls").read_text().splitlines()),
        "arrays": len(record["arrays"]),
        "elements": sum(array["jobs"] for array in record["arrays"]),
        "jobs_in_the_queue": in_queue["jobs"],
        "files": files,
    }


def make_input(folder: str) -> None:
    Path(folder, "input").mkdir()
    for index in range(100):
        Path(folder, "input", f"{index:03d}.jsonl").write_text('{"text": "a", "id": "a"}\n')


def main() -> int:
    parser = measure.parser((__doc__ or "").partition("\n")[0], repeat=1)
    parser.add_argument("--tasks", type=int, default=8000)
    parser.add_argument("--peer-venv", default=str(default_folder()), help="datatrove's environment; made if need be")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for name, small in (("stagger", False), ("stagger, MaxArraySize 1001", True)):
        with tempfile.TemporaryDirectory(prefix="stagger-launch-", dir=options.folder) as folder:
            make_input(folder)
            results[name] = one(folder, options.tasks, small)
            measure.say(f"{name}: {results[name]}")
    python = Peer(Path(options.peer_venv)).python
    for name, size in (("datatrove", 10_000), ("datatrove, MaxArraySize 1001", 1001)):
        with tempfile.TemporaryDirectory(prefix="stagger-launch-", dir=options.folder) as folder:
            make_input(folder)
            environment = {**stand_ins(folder), **({"SMALL": "1"} if size == 1001 else {})}
            arguments = {"folder": folder, "tasks": options.tasks, "max_array_size": size}
            _, cost = measure.fresh(launch_datatrove, python=python, environment=environment, **arguments)
            results[name] = {
                "wall_s": round(cost.wall_s, 2),
                "cpu_s": round(cost.cpu_s, 2),
                "sbatch_calls": len(Path(folder, "sbatch.calls").read_text().splitlines()),
                "jobs_in_the_queue": submitted(folder, "data_")["jobs"],
            }
            measure.say(f"{name}: {results[name]}")
    requirements = []
    for name in ("stagger", "stagger, MaxArraySize 1001"):
        found = results[name]
        requirements += [
            measure.requirement(f"{name}: wall s", found["wall_s"], 2),
            measure.requirement(f"{name}: files", found["files"], 10 if found["arrays"] == 1 else 10 + found["arrays"]),
            measure.requirement(f"{name}: sbatch calls", found["sbatch_calls"], found["arrays"] + 1),
            measure.requirement(f"{name}: surplus elements", found["elements"] - options.tasks, 0),
            measure.requirement(f"{name}: surplus jobs", found["jobs_in_the_queue"] - options.tasks - 1, 0),
        ]
    return measure.report(options, results, requirements)


if __name__ == "__main__":
    sys.exit(main())
