"""The start of a task whose Python, packages and run lie on a shared file system with a latency: calls and seconds.

A FUSE mount stands in for Lustre (slow_folder.py). It answers each metadata operation after 1 ms. A cold start is the
first on a node: the kernel has seen nothing of the mount. A warm start follows on the same node. Each tool does the
work of benchmarks.startup, from the start of its process to the end; an interpreter that imports nothing is the floor.
System libraries lie on the node's own disk. Needs Linux, the rights of root, unshare, and libfuse 2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kit import measure
from benchmarks.startup.run import (
    Start,
    check_output,
    datatrove_start,
    make_input,
    stagger_start,
    submitit_start,
    without_bundle,
)

FUSEPY = "fusepy==3.0.1"
DOCUMENTS = 10

#: Binds folders of the mount over the folders of their names, then runs a command.
BOUND = 'mount=$1 count=$2; shift 2; for i in $(seq "$count"); do mount --bind "$mount$1" "$1"; shift; done; exec "$@"'

#: The least ratio of the wall time of a cold start without the bundle to one with it.
GAIN_LEAST = 1.5


@dataclass(frozen=True)
class Mount:
    """The stand-in while it is mounted. `shared` are the folders that tasks find on it."""

    folder: str
    counter: Path
    shared: list[str]

    def operations(self) -> int:
        return int(self.counter.read_text() or 0)

    def run(self, command: list[str], environment: dict[str, str]) -> tuple[float, int]:
        """Run a command that finds the shared folders on the mount. Returns its wall seconds and its operations."""
        before = self.operations()
        bound = ["unshare", "-m", "sh", "-c", BOUND, "sh", self.folder, str(len(self.shared)), *self.shared]
        _, cost = measure.run([*bound, *command], environment)
        return cost.wall_s, self.operations() - before


@contextmanager
def mounted(python: str, latency_s: float, shared: list[str], writable: str) -> Iterator[Mount]:
    """Mount the stand-in anew, so that the kernel knows nothing of it."""
    own = tempfile.mkdtemp(prefix="stagger-mount-")
    folder, counter = f"{own}/mount", Path(f"{own}/operations")
    os.mkdir(folder)
    counter.touch()
    program = str(Path(__file__).with_name("slow_folder.py"))
    server = subprocess.Popen([python, program, folder, str(counter), str(latency_s), writable])
    try:
        while not os.path.ismount(folder):
            if server.poll() is not None:
                raise RuntimeError(f"{program} ended with {server.returncode}")
            time.sleep(0.01)
        yield Mount(folder, counter, shared)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=False)
        server.wait()
        counter.unlink()
        os.rmdir(folder)  # Not rmtree: where the unmount has failed, that would be `/`.
        os.rmdir(own)


def fusepy_python() -> str:
    """A Python that has fusepy, in an environment of its own. Raises RuntimeError when that is impossible."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(cache, "stagger-benchmarks", "fusepy")
    if not (folder / "installed").exists():
        measure.say(f"making an environment for {FUSEPY} in {folder}")
        measure.run([sys.executable, "-m", "venv", str(folder)])
        measure.run([f"{folder}/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", FUSEPY])
        (folder / "installed").touch()
    return f"{folder}/bin/python"


def outermost(folders: list[str]) -> list[str]:
    """Folders without those that lie in another of them.

    >>> outermost(["/a/b", "/a", "/ab", "/a"])
    ['/a', '/ab']
    """
    found: list[str] = []
    for folder in sorted(set(folders)):
        if not any(folder.startswith(f"{other}/") for other in found):
            found.append(folder)
    return found


def summary(found: list[tuple[float, int]], nothing: list[tuple[float, int]]) -> dict[str, Any]:
    """Seconds and operations of starts, less the median of a command that does nothing."""
    wall_s = measure.summary(seconds for seconds, _ in nothing)["median"]
    operations = measure.summary(count for _, count in nothing)["median"]
    return {
        "wall_s": measure.summary(seconds - wall_s for seconds, _ in found),
        "operations": measure.summary(count - operations for _, count in found),
    }


def ratios(results: dict[str, Any], one: str, other: str) -> dict[str, float]:
    """The medians of one program divided by those of another."""
    return {
        f"{kind} {figure}": round(results[one][kind][figure]["median"] / results[other][kind][figure]["median"], 2)
        for kind in ("cold", "warm")
        for figure in ("wall_s", "operations")
    }


def starts_of(folder: str, ranks: int) -> dict[str, Start]:
    """How each tool starts its tasks. The first task of each has run: its byte code is written."""
    make_input(folder, 1 + 2 * ranks, DOCUMENTS)
    stagger = stagger_start(folder)
    starts = {"stagger": stagger, "stagger without a bundle": without_bundle(stagger, 1 + ranks)}
    starts["submitit"] = submitit_start(folder, ranks)
    if measure.version("datatrove"):
        starts["datatrove"] = datatrove_start(folder)
    starts["python -I -S -c pass"] = Start([sys.executable, "-I", "-S", "-c", "pass"])
    for start in starts.values():
        measure.run(*start.of(0))
    return starts


def main() -> int:
    parser = measure.parser(__doc__ or "", repeat=5)
    parser.add_argument("--latency-ms", type=float, default=1.0, help="time of a metadata operation")
    options = parser.parse_args()
    folder = os.path.realpath(tempfile.mkdtemp(prefix="stagger-shared-", dir=options.folder))
    try:
        python = fusepy_python()
        starts = starts_of(folder, 1 + 2 * options.repeat)
        shared = outermost([os.path.realpath(path) for path in (sys.base_prefix, sys.prefix, measure.ROOT, folder)])
        found: dict[str, dict[str, list[tuple[float, int]]]] = {}
        for repeat in range(options.repeat):
            for name, start in {"nothing": Start(["true"]), **starts}.items():
                kinds = found.setdefault(name, {"cold": [], "warm": []})
                with mounted(python, options.latency_ms / 1000, shared, folder) as mount:
                    for rank, kind in ((1 + 2 * repeat, "cold"), (2 + 2 * repeat, "warm")):
                        kinds[kind].append(mount.run(*start.of(rank)))
                        if start.module:
                            check_output(f"{folder}/{name.split()[0]}/{start.first + rank:05d}.jsonl", DOCUMENTS)
    finally:
        shutil.rmtree(folder)
    nothing = found.pop("nothing")
    results = {name: {kind: summary(kinds[kind], nothing[kind]) for kind in kinds} for name, kinds in found.items()}
    compared = {f"{name} / stagger": ratios(results, name, "stagger") for name in results if name != "stagger"}
    gain = compared["stagger without a bundle / stagger"]["cold wall_s"]
    requirements = [measure.at_least("cold start without a bundle / with it, wall time", gain, GAIN_LEAST)]
    notes = {"datatrove": measure.version("datatrove") or "not installed: skipped", "shared": shared}
    return measure.report(options, {**notes, "starts": results, "ratios": compared}, requirements)


if __name__ == "__main__":
    sys.exit(main())
