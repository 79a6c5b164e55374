"""Shared by the benchmarks: run processes and measure their costs, medians, requirements, and the JSON report."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STAGGER = [sys.executable, "-m", "stagger"]

#: A pipeline whose jobs are held and never run. It needs the variable STAGGER_BENCHMARK.
HELD = ROOT / "benchmarks" / "kit" / "held.yaml"

#: Program of a fresh process: call a function of a module with JSON arguments, and print the result as the last line.
CALL = """import importlib, json, sys
module, name, arguments = sys.argv[1:]
print(json.dumps(getattr(importlib.import_module(module), name)(**json.loads(arguments))))"""


@dataclass(frozen=True)
class Cost:
    """The cost of a process and of the children that it waited for. `peak_mb` is that of the largest, in MiB.

    The kernel includes this program's own memory in the peak of the processes that it starts (getrusage(2): ru_maxrss
    survives exec). This program therefore imports little, and cannot measure the peak of a smaller process.
    """

    wall_s: float
    cpu_s: float
    peak_mb: float


def run(
    command: Sequence[str], environment: Mapping[str, str] | None = None, allowed: Sequence[int] = (0,)
) -> tuple[str, Cost]:
    """Run a command in the root of the project. Returns its standard output and its cost.

    Raises RuntimeError when its exit status is not among `allowed`.
    """
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            cwd=ROOT,
            env={**inherited, **(environment or {})},
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in allowed:
            errors.seek(0)
            raise RuntimeError(f"{command} ended with {process.returncode}:\n{errors.read()[-4000:].decode()}")
        output.seek(0)
        return output.read().decode(), Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def fresh(
    function: Callable[..., Any],
    *,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
    **arguments: Any,
) -> tuple[Any, Cost]:
    """Call a function of a benchmark in a fresh interpreter. Returns its result, and the cost of the whole process."""
    module = program() if function.__module__ == "__main__" else function.__module__
    output, cost = run([python, "-c", CALL, module, function.__name__, json.dumps(arguments)], environment)
    return json.loads(output.splitlines()[-1]), cost


@contextlib.contextmanager
def on(processors: Iterable[int]) -> Iterator[None]:
    """Let the processes that the block starts use these processors only."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


def summary(values: Iterable[float]) -> dict[str, float]:
    """Median, smallest and largest of several runs.

    >>> summary([3.0, 1.0, 2.5])
    {'median': 2.5, 'min': 1.0, 'max': 3.0}
    """
    found = list(values)
    return {name: round(f(found), 4) for name, f in (("median", statistics.median), ("min", min), ("max", max))}


def costs(measured: Sequence[Cost]) -> dict[str, Any]:
    """Summaries of CPU, wall time and peak memory over several runs."""
    return {key: summary(getattr(cost, key) for cost in measured) for key in ("cpu_s", "wall_s", "peak_mb")}


def requirement(what: str, measured: float, limit: float) -> dict[str, Any]:
    """A requirement that a figure is at most `limit`."""
    return {"what": what, "measured": measured, "limit": limit, "met": measured <= limit}


def at_least(what: str, measured: float, least: float) -> dict[str, Any]:
    """A requirement that a figure is at least `least`."""
    return {"what": what, "measured": measured, "at_least": least, "met": measured >= least}


def not_measured(what: str, why: str) -> dict[str, Any]:
    """A requirement that could not be measured, and therefore counts as not met."""
    return {"what": what, "measured": None, "why": why, "met": False}


def version(package: str) -> str | None:
    """The installed version of a package, None when it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line for line in lines if line.startswith("model name")]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)),
        "cpu_model": models[0].partition(":")[2].strip() if models else platform.machine(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_1_5_15_min": [round(load, 1) for load in os.getloadavg()],
        "date": time.strftime("%Y-%m-%d"),
        "stagger": version("stagger-slurm"),
    }


def program() -> str:
    """The dotted name of the running program, for example benchmarks.herd.run."""
    path = Path(str(sys.modules["__main__"].__file__)).resolve()
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def parser(description: str, repeat: int) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--repeat", type=int, default=repeat, help="runs, of which medians are taken")
    options.add_argument("--folder", help="where temporary files go; by default the system's temporary folder")
    return options


def say(text: str) -> None:
    """Print a progress message to standard error."""
    print(text, file=sys.stderr, flush=True)


def report(options: argparse.Namespace, results: dict[str, Any], requirements: list[dict[str, Any]]) -> int:
    """Print the JSON document. Returns the exit status: 1 when a requirement is not met."""
    document = {
        "benchmark": program().removeprefix("benchmarks.").removesuffix(".run"),
        "options": vars(options),
        "machine": machine(),
        "requirements": requirements,
        "results": results,
    }
    print(json.dumps(document, indent=2))
    return 0 if all(item["met"] for item in requirements) else 1
