"""CPU of the local executor per rank, with ranks that do nothing, compared with a plain loop and with datatrove.

CPU covers all processes: the parent, its workers, and their imports. `marginal` excludes the fixed cost of a run, by
subtracting a run of one rank per worker, so that programs measured with different numbers of ranks are comparable.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks.kit import measure

LIMIT_MS = 1.5


def plain_loop(folder: str, ranks: int, workers: int) -> int:
    """The baseline: call the same step in a loop."""
    from benchmarks.local import steps

    for rank in range(ranks):
        steps.nothing(None, rank, ranks)
    return ranks


def stagger_local(folder: str, ranks: int, workers: int) -> int:
    """Run with stagger's local executor. Returns the number of ranks."""
    from benchmarks.local import steps
    from stagger import LocalExecutor

    executor = LocalExecutor([steps.nothing], run_dir=folder, tasks=ranks, workers=workers)
    executor.run()  # Raises RunFailed unless all ranks are done.
    return ranks


def datatrove_local(folder: str, ranks: int, workers: int) -> int:
    """The number of ranks that were done. The workers are forked: children of a fork server cannot be measured."""
    import os

    from datatrove.executor import LocalPipelineExecutor

    from benchmarks.local import steps

    options: dict[str, Any] = {"tasks": ranks, "workers": workers, "logging_dir": folder, "start_method": "fork"}
    LocalPipelineExecutor([steps.nothing], **options).run()
    return len(os.listdir(f"{folder}/completions"))


def create_files(folder: str, ranks: int, workers: int) -> int:
    """The cost of one new file on this file system. A rank creates three: its log, the log's folder, its record."""
    import os

    os.makedirs(folder)
    for rank in range(ranks):
        os.close(os.open(f"{folder}/{rank}", os.O_CREAT | os.O_WRONLY))
    return ranks


def cost(function: Callable[..., int], ranks: int, workers: int, parent: str) -> measure.Cost:
    """The cost of one run, in a new folder. The folder stays until all runs are measured: see README.md on ext4."""
    folder = tempfile.mkdtemp(dir=parent)
    done, found = measure.fresh(function, folder=f"{folder}/run", ranks=ranks, workers=workers)
    if done != ranks:
        raise RuntimeError(f"{function.__name__}: {done} of {ranks} ranks were done")
    measure.say(f"{function.__name__}, {workers} workers, {ranks} ranks: {found.cpu_s:.2f} CPU s")
    return found


def compare(
    programs: dict[str, tuple[Callable[..., int], int]], options: argparse.Namespace, work: str
) -> dict[str, Any]:
    def several(function: Callable[..., int], ranks: int, workers: int) -> dict[str, Any]:
        return measure.costs([cost(function, ranks, workers, work) for _ in range(options.repeat)])

    cost(plain_loop, 1, 1, work)  # Compiles the byte code, like the runs of one rank per worker below.
    loop = several(plain_loop, options.ranks, 1)
    before = loop["cpu_s"]["median"]
    created = several(create_files, options.ranks, 1)["cpu_s"]["median"]
    results: dict[str, Any] = {
        "plain loop": loop,
        "cpu_ms_per_file": round(1000 * (created - before) / options.ranks, 3),
    }
    for workers in options.workers:
        for name, (function, ranks) in programs.items():
            cost(function, workers, workers, work)
            once = several(function, workers, workers)
            whole = several(function, ranks, workers)
            cpu, fixed = whole["cpu_s"]["median"], once["cpu_s"]["median"]
            results[f"{name}, {workers} workers"] = {
                "ranks": ranks,
                **whole,
                "cpu_ms_per_rank": round(1000 * (cpu - before) / ranks, 3),
                "cpu_s_of_a_run_of_one_rank_per_worker": fixed,
                "marginal_cpu_ms_per_rank": round(1000 * (cpu - fixed) / (ranks - workers), 3),
                "ranks_per_s": round(ranks / whole["wall_s"]["median"], 1),
            }
    return results


def main() -> int:
    parser = measure.parser((__doc__ or "").partition("\n")[0], repeat=3)
    parser.add_argument("--ranks", type=int, default=2000, help="ranks of stagger's runs")
    parser.add_argument("--datatrove-ranks", type=int, default=500, help="ranks of datatrove's runs")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="worker processes")
    options = parser.parse_args()
    programs: dict[str, tuple[Callable[..., int], int]] = {"stagger": (stagger_local, options.ranks)}
    if measure.version("datatrove"):
        programs["datatrove"] = (datatrove_local, options.datatrove_ranks)
    work = tempfile.mkdtemp(prefix="stagger-local-", dir=options.folder)
    try:
        results = compare(programs, options, work)
    finally:
        shutil.rmtree(work)
    requirements = [
        measure.requirement(f"CPU ms per rank, {what}", found["cpu_ms_per_rank"], LIMIT_MS)
        for what, found in results.items()
        if what.startswith("stagger")
    ]
    key = "marginal_cpu_ms_per_rank"
    for workers in options.workers:
        if "datatrove" in programs:
            mine, other = (results[f"{name}, {workers} workers"][key] for name in ("stagger", "datatrove"))
            results[f"datatrove / stagger, {workers} workers"] = {key: round(other / mine, 1)}
    results["datatrove"] = measure.version("datatrove") or "not installed: skipped"
    return measure.report(options, results, requirements)


if __name__ == "__main__":
    sys.exit(main())
