"""Planning many shards for many tasks: CPU and memory of the launch, and the part of the plan that one task reads."""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
import sys
import tempfile
import time
from typing import Any

from benchmarks.kit import measure
from benchmarks.kit.planned import planned

#: For a million shards.
LISTING_CPU_LIMIT_S, CPU_LIMIT_S = 10.0, 6.0

#: For any number of shards.
PEAK_LIMIT_MB = 2000.0
SHARE_LIMIT_BYTES = 100_000
SHARE_LIMIT_READS = 2

#: Method and status in a line of the S3 server's log; 206 answers a range read.
REQUEST = re.compile(r'([A-Z]+) \S+ HTTP/.*?" (\d+)')


def make_files(folder: str, files: int, subfolders: int) -> None:
    """Create empty files, spread evenly over the subfolders."""
    for sub in range(subfolders):
        path = f"{folder}/segment-{sub:05d}"
        os.mkdir(path)
        for number in range(sub, files, subfolders):
            os.close(os.open(f"{path}/part-{number:07d}.jsonl.gz", os.O_CREAT | os.O_WRONLY))


def plan_listing(folder: str, **stage: Any) -> dict[str, Any]:
    """List the files below a folder and plan them, as `stagger launch` does before it submits."""
    return planned({"path": folder, "glob": "*.jsonl.gz", "recursive": True}, **stage)


def plan_in_memory(files: int, **stage: Any) -> dict[str, Any]:
    """Plan shards with log-normal sizes, without listing them."""
    from stagger.pipeline import Shard
    from stagger.pipeline.shard_table import ShardTable
    from stagger.steps.jsonl import ReadJsonl, WriteJsonl

    class Known(ReadJsonl):
        def find_shards(self, storage: object) -> ShardTable:
            return shards

    started = time.process_time()
    draw = random.Random(0).lognormvariate
    name = "segment-{:05d}/part-{:07d}.jsonl.gz".format
    shards = ShardTable(Shard(name(i % 1000, i), int(draw(18, 0.5))) for i in range(files)).in_order()
    made_up = time.process_time() - started
    steps = [Known("input", recursive=True), WriteJsonl(f"{stage['run_dir']}/output")]
    return {"made_up_s": made_up, **planned({"path": "input"}, steps=steps, **stage)}


def share_on_disk(path: str, fingerprint: str, ranks: list[int]) -> dict[str, Any]:
    """Figures on the part of the plan that each of these ranks reads from disk."""
    return _shares(path, fingerprint, ranks, {}, [])


def share_on_s3(path: str, fingerprint: str, ranks: list[int]) -> dict[str, Any]:
    """The same from S3 (moto), with the requests that the server received."""
    import fsspec
    from moto.server import ThreadedMotoServer

    requests: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: requests.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("werkzeug").addHandler(handler)
    logging.getLogger("werkzeug").setLevel(logging.INFO)
    logging.getLogger("werkzeug").propagate = False
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    options = {"endpoint_url": "http://{}:{}".format(*server.get_host_and_port()), "key": "k", "secret": "s"}
    files = fsspec.filesystem("s3", **options)
    files.mkdir("bench")
    files.put_file(path, "bench/plan")
    try:
        return _shares("s3://bench/plan", fingerprint, ranks, {"s3": options}, requests)
    finally:
        server.stop()


def _shares(
    path: str, fingerprint: str, ranks: list[int], options: dict[str, Any], requests: list[str]
) -> dict[str, Any]:
    from stagger.rundir.plan_file import read_rank
    from stagger.storage.storage import Storage

    calls: list[tuple[str, int]] = []

    class Counted:
        """A storage backend that records each call and the number of bytes that it returns."""

        def __init__(self, backend: Any) -> None:
            self.backend = backend

        def __getattr__(self, name: str) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                result = getattr(self.backend, name)(*arguments, **options)
                calls.append((name, len(result) if isinstance(result, bytes) else 0))
                return result

            return call

    class CountedStorage(Storage):
        def _connect(self, protocol: str) -> Any:
            return Counted(super()._connect(protocol))

    reads, sizes, seen, shards, wall = [], [], [], [], []
    storage = CountedStorage(options)
    for rank in ranks:
        calls.clear()
        requests.clear()
        started = time.perf_counter()
        shards.append(len(read_rank(storage, path, fingerprint, rank).shards))
        wall.append(1000 * (time.perf_counter() - started))
        reads.append(len(calls))
        sizes.append(sum(size for _, size in calls))
        seen.append([" ".join(found.groups()) for found in map(REQUEST.search, requests) if found])
    found = {"ranks": len(ranks), "reads": max(reads), "bytes": measure.summary(sizes), "ms": measure.summary(wall)}
    found |= {"shards": measure.summary(shards)}
    if options:
        found |= {"requests": max(map(len, seen)), "kinds": sorted({kind for each in seen for kind in each})}
    return found


def planning(function: Any, repeat: int, **arguments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The summary of several runs, and the plan of the last one."""
    runs = []
    for number in range(repeat):
        runs.append(measure.fresh(function, **arguments))
        measure.say(f"{function.__name__} {arguments['shard_by']}, run {number + 1}: {runs[-1][1].cpu_s:.2f} CPU s")
    plan = runs[-1][0]
    made_up = [result.get("made_up_s", 0.0) for result, _ in runs]
    found = {
        **measure.costs([cost for _, cost in runs]),
        "cpu_s": measure.summary(cost.cpu_s - other for (_, cost), other in zip(runs, made_up, strict=True)),
        "phases_cpu_s": {key: measure.summary(result["phases"][key] for result, _ in runs) for key in plan["phases"]},
        "plan_bytes": plan["bytes"],
        "shards": plan["shards"],
    }
    return found, plan


def main() -> int:
    parser = measure.parser(__doc__ or "", repeat=3)
    parser.add_argument("--shards", type=int, default=1_000_000, help="input files")
    parser.add_argument("--tasks", type=int, default=8000, help="ranks that they are given to")
    parser.add_argument("--subfolders", type=int, default=1000, help="folders that the listed files lie in")
    parser.add_argument("--s3-ranks", type=int, default=20, help="ranks whose share is read from S3")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    requirements = []
    work = tempfile.mkdtemp(prefix="stagger-plan-", dir=options.folder)
    try:
        os.mkdir(f"{work}/input")
        measure.say(f"making {options.shards} files in {work}/input")
        make_files(f"{work}/input", options.shards, options.subfolders)
        common = {"run_dir": f"{work}/run", "tasks": options.tasks}
        for shard_by in ("count", "bytes"):
            listing = {**common, "folder": f"{work}/input", "shard_by": shard_by}
            results[f"listing, by {shard_by}"], _ = planning(plan_listing, options.repeat, **listing)
        for shard_by in ("count", "bytes"):
            known = {**common, "files": options.shards, "shard_by": shard_by}
            results[f"in memory, by {shard_by}"], plan = planning(plan_in_memory, options.repeat, **known)
        for what, found in results.items():
            limit = (LISTING_CPU_LIMIT_S if what.startswith("listing") else CPU_LIMIT_S) * options.shards / 1e6
            requirements.append(measure.requirement(f"CPU s, {what}", found["cpu_s"]["median"], limit))
            requirements.append(measure.requirement(f"peak MB, {what}", found["peak_mb"]["median"], PEAK_LIMIT_MB))
        shares = {"disk": measure.fresh(share_on_disk, **chosen(plan, range(options.tasks)))[0]}
        requirements.append(measure.requirement("reads of a task, disk", shares["disk"]["reads"], SHARE_LIMIT_READS))
        missing = [name for name in ("moto", "s3fs") if measure.version(name) is None]
        if missing:
            shares["s3"] = {"skipped": f"not installed: {', '.join(missing)}"}
        else:
            some = range(0, options.tasks, max(1, options.tasks // options.s3_ranks))
            shares["s3"] = measure.fresh(share_on_s3, **chosen(plan, some))[0]
            requirements.append(measure.requirement("GETs of a task, S3", shares["s3"]["requests"], SHARE_LIMIT_READS))
        largest = max(share["bytes"]["max"] for share in shares.values() if "bytes" in share)
        requirements.append(measure.requirement("bytes of a task", largest, SHARE_LIMIT_BYTES))
        results["one task's share"] = shares
    finally:
        shutil.rmtree(work)
    return measure.report(options, results, requirements)


def chosen(plan: dict[str, Any], ranks: range) -> dict[str, Any]:
    return {"path": plan["path"], "fingerprint": plan["fingerprint"], "ranks": list(ranks)}


if __name__ == "__main__":
    sys.exit(main())
