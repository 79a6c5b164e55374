"""CPU of URLFilter's lists in ranks that one process runs one after another, compared with datatrove and one load.

Every program filters the same documents with the lists of datatrove's URLFilter. A run of one rank is subtracted, so
that `marginal` is what each further rank costs: with the lists loaded once, hardly more than its documents.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks.kit import measure

#: A further rank of stagger costs at most this share of datatrove's, which loads the lists again.
MOST_OF_DATATROVE = 0.2


def one_load(folder: str, ranks: int) -> int:
    """The physical limit: one filter, in a loop over the ranks."""
    from datatrove.pipeline.filters import URLFilter

    from benchmarks.kept import steps

    block = URLFilter()
    for rank in range(ranks):
        steps.count(block.run(steps.documents(rank=rank), rank, ranks), rank, ranks)
    return ranks


def stagger_local(folder: str, ranks: int) -> int:
    from datatrove.pipeline.filters import URLFilter

    from benchmarks.kept import steps
    from stagger import LocalExecutor

    LocalExecutor([steps.documents, URLFilter(), steps.count], run_dir=folder, tasks=ranks, workers=1).run()
    return ranks


def stagger_anew(folder: str, ranks: int) -> int:
    """The same with a worker for each rank: what ranks cost that load the lists anew."""
    from datatrove.pipeline.filters import URLFilter

    from benchmarks.kept import steps
    from stagger import LocalExecutor

    LocalExecutor([steps.documents, URLFilter(), steps.count], run_dir=folder, tasks=ranks, workers=ranks).run()
    return ranks


def datatrove_local(folder: str, ranks: int) -> int:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.filters import URLFilter

    from benchmarks.kept import steps

    options: dict[str, Any] = {"tasks": ranks, "workers": 1, "logging_dir": folder}
    LocalPipelineExecutor([steps.documents, URLFilter(), steps.count], **options).run()
    return ranks


PROGRAMS: dict[str, Callable[..., int]] = {
    "one load": one_load,
    "stagger": stagger_local,
    "stagger, a worker for each rank": stagger_anew,
    "datatrove": datatrove_local,
}


def cost(function: Callable[..., int], ranks: int, options: argparse.Namespace) -> dict[str, Any]:
    measured = []
    for _ in range(options.repeat):
        folder = tempfile.mkdtemp(prefix="stagger-kept-", dir=options.folder)
        try:
            _, found = measure.fresh(function, folder=f"{folder}/run", ranks=ranks)
        finally:
            shutil.rmtree(folder)
        measured.append(found)
        measure.say(f"{function.__name__}, {ranks} ranks: {found.cpu_s:.2f} CPU s")
    return measure.costs(measured)


def main() -> int:
    parser = measure.parser((__doc__ or "").partition("\n")[0], repeat=1)
    parser.add_argument("--ranks", type=int, default=6, help="ranks that run one after another")
    options = parser.parse_args()
    if not measure.version("datatrove"):
        return measure.report(options, {}, [measure.not_measured("URLFilter", "datatrove is not installed")])
    cost(one_load, 1, options)  # Unpacks the lists, and compiles the byte code.
    results: dict[str, Any] = {}
    for name, function in PROGRAMS.items():
        once, whole = cost(function, 1, options), cost(function, options.ranks, options)
        marginal = (whole["cpu_s"]["median"] - once["cpu_s"]["median"]) / (options.ranks - 1)
        results[name] = {"one rank": once, "all ranks": whole, "marginal_cpu_s_per_rank": round(marginal, 3)}
    mine, other = (results[name]["marginal_cpu_s_per_rank"] for name in ("stagger", "datatrove"))
    results["stagger / datatrove"] = round(mine / other, 3)
    share = measure.requirement("CPU of a further rank, stagger / datatrove", round(mine / other, 3), MOST_OF_DATATROVE)
    return measure.report(options, results, [share])


if __name__ == "__main__":
    sys.exit(main())
