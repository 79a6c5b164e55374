"""datatrove in an environment of its own, where no package of stagger's speeds it up or holds it back.

`run` and `versions` are called by that environment's interpreter.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import measure
from tasks import Sample, Steps

VERSION = "0.10.1"
REQUIREMENT = f"datatrove[io,s3]=={VERSION}"


def default_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "stagger-benchmarks", f"datatrove-{VERSION}")


class Peer:
    """The environment in `folder`, made when it is not there. Raises RuntimeError when it cannot be made.

    None of its packages asks for isal, which speeds up gzip: it lies in `isal`, where only tasks that want it look.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()
        self.python = str(self.folder / "bin" / "python")
        self.isal = str(self.folder / "with-isal")
        if not os.path.exists(self.python) or not os.path.isdir(self.isal) or self.versions()["datatrove"] != VERSION:
            self._make()

    def _make(self) -> None:
        measure.say(f"making an environment for {REQUIREMENT} in {self.folder}")
        constraints = measure.HERE.parent / "constraints.txt"
        pinned = ["--constraint", str(constraints)] if constraints.exists() else []
        pip = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pinned]
        measure.run([sys.executable, "-m", "venv", str(self.folder)])
        measure.run([*pip, REQUIREMENT])
        measure.run([*pip, "--target", self.isal, "isal"])

    def versions(self) -> dict[str, str | None]:
        """What is installed there, of the packages that matter here."""
        found: dict[str, str | None] = measure.fresh(versions, python=self.python)[0]
        return found

    def task(
        self,
        steps: Steps,
        work: str,
        output: str | None = None,
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Sample:
        """A task in a fresh process. What it writes to the folder `output` is measured and removed."""
        logs = tempfile.mkdtemp(prefix="datatrove-", dir=work)
        found, _ = measure.fresh(
            run, python=self.python, environment=environment, steps=steps, logs=f"{logs}/run", **options
        )
        shutil.rmtree(logs)
        if output is None:
            return Sample(**{**found, "written": None})
        written = sum(file.stat().st_size for file in Path(output).iterdir())
        shutil.rmtree(output)
        return Sample(**found, written_mb=written / 1e6)


def versions() -> dict[str, str | None]:
    return {name: measure.version(name) for name in ("datatrove", "fsspec", "orjson", "s3fs", "warcio", "zstandard")}


def run(steps: Steps, logs: str, isal: str | None = None, zstd_level: int | None = None) -> dict[str, Any]:
    """One task of datatrove's local executor; its imports are done when the clocks start.

    `isal` is a folder with that package, which fsspec then takes for gzip. `zstd_level` replaces fsspec's own, 10.
    """
    if isal:
        sys.path.insert(0, isal)
    import read_write_steps
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline import readers, writers

    if zstd_level is not None:
        set_zstd_level(zstd_level)
    pipeline = []
    for name, parameters in steps:
        known = getattr(readers, name, None) or getattr(writers, name, None)
        pipeline.append(known(**parameters) if known else getattr(read_write_steps, name))
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
    """Have fsspec compress with this level: it has no option for it."""
    import zstandard
    from fsspec.compression import register_compression

    def opened(file: Any, mode: str = "rb") -> Any:
        if "r" in mode:
            return zstandard.ZstdDecompressor().stream_reader(file)
        return zstandard.ZstdCompressor(level=level).stream_writer(file)

    register_compression("zstd", opened, "zst", force=True)


def peak_mb() -> int:
    """The largest resident memory of this process so far, in MiB: the same figure as in stagger's records."""
    (peak,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(peak) // 1024
