"""Reading many small, several medium, and one large object from a slow S3: one task, and its peers.

The server waits before each answer, and limits the bandwidth of each connection. Every tool reads the same objects
through the same server, in turn. The CPU of stagger is that of its completion record.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.kit import documents, measure
from benchmarks.kit.peer import Peer, default_folder
from benchmarks.reading import datatrove, tasks
from benchmarks.reading.run import reading
from benchmarks.reading.tasks import Sample
from benchmarks.s3_reading import peers

#: The simulated S3: seconds before the first byte of an answer, and bytes per second of one connection.
LATENCY_S = 0.03
BANDWIDTH = 90e6
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}

#: Limits: seconds for the small objects, MB/s for the large one, MB of memory for any.
SMALL_S, LARGE_MB_PER_S, PEAK_MB = 3.0, 130.0, 150.0

#: Largest ratio of a task's wall time to its CPU time, on one processor while the server has another. Above it, the
#: task waits for its connections.
OF_CPU = 1.1
ALONE = ", one processor"

NOTES = (
    "Wall times are of the fastest run. stagger's last from the first read to the end of the task.",
    "The server runs on the last processor of the same machine, without TLS. The tools share it, except those on one"
    " processor, which is another.",
    "s5cmd only downloads, into memory; all others decompress and parse.",
    "`boto3 threads` is the plain algorithm: requests ahead in order, each whole in memory, decoded by isal and orjson."
    " It compares no versions, and has no limit of memory in bytes.",
    "datatrove reads the medium objects only, with isal.",
    "`one connection` is the time that one connection takes for latency and bytes, the limit of a single stream.",
)

Tools = dict[str, Callable[[], Sample]]


def s3_server(*options: str | float) -> Any:
    """The S3 server of the tests. Imported here because this program must import little (see `measure.Cost`)."""
    from tests.kit.s3_server import running

    return running(*options)


def make(work: str, options: argparse.Namespace) -> dict[str, list[str]]:
    """The objects of each kind. Those of a kind have the same content, as hard links to one file."""
    sizes = {"small": options.small_kb / 1e3, "medium": options.medium_mb}
    found: dict[str, list[str]] = {}
    for kind, count in (("small", options.small), ("medium", options.medium)):
        measure.fresh(documents.make_jsonl, folder=f"{work}/{kind}-made", megabytes=2.3 * sizes[kind], seed=1)
        os.makedirs(f"{work}/objects/{kind}")
        found[kind] = [f"{work}/objects/{kind}/{number:05d}.jsonl.gz" for number in range(count)]
        for name in found[kind]:
            os.link(f"{work}/{kind}-made/gz/0.jsonl.gz", name)
    os.makedirs(f"{work}/objects/large")
    found["large"] = [f"{work}/objects/large/00000.jsonl.gz"]
    source = found["medium"][0]
    measure.fresh(documents.repeat_gz, source=source, target=found["large"][0], megabytes=options.large_mb)
    return found


def tools(kind: str, work: str, endpoint: str, program: str | None, peer: Peer | None) -> Tools:
    environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}
    found: Tools = {}
    for engine in ("obstore", "s3fs"):
        if measure.version(engine):
            storage = {"s3": {"endpoint_url": endpoint, "engine": engine}}
            steps = reading("read_jsonl", f"s3://data/{kind}")
            found[f"stagger, {engine}"] = partial(tasks.stagger, steps, work, storage, CREDENTIALS)
    found["stagger, local files"] = partial(tasks.stagger, reading("read_jsonl", f"{work}/objects/{kind}"), work)
    if measure.version("boto3"):
        count = 32 if kind == "small" else 8
        found[f"boto3 threads ({count})"] = partial(peers.plain, kind, endpoint, count, environment)
        found["boto3, one after another"] = partial(peers.plain, kind, endpoint, 1, environment)
    if kind != "small" and len(mine := sorted(os.sched_getaffinity(0))) > 1:
        for name in ("stagger, obstore", "stagger, local files"):
            found[name + ALONE] = partial(alone, found[name], mine[0])
    if peer is not None and kind == "medium":
        steps = [("JsonlReader", {"data_folder": f"s3://data/{kind}"}), ("drain", {})]
        found["datatrove, s3fs"] = partial(datatrove.task, peer, steps, work, environment=environment, isal=peer.isal)
    if program is not None:
        found["s5cmd"] = partial(peers.s5cmd, program, kind, endpoint, environment)
    return found


def alone(tool: Callable[[], Sample], processor: int) -> Sample:
    with measure.on({processor}):
        return tool()


def compare(
    kind: str, paths: list[str], work: str, program: str | None, peer: Peer | None, repeat: int
) -> dict[str, Any]:
    """Run each tool `repeat` times, in turn. Raises RuntimeError when they read different numbers of documents."""
    size = sum(map(os.path.getsize, paths)) / 1e6
    runs: dict[str, list[dict[str, Any]]] = {}
    options = ("--serve", f"data={work}/objects", "--latency", LATENCY_S, "--bandwidth", int(BANDWIDTH))
    with contextlib.ExitStack() as stack:
        with measure.on({max(os.sched_getaffinity(0))}):
            server = stack.enter_context(s3_server(*options))
        for _ in range(repeat):
            for name, tool in tools(kind, work, server.endpoint, program, peer).items():
                server.reset()
                sample, kinds = tool(), Counter(what for what, key, _, _ in server.log() if key.startswith(f"{kind}/0"))
                measure.say(f"{kind}, {name}: {sample.wall_s:.2f} s, {sample.cpu_s:.2f} CPU s")
                runs.setdefault(name, []).append(
                    {
                        "wall_s": round(sample.wall_s, 3),
                        "cpu_s": round(sample.cpu_s, 3),
                        "mb_per_s": round(size / sample.wall_s, 1),
                        "peak_mb": sample.peak_mb,
                        "requests": dict(kinds),
                        "peak_requests_per_s": server.stats()["peak_1s"],
                        "read": sample.read,
                    }
                )
    counts = {run["read"] for several in runs.values() for run in several} - {None}
    if len(counts) != 1:
        raise RuntimeError(f"{kind}: the tools read different numbers of documents: {counts}")
    best = {name: min(several, key=lambda run: float(run["wall_s"])) for name, several in runs.items()}
    for name, several in runs.items():
        best[name]["wall_s of all runs"] = [run["wall_s"] for run in several]
    mine = best["stagger, local files"]["wall_s"]
    ratios = {name: round(run["wall_s"] / mine, 2) for name, run in best.items() if not name.endswith(ALONE)}
    return {
        "objects": len(paths),
        "mb": round(size, 1),
        "one connection, s": round(size * 1e6 / BANDWIDTH + LATENCY_S * len(paths), 2),
        "tools": best,
        "wall time / that of stagger on local files": ratios,
        "load_1_5_15_min": [round(load, 1) for load in os.getloadavg()],
    }


def requirements(results: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for kind, result in results.items():
        for engine in ("obstore", "s3fs"):
            name = f"stagger, {engine}"
            if name not in result["tools"]:
                found.append(measure.not_measured(f"{kind}, {engine}", "it is not installed"))
                continue
            run = result["tools"][name]
            found.append(measure.requirement(f"{kind}, {engine}: peak MB", run["peak_mb"], PEAK_MB))
            if engine == "obstore" and kind == "small":
                found.append(measure.requirement("small, obstore: wall s", run["wall_s"], SMALL_S))
                per_shard = run["requests"]["GetObject"] / result["objects"]
                found.append(measure.requirement("small, obstore: requests per object", per_shard, 1))
            elif engine == "obstore":
                found.append(waiting(kind, result["tools"].get("stagger, obstore" + ALONE)))
            if engine == "obstore" and kind == "large":
                found.append(measure.at_least("large, obstore: MB/s", run["mb_per_s"], LARGE_MB_PER_S))
    return found


def waiting(kind: str, run: dict[str, Any] | None) -> dict[str, Any]:
    what = f"{kind}, obstore, one processor: wall time / CPU time"
    if run is None:
        return measure.not_measured(what, "there is only one processor")
    return measure.requirement(what, round(run["wall_s"] / run["cpu_s"], 2), OF_CPU)


def parse() -> argparse.Namespace:
    parser = measure.parser((__doc__ or "").partition("\n")[0], repeat=3)
    parser.add_argument("--only", type=lambda text: text.split(","), default=["small", "medium", "large"])
    parser.add_argument("--small", type=int, default=2000, help="number of small objects")
    parser.add_argument("--small-kb", type=float, default=50, help="size of each on disk")
    parser.add_argument("--medium", type=int, default=20, help="number of medium objects")
    parser.add_argument("--medium-mb", type=float, default=10, help="size of each on disk")
    parser.add_argument("--large-mb", type=float, default=200, help="size of the large object on disk")
    parser.add_argument("--peer-venv", type=Path, default=default_folder(), help="datatrove's environment")
    return parser.parse_args()


def main() -> int:
    options = parse()
    try:
        program: str | None = peers.s5cmd_program()
    except (OSError, RuntimeError) as error:
        measure.say(f"s5cmd is left out: {error}")
        program = None
    try:
        peer: Peer | None = Peer(options.peer_venv)
    except (OSError, RuntimeError) as error:
        measure.say(f"datatrove is left out: {error}")
        peer = None
    options.peer_venv = str(options.peer_venv)
    work = tempfile.mkdtemp(prefix="stagger-s3-reading-", dir=options.folder)
    try:
        objects = make(work, options)
        results = {kind: compare(kind, objects[kind], work, program, peer, options.repeat) for kind in options.only}
    finally:
        shutil.rmtree(work)
    versions = {name: measure.version(name) for name in ("isal", "orjson", "s3fs", "obstore", "boto3")}
    found = {**results, "versions": {**versions, "s5cmd": peers.S5CMD if program else None}, "notes": NOTES}
    return measure.report(options, found, requirements(results))


if __name__ == "__main__":
    sys.exit(main())
