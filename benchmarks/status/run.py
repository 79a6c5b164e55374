"""`stagger status` of a run of 100,000 ranks, at the first look and at the next ones: CPU seconds and memory.

The completion records are generated, with the size of real ones. Stand-ins for squeue and sacct answer like a cluster
with that many jobs. With --than, another checkout does the same in turn. Exit status 1 when a requirement is not met.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.kit import measure

#: Program of a process: the command `stagger` of a checkout.
RUN = "import runpy, sys; sys.path[0] = sys.argv.pop(1); runpy.run_module('stagger', run_name='__main__')"


def completion(rank: int, ranks: int, job: str, began: float) -> dict[str, Any]:
    """A completion record, as a task writes it."""
    return {
        "rank": rank,
        "world_size": ranks,
        "stage": "held",
        "fingerprint": "0" * 64,
        "attempt": "1",
        "launch": 1,
        "restart": 0,
        "job": f"{job}_{rank}",
        "host": f"node-{rank % 500:03d}",
        "pid": 1000 + rank % 30_000,
        "start_policy": "uniform",
        "window_s": 180,
        "delay_s": float(rank * 7919 % 181),
        "script_started": began + rank % 1000 / 100,
        "started": began + rank % 1000 / 100 + rank * 7919 % 181,
        "ended": began + 900 + rank % 977,
        "cpu_s": 512.345678,
        "peak_rss_mb": 612,
        "retried": {"requests": {"throttled": 3}, "waited_s": 1.25},
        "first_read": began + 200.0,
        "shards": 3,
        "bytes_in": 987_654_321,
        "records_in": 123_456,
        "records_out": 98_765,
        "bytes_out": 456_789_012,
        "outputs": [output(rank)],
        "bad_records": {"skipped": {}, "examples": []},
        "steps": [
            {"name": name, "records": 98_765, "seconds": 123.456789}
            for name in ("read_jsonl", "my:keep", "write_jsonl")
        ],
    }


def output(rank: int) -> dict[str, Any]:
    digest = f"{rank * 2654435761:032x}"
    path = f"s3://bucket/output/{rank:05d}.jsonl.zst"
    return {"path": path, "bytes": 456_789_012, "records": 98_765, "digest": digest}


def make_run(folder: str, ranks: int, done: int) -> None:
    """Launch a run with stand-ins for Slurm's commands, and generate completion records for the first `done` ranks."""
    place = Path(folder, "bin")
    place.mkdir()
    for name, script in (
        ("sbatch", f"echo >>{folder}/jobs; echo Submitted batch job $((9000 + $(wc -l <{folder}/jobs)))"),
        ("srun", "true"),
        ("sacctmgr", "exit 1"),
        ("scontrol", "echo 'MaxArraySize = 1000001'; echo 'MaxJobCount = 1000000'"),
        ("squeue", f"[[ $* == *--array* ]] && cat {folder}/squeue.txt"),
        ("sacct", f"[[ $* == *--jobs=9001* ]] && cat {folder}/sacct.txt; true"),
    ):
        (place / name).write_text(f"#!/bin/bash\n{script}\n")
        (place / name).chmod(0o755)
    Path(folder, "input").mkdir()
    Path(folder, "input", "0.jsonl").write_text('{"text": "a", "id": "a"}\n')
    Path(folder, "squeue.txt").write_text("")
    Path(folder, "sacct.txt").write_text("")
    measure.run([*measure.STAGGER, "launch", str(measure.HELD), f"--tasks={ranks}"], environment(folder), (0, 1))
    launched = json.loads(Path(folder, "run", "launches", "1", "launch.json").read_text())
    name, began = launched["arrays"][0]["name"], time.time() - 1800
    completions = Path(folder, "run", "completions")
    completions.mkdir(exist_ok=True)
    for rank in range(done):
        text = json.dumps(completion(rank, ranks, "9001", began), indent=2)
        (completions / f"{rank:05d}.json").write_text(text)
    states, rest = ("PENDING", "RUNNING"), f"12:34|2026-01-01T00:00:00|None|{name}|{folder}/run/slurm/.{name}.sh"
    waiting = [f"9001|{rank}|{states[rank % 2]}|{rest}" for rank in range(done, ranks)]
    Path(folder, "squeue.txt").write_text("\n".join(waiting) + "\n")
    Path(folder, "sacct.txt").write_text("".join(f"9001_{rank}|COMPLETED|0:0|n1\n" for rank in range(done)))


def look(folder: str, checkout: str, done: int) -> measure.Cost:
    """The cost of one status by the stagger of a checkout."""
    command = [sys.executable, "-c", RUN, checkout, "status", f"{folder}/run", "--json"]
    output, cost = measure.run(command, environment(folder), allowed=(0, 3))
    found = json.loads(output)["stages"][0]
    if found["done"] != done:
        raise RuntimeError(f"status says {found['done']} are done")
    return cost


def looks(folder: str, done: int, repeat: int, than: str | None) -> dict[str, list[measure.Cost]]:
    """The costs of first looks, for which no earlier one has left an index, of next ones, and of the other checkout."""
    found: dict[str, list[measure.Cost]] = {}
    for _ in range(repeat):
        Path(folder, "run", "completions.index").unlink(missing_ok=True)
        for name in ("first look", "next look"):
            found.setdefault(name, []).append(look(folder, str(measure.ROOT), done))
        if than is not None:
            found.setdefault("other checkout", []).append(look(folder, than, done))
    return found


def environment(folder: str) -> dict[str, str]:
    return {"PATH": f"{folder}/bin:{os.environ['PATH']}", "STAGGER_BENCHMARK": folder}


def main() -> int:
    parser = measure.parser((__doc__ or "").partition("\n")[0], repeat=3)
    parser.add_argument("--ranks", type=int, default=100_000)
    parser.add_argument("--than", help="the folder of another checkout, which can read the run")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for name, share in (("all done", 1.0), ("half done, half queued", 0.5)):
        folder = tempfile.mkdtemp(prefix="stagger-status-", dir=options.folder)
        try:
            done = int(options.ranks * share)
            make_run(folder, options.ranks, done)
            for which, measured in looks(folder, done, options.repeat, options.than).items():
                results[f"{name}, {which}"] = measure.costs(measured)
                measure.say(f"{name}, {which}: {results[f'{name}, {which}']}")
        finally:
            shutil.rmtree(folder)
    requirements = [
        measure.requirement(f"{name}: CPU s", results[name]["cpu_s"]["median"], 1.4 if "next" in name else 2.5)
        for name in results
        if "other" not in name
    ]
    return measure.report(options, results, requirements)


if __name__ == "__main__":
    sys.exit(main())
