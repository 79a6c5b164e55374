"""A rank with two processors: codecs in threads beside the steps, compared with the plain way on one.

The same task, pinned to one processor and free to use two, in turn: reading, and reading, filtering and writing. Its
outputs must be the same bytes. `free processors` is how many the machine really gave at that moment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.kit import documents, measure
from benchmarks.reading import tasks
from benchmarks.reading.run import reading
from benchmarks.reading.tasks import Sample, Steps
from stagger.pipeline import Document
from stagger.pipeline.compression import Codec
from stagger.pipeline.task_context import TaskContext
from stagger.steps.jsonl import ReadJsonl, WriteJsonl
from stagger.storage.storage import Storage

#: Limits: wall time with threads / without, where two processors are free, and CPU time with threads / without.
WALL, CPU = 0.75, 1.1

#: What two processes that only compute get of two processors, at least, for wall times to count.
FREE = 1.8

#: A program that computes for a moment, and prints its wall and its CPU seconds.
SPIN = """import time
wall, cpu = time.perf_counter(), time.process_time()
sum(range(8_000_000))
print(time.perf_counter() - wall, time.process_time() - cpu)"""

NOTES = (
    "Wall times are of the fastest run, from the first read to the end of the task.",
    "Wall times count only in runs in which two processors were free.",
    "`CPU s of each thread` are of the same task in a process of its own: what two free processors would make of it.",
    "`zstd | zstd` decompresses and compresses in two processes of a pipe. It parses nothing, and filters nothing.",
)


def free_processors() -> float:
    """How many processors two processes that compute get together: 2.0 on an idle machine."""
    running = [subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    times = [tuple(map(float, process.communicate()[0].split())) for process in running]
    return sum(cpu for _, cpu in times) / max(wall for wall, _ in times)


def steps_of(kind: str, work: str, *, writes: bool) -> Steps:
    """The steps of a task. Its output, if it writes one, has the codec of its input."""
    if not writes:
        return reading("read_jsonl", f"{work}/{kind}")
    codec = "gzip" if kind == "gz" else "zstd"
    return [
        ("read_jsonl", {"path": f"{work}/{kind}"}),
        ("steps:keep_half", {}),
        ("write_jsonl", {"path": f"{work}/out", "compression": codec}),
    ]


def run_on(processors: set[int], steps: Steps, work: str) -> tuple[Sample, bytes]:
    """Run a task that may use these processors. Returns its output, too."""
    with measure.on(processors):
        sample = tasks.stagger(steps, work)
    files = sorted(Path(work, "out").glob("*")) if os.path.isdir(f"{work}/out") else []
    content = b"".join(file.read_bytes() for file in files)
    shutil.rmtree(f"{work}/out", ignore_errors=True)
    return sample, content


def threads(source: str, target: str, codec: Codec | None) -> dict[str, float]:
    """CPU seconds of each thread of a task, which no load of the machine changes. The longest bounds the wall time."""
    storage = Storage()
    reader = ReadJsonl(source)
    task = TaskContext(storage, 0, 1, reader.find_shards(storage), "tag", cpus=2)
    reader.bind(task)
    documents: Iterable[Document] = reader(None, 0, 1)
    if codec is not None:
        writer = WriteJsonl(path=target, compression=codec)
        writer.bind(task)
        documents = writer((one for one in documents if len(one.text) % 2), 0, 1)
    total, own = time.process_time(), time.thread_time()
    for _ in documents:
        pass
    task.finish()
    own = time.thread_time() - own
    others = [thread.ident for thread in threading.enumerate() if thread is not threading.current_thread()]
    behind = sum(time.clock_gettime(time.pthread_getcpuclockid(one)) for one in others if one is not None)
    total = time.process_time() - total
    task.abort()
    task.close()
    return {"decompress": total - own - behind, "steps": own, "compress": behind}


def pipe(path: str) -> Sample:
    """Two processes of zstd: the codecs alone, beside one another."""
    _, cost = measure.run(["sh", "-c", f'zstd -dcq "$0" | zstd -q -3 -c > {os.devnull}', path])
    return Sample(cost.cpu_s, cost.wall_s)


def compare(kind: str, work: str, *, writes: bool, repeat: int) -> dict[str, Any]:
    """Raises RuntimeError when the outputs differ."""
    steps = steps_of(kind, work, writes=writes)
    two = set(sorted(os.sched_getaffinity(0))[:2])
    ways = {"one processor": {min(two)}, "two processors": two}
    runs: dict[str, list[dict[str, float]]] = {}
    contents: set[bytes] = set()
    for _ in range(repeat):
        for name, processors in ways.items():
            free = free_processors()
            sample, content = run_on(processors, steps, work)
            contents.add(content)
            runs.setdefault(name, []).append(figures(sample, free))
        if kind == "zst" and writes and shutil.which("zstd"):
            (file,) = Path(work, kind).iterdir()
            runs.setdefault("zstd | zstd", []).append(figures(pipe(str(file)), free_processors()))
    if len(contents) != 1:
        raise RuntimeError(f"{kind}: the outputs differ")
    codec = dict(steps[-1][1]).get("compression")
    made = [
        measure.fresh(threads, source=f"{work}/{kind}", target=f"{work}/own", codec=codec)[0] for _ in range(repeat)
    ]
    each = {name: round(min(run[name] for run in made), 3) for name in made[0]}
    return {name: best(several) for name, several in runs.items()} | {"CPU s of each thread": each}


def figures(sample: Sample, free: float) -> dict[str, float]:
    found = {"wall_s": sample.wall_s, "cpu_s": sample.cpu_s, "free processors": free}
    return {name: round(value, 3) for name, value in found.items()} | {"peak_mb": sample.peak_mb or 0.0}


def best(runs: list[dict[str, float]]) -> dict[str, Any]:
    """The fastest run of those in which two processors were free, else of all; the least CPU time of all."""
    counted = [run for run in runs if run["free processors"] >= FREE] or runs
    fastest = min(counted, key=lambda run: run["wall_s"])
    return {**fastest, "cpu_s": min(run["cpu_s"] for run in runs), "runs": [run["wall_s"] for run in runs]}


def requirements(item: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    one, two = found["one processor"], found["two processors"]
    cpu = measure.requirement(f"{item}: CPU time, two / one", round(two["cpu_s"] / one["cpu_s"], 2), CPU)
    limit = WALL if "write" in item else 1.0
    longest = round(max(found["CPU s of each thread"].values()) / one["cpu_s"], 2)
    bound = measure.requirement(f"{item}: CPU time of the longest thread / of all on one processor", longest, limit)
    what = f"{item}: wall time, two / one"
    if min(one["free processors"], two["free processors"]) < FREE:
        return [cpu, bound, measure.not_measured(what, "no run had two free processors")]
    ratio = round(two["wall_s"] / one["wall_s"], 2)
    return [cpu, bound, measure.requirement(what, ratio, limit)]


def main() -> int:
    parser = measure.parser((__doc__ or "").partition("\n")[0], repeat=5)
    parser.add_argument("--megabytes", type=float, default=200, help="of generated documents, uncompressed")
    options = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("this process may use one processor only")
    work = tempfile.mkdtemp(prefix="stagger-two-cores-", dir=options.folder)
    results: dict[str, Any] = {}
    found: list[dict[str, Any]] = []
    try:
        os.mkdir(f"{work}/own")
        measure.fresh(documents.make_jsonl, folder=work, megabytes=options.megabytes, seed=1)
        for kind in ("gz", "zst"):
            for writes in (False, True):
                item = f"{kind}, read{', filter, write' if writes else ''}"
                began = time.perf_counter()
                results[item] = compare(kind, work, writes=writes, repeat=options.repeat)
                measure.say(f"{item}: {time.perf_counter() - began:.0f} s")
                found += requirements(item, results[item])
    finally:
        shutil.rmtree(work)
    return measure.report(options, {"items": results, "notes": NOTES}, found)


if __name__ == "__main__":
    sys.exit(main())
