"""Writing documents into one file for each value of their metadata: CPU, peak memory and size, by the number of values.

The same documents are written in each case, in one process, values in turn, which is the worst order. The reference is
one file for all. Exit status 1 when a requirement is not met.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from random import Random
from typing import Any

from benchmarks.kit import documents, measure

#: Peak memory in MiB of a process that writes 5000 files, allowed above that of a process that writes one.
MORE_MB = 300


def write(folder: str, step: str, values: int, count: int, compression: Any) -> dict[str, Any]:
    """Write `count` documents, of `values` values in turn; 0 for names without a value. Runs in a fresh process."""
    import resource
    import time

    from stagger import Document, WriteJsonl, WriteParquet
    from stagger.pipeline.task_context import TaskContext
    from stagger.storage.storage import Storage

    task = TaskContext(Storage(), 0, 1, [], "tag")
    name = ("{key}/{rank}" if values else "{rank}") + (".jsonl" if step == "jsonl" else ".parquet")
    writer: Any = (WriteJsonl if step == "jsonl" else WriteParquet)(folder, name, compression=compression)
    writer.bind(task)
    random = Random(0)
    text = documents.Text(random).of(1_500_000)
    starts = [random.randrange(len(text) - 3500) for _ in range(count)]
    made = (
        Document(text[start : start + 3500], str(n), [], {"key": f"v{n % max(values, 1)}"})
        for n, start in enumerate(starts)
    )
    started = time.process_time()
    for _ in writer(made, 0, 1):
        pass
    for output in task.finish():
        output.commit(lambda: None, "")
    return {
        "cpu_s": round(time.process_time() - started, 3),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "files": len(task.outputs),
        "bytes": sum(one.output.size for one in task.outputs),
        "records": sum(one.records for one in task.outputs),
    }


def main() -> int:
    parser = measure.parser(__doc__ or "", repeat=1)
    parser.add_argument("--documents", type=int, default=100_000)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for step, compression in (("jsonl", "zstd"), ("jsonl", "gzip"), ("parquet", "zstd")):
        for values in (0, 1, 32, 5000):
            folder = tempfile.mkdtemp(prefix="stagger-by-value-", dir=options.folder)
            try:
                arguments = {"folder": folder, "step": step, "values": values, "count": options.documents}
                found, _ = measure.fresh(write, compression=compression, **arguments)
            finally:
                shutil.rmtree(folder)
            name = f"{step} {compression}, {values or 'no'} value{'s' * (values != 1)}"
            results[name] = found
            measure.say(f"{name}: {found}")
    requirements = [
        measure.requirement(
            f"{what}: MiB of peak memory for 5000 files above that for one",
            results[f"{what}, 5000 values"]["peak_mb"] - results[f"{what}, no values"]["peak_mb"],
            MORE_MB,
        )
        for what in ("jsonl zstd", "jsonl gzip", "parquet zstd")
    ]
    return measure.report(options, results, requirements)


if __name__ == "__main__":
    sys.exit(main())
