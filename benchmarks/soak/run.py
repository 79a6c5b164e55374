"""A run on a Slurm cluster under constant disturbance: tasks killed, jobs requeued, requests rejected or cut off.

With --ranks-at-once, jobs run ranks beside one another: their workers are killed, and now and then a whole crew.

At the end every rank must be done, and every record must be in the outputs exactly once. Exit status 1 otherwise.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.kit import measure
from tests.kit.s3_server import S3Server, running

HERE = Path(__file__).parent
RECORDS = 40  # Per shard.


def make_shards(folder: Path, count: int) -> set[str]:
    """Write `count` shards. Returns the ids of all documents."""
    folder.mkdir()
    ids = set()
    for index in range(count):
        names = [f"{index}-{number}" for number in range(RECORDS)]
        ids.update(names)
        lines = [json.dumps({"text": f"document {name}", "id": name}) for name in names]
        (folder / f"{index:06d}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode(), 1))
    return ids


def tasks_of(run: str) -> dict[str, list[int]]:
    """The process ids of a run's tasks, which have the run directory among their arguments: of workers, and of jobs."""
    found: dict[str, list[int]] = {"workers": [], "jobs": []}
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes() if folder.name.isdecimal() else b""
        except OSError:
            continue
        if b"stagger.task" in words and run.encode() in words:
            found["workers" if b"\0-\0" in words else "jobs"].append(int(folder.name))
    return found


def running_elements() -> list[str]:
    """The array elements of the run that are running now."""
    command = ["squeue", "--noheader", "--array", "--states=RUNNING", "--format=%i %j"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line.split()[0] for line in lines if line.split()[1].startswith("soak-") and "_" in line.split()[0]]


def disturb(run: str, seconds: float, every: float, dice: random.Random) -> Counter[str]:
    """Kill tasks and requeue jobs for `seconds`, every `every` seconds on average. Returns the count of each kind."""
    done: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    said = time.monotonic()
    while time.monotonic() < deadline:
        time.sleep(dice.uniform(0, 2 * every))
        if dice.random() < 0.6:
            tasks = tasks_of(run)
            kind = "workers" if tasks["workers"] and dice.random() < 0.9 else "jobs"
            if tasks[kind]:
                try:
                    os.kill(dice.choice(tasks[kind]), signal.SIGKILL)
                    done["workers killed" if kind == "workers" else "tasks killed"] += 1
                except ProcessLookupError:
                    pass
        elif elements := running_elements():
            command = ["scontrol", "requeue", dice.choice(elements)]
            done["jobs requeued"] += subprocess.run(command, capture_output=True, check=False).returncode == 0
        if time.monotonic() - said > 20:
            said = time.monotonic()
            measure.say(f"{dict(done)}, {deadline - said:.0f} s to go")
    return done


def status(run: str, environment: dict[str, str]) -> dict[str, Any]:
    output, _ = measure.run([*measure.STAGGER, "status", run, "--json"], environment, allowed=(0, 1, 3))
    found: dict[str, Any] = json.loads(output)["stages"][0]
    return found


def outputs(server: S3Server) -> list[dict[str, Any]]:
    """All records of all outputs."""
    import s3fs
    import zstandard

    files = s3fs.S3FileSystem(endpoint_url=server.endpoint, key="key", secret="secret", use_listings_cache=False)
    records = []
    for path in files.find("soak-output"):
        data = zstandard.ZstdDecompressor().decompressobj().decompress(files.cat(path))
        records += [json.loads(line) for line in data.splitlines()]
    return records


def main() -> int:
    parser = measure.parser((__doc__ or "").partition("\n")[0], repeat=1)
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--throttle", type=int, default=60, help="jobs at once")
    parser.add_argument("--ranks-per-job", type=int, default=1)
    parser.add_argument("--ranks-at-once", type=int, default=1, help="of a job, on each of its nodes")
    parser.add_argument("--nodes-per-job", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=180, help="for how long it is disturbed")
    parser.add_argument("--every", type=float, default=1.5, help="seconds between two disturbances, on average")
    parser.add_argument("--p-503", type=float, default=0.1, help="the share of requests that are refused")
    parser.add_argument("--p-reset", type=float, default=0.02, help="the share of answers that are cut off")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=1800, help="seconds to wait for the end")
    options = parser.parse_args()
    work = tempfile.mkdtemp(prefix="stagger-soak-", dir=options.folder)
    try:
        ids = make_shards(Path(work, "input"), 2 * options.tasks)
        with running("--serve", f"soak-input={work}/input", "--bucket", "soak-output") as server:
            server.set_faults(p_503=options.p_503, p_reset=options.p_reset, seed=options.seed)
            environment = {
                "AWS_ENDPOINT_URL": server.endpoint,
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_DEFAULT_REGION": "us-east-1",
                "STAGGER_SOAK_RUN": f"{work}/run",
            }
            changes = [f"--tasks={options.tasks}", f"--set=executor.workers={options.throttle}"]
            keys = ("ranks_per_job", "ranks_at_once", "nodes_per_job")
            changes += [f"--set=executor.{key}={getattr(options, key)}" for key in keys]
            measure.run([*measure.STAGGER, "launch", str(HERE / "soak.yaml"), *changes], environment)
            done = disturb(f"{work}/run", options.seconds, options.every, random.Random(options.seed))
            deadline = time.monotonic() + options.timeout
            while (found := status(f"{work}/run", environment))["done"] < options.tasks and time.monotonic() < deadline:
                time.sleep(2)
            faults = server.stats()["faults"]
            server.set_faults()
            records = outputs(server)
            completions = [json.loads(path.read_bytes()) for path in Path(work, "run", "completions").iterdir()]
            attempts = Counter(record["attempt"] for record in completions)
            counts = Counter(record["id"] for record in records)
            launches = len(list(Path(work, "run", "launches").iterdir()))
    finally:
        shutil.rmtree(work)
    results = {
        "disturbances": {**done, **{f"requests with {kind}": count for kind, count in faults.items()}},
        "ranks_done": found["done"],
        "launches": launches,
        "ranks_not_done_at_the_first_attempt": options.tasks - attempts["1"],
        "attempts": dict(attempts.most_common(12)),
        "requests_made_again": found["retried"],
        "records_in_outputs": len(records),
        "records_by_completions": sum(record["records_out"] for record in completions),
    }
    requirements = [
        measure.requirement("ranks not done", options.tasks - found["done"], 0),
        measure.requirement("records lost", len(ids - counts.keys()), 0),
        measure.requirement("records doubled", sum(counts.values()) - len(counts), 0),
        measure.requirement("records of nobody", len(counts.keys() - ids), 0),
        measure.requirement(
            "records by completions off the input", abs(results["records_by_completions"] - len(ids)), 0
        ),
    ]
    return measure.report(options, results, requirements)


if __name__ == "__main__":
    sys.exit(main())
