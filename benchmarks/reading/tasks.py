"""Run one task, or one decompression, in a fresh process, and measure it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.kit import measure

HERE = Path(__file__).parent

#: (name, parameters) of each step, in the order of the pipeline.
Steps = Sequence[tuple[str, Mapping[str, Any]]]

#: The fastest program that decompresses a codec, and the Python package that stands in for it.
CODECS = {"gzip": ("igzip", "isal"), "zstd": ("zstd", "zstandard")}


@dataclass(frozen=True)
class Sample:
    """One run. `read` and `written` count documents; figures that do not apply are None."""

    cpu_s: float
    wall_s: float
    peak_mb: float | None = None
    read: int | None = None
    written: int | None = None
    written_mb: float | None = None


def stagger(
    steps: Steps,
    work: str,
    storage: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Sample:
    """Run a task with `stagger launch`. Its wall time lasts from its first read to the commit of its output."""
    folder = tempfile.mkdtemp(prefix="stagger-", dir=work)
    spec = {
        "name": "task",
        "run_dir": f"{folder}/run",
        "storage_options": storage or {},
        "pipeline": [{name: parameters} for name, parameters in steps],
        "executor": {"type": "local", "workers": 1},
    }
    Path(folder, "task.yaml").write_text(json.dumps(spec))
    command = [*measure.STAGGER, "launch", f"{folder}/task.yaml"]
    measure.run(command, {"PYTHONPATH": str(HERE), **(environment or {})})
    record = json.loads(Path(folder, "run", "completions", "00000.json").read_text())
    shutil.rmtree(folder)
    return Sample(
        cpu_s=record["cpu_s"],
        wall_s=record["ended"] - record["first_read"],
        peak_mb=record["peak_rss_mb"],
        read=record["records_in"],
        written=record["records_out"] if record["outputs"] else None,
        written_mb=record["bytes_out"] / 1e6 if record["outputs"] else None,
    )


def alone(path: str, codec: str) -> tuple[str, Callable[[], Sample]]:
    """The name of the fastest decompressor on this machine, and a function that decompresses `path` with it."""
    program, package = CODECS[codec]
    if shutil.which(program):
        return f"{program} -d", partial(by_program, program, path)
    return f"{package} in Python", partial(by_package, package, path)


def by_program(program: str, path: str) -> Sample:
    _, cost = measure.run(["sh", "-c", f'exec {program} -d -c "$0" > {os.devnull}', path])
    return Sample(cost.cpu_s, cost.wall_s)


def by_package(package: str, path: str) -> Sample:
    found, _ = measure.fresh(decompress, package=package, path=path)
    return Sample(**found)


def decompress(package: str, path: str) -> dict[str, float]:
    """Read a compressed file to its end. Excludes the start of the interpreter and the imports."""
    opened = import_module("isal.igzip" if package == "isal" else package).open
    wall, cpu = time.perf_counter(), time.process_time()
    with opened(path, "rb") as file:
        while file.read(2**17):
            pass
    return {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
