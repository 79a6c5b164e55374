"""The tasks of run.py with datatrove. `run` runs in the interpreter of datatrove's environment."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.kit import measure
from benchmarks.kit.peer import Peer
from benchmarks.reading.tasks import Sample, Steps


def task(
    peer: Peer,
    steps: Steps,
    work: str,
    output: str | None = None,
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> Sample:
    """Run a task in a fresh process. Its files in the folder `output` are measured, then removed."""
    logs = tempfile.mkdtemp(prefix="datatrove-", dir=work)
    found, _ = measure.fresh(
        run, python=peer.python, environment=environment, steps=steps, logs=f"{logs}/run", **options
    )
    shutil.rmtree(logs)
    if output is None:
        return Sample(**{**found, "written": None})
    written = sum(file.stat().st_size for file in Path(output).iterdir())
    shutil.rmtree(output)
    return Sample(**found, written_mb=written / 1e6)


def run(steps: Steps, logs: str, isal: str | None = None, zstd_level: int | None = None) -> dict[str, Any]:
    """Run one task with datatrove's local executor. The clocks start after its imports.

    `isal` is a folder with that package, which fsspec then uses for gzip. `zstd_level` replaces fsspec's default, 10.
    """
    if isal:
        sys.path.insert(0, isal)
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline import readers, writers

    from benchmarks.reading import steps as own

    if zstd_level is not None:
        set_zstd_level(zstd_level)
    pipeline = []
    for name, parameters in steps:
        known = getattr(readers, name, None) or getattr(writers, name, None)
        pipeline.append(known(**parameters) if known else getattr(own, name))
    executor = LocalPipelineExecutor(pipeline, tasks=1, workers=1, logging_dir=logs)
    wall, cpu = time.perf_counter(), time.process_time()
    stats = executor.run().stats
    return {
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
        "peak_mb": peak_mb(),
        "read": stats[0]["documents"].total,
        "written": stats[-1]["total"].total,
    }


def set_zstd_level(level: int) -> None:
    """Make fsspec compress with this level, for which it has no option."""
    import zstandard
    from fsspec.compression import register_compression

    def opened(file: Any, mode: str = "rb") -> Any:
        if "r" in mode:
            return zstandard.ZstdDecompressor().stream_reader(file)
        return zstandard.ZstdCompressor(level=level).stream_writer(file)

    register_compression("zstd", opened, "zst", force=True)


def peak_mb() -> int:
    """The peak resident memory of this process so far, in MiB: the same figure as in stagger's records."""
    (peak,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(peak) // 1024
