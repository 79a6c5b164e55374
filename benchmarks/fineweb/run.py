"""CPU of the base stage of FineWeb, compared with datatrove's executor: the same crawl, blocks and interpreter.

The crawl is that of examples/web_crawl.py; the language model is trained here. Each figure is the CPU of four ranks,
which run one after another in a fresh process, children included. The modules of the blocks are imported before the
clocks start, in both tools.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.kit import measure

#: Ranks, as many as a job of `ranks_per_job: 4` has.
RANKS = 4

#: The work that is compared -> what the ratio of the medians, stagger's to datatrove's, may be at most.
LIMITS = {"io": 0.5, "filters": 1.0, "base": 1.0}

FILTERS = "datatrove.pipeline.filters:"

#: Steps between reader and writer. `url_lists` is the filter with its own lists alone.
STEPS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "io": [],
    "filters": [
        (FILTERS + "LanguageFilter", {"languages": "en"}),
        (FILTERS + "GopherRepetitionFilter", {}),
        (FILTERS + "GopherQualityFilter", {}),
        (FILTERS + "C4QualityFilter", {"filter_no_terminal_punct": False}),
        (FILTERS + "FineWebQualityFilter", {}),
    ],
    "url_lists": [(FILTERS + "URLFilter", {})],
}
STEPS["base"] = [
    *STEPS["url_lists"],
    ("datatrove.pipeline.extractors:Trafilatura", {"favour_precision": True, "timeout": 60}),
    *STEPS["filters"],
]

NOTES = (
    "`io` reads the WARC files and writes JSON Lines with gzip; `filters` reads and writes JSON Lines without a codec.",
    "`filters` has what FineWeb does after the extraction; `base` is the whole stage; `url_lists` is URLFilter, whose"
    " lists datatrove loads in each rank.",
    "stagger's CPU includes the log, the plan and the records of each rank, datatrove's its logs and statistics.",
)


def cpu_s() -> float:
    """CPU of this process and of its children that have ended, in seconds."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def made(work: str) -> list[Any]:
    """The blocks of datatrove. Their modules are imported here, and the tokenizer of words is loaded."""
    import importlib

    from datatrove.utils.word_tokenizers import load_word_tokenizer

    load_word_tokenizer("en").word_tokenize("A sentence.")
    return [
        getattr(importlib.import_module(use.partition(":")[0]), use.partition(":")[2])(**params)
        for use, params in STEPS[work]
    ]


def datatrove(work: str, crawl: str, documents: str, folder: str) -> dict[str, Any]:
    """Run the work by datatrove's executor. Called in a fresh process."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader, WarcReader
    from datatrove.pipeline.writers import JsonlWriter

    from tests.kit.crawl import in_environment

    with in_environment(json.loads(os.environ["BENCHMARK_MODELS"])):
        blocks = made(work)
        reader = JsonlReader(documents) if work == "filters" else WarcReader(crawl)
        writer = JsonlWriter(f"{folder}/out", compression="gzip" if work == "io" else None)
        executor = LocalPipelineExecutor([reader, *blocks, writer], tasks=RANKS, workers=1, logging_dir=f"{folder}/log")
        started = cpu_s()
        executor.run()
        return {"cpu_s": cpu_s() - started, "documents": written(folder)}


def stagger(work: str, crawl: str, documents: str, folder: str) -> dict[str, Any]:
    """Run the work by stagger, with the ranks in this process. Called in a fresh process."""
    from stagger.launch.launch import Wishes, launch
    from stagger.spec.load import load_file
    from tests.kit.crawl import in_environment
    from tests.kit.in_process import InProcess, in_process

    types = ["text/html", "application/xhtml+xml"]
    warc = {"read_warc": {"path": crawl, "content_types": types}}
    reader: dict[str, Any] = {"read_jsonl": {"path": documents}} if work == "filters" else warc
    writer: dict[str, Any] = {"write_jsonl": {"path": f"{folder}/out", "compression": "gzip" if work == "io" else None}}
    file = Path(folder, "work.yaml")
    pipeline = [reader, *({use: params} for use, params in STEPS[work]), writer]
    file.write_text(json.dumps({"name": work, "run_dir": f"{folder}/run", "tasks": RANKS, "pipeline": pipeline}))
    clock: list[float] = []

    class Timed(InProcess):
        def run(self) -> None:
            clock.append(cpu_s())
            super().run()
            clock.append(cpu_s())

    with in_environment(json.loads(os.environ["BENCHMARK_MODELS"])), in_process(Timed):
        made(work)
        launch(load_file(str(file)), Wishes()).raise_if_failed()
    return {"cpu_s": clock[1] - clock[0], "documents": written(folder)}


def written(folder: str) -> int:
    """The number of documents in the outputs."""
    import gzip

    data = ((path.suffix, path.read_bytes()) for path in Path(folder, "out").iterdir())
    return sum(len((gzip.decompress(one) if suffix == ".gz" else one).splitlines()) for suffix, one in data)


def measured(tool: Callable[..., dict[str, Any]], work: str, given: dict[str, str]) -> dict[str, Any]:
    """One run of a tool in a fresh process."""
    folder = tempfile.mkdtemp(prefix=f"{tool.__name__}-{work}-", dir=given["folder"])
    paths = {"crawl": given["crawl"], "documents": given["documents"], "folder": folder}
    found, _ = measure.fresh(tool, environment={"BENCHMARK_MODELS": given["models"]}, work=work, **paths)
    shutil.rmtree(folder)
    return dict(found)


def compared(work: str, given: dict[str, str], repeat: int) -> dict[str, Any]:
    """Both tools in turn, `repeat` times."""
    runs: dict[str, list[dict[str, Any]]] = {"datatrove": [], "stagger": []}
    for _ in range(repeat):
        for tool in (datatrove, stagger):
            runs[tool.__name__].append(measured(tool, work, given))
    ratios = [ours["cpu_s"] / theirs["cpu_s"] for ours, theirs in zip(runs["stagger"], runs["datatrove"], strict=True)]
    tools = {
        name: {"documents": found[0]["documents"], "cpu_s": measure.summary(one["cpu_s"] for one in found)}
        for name, found in runs.items()
    }
    return {**tools, "ratio": measure.summary(ratios)}


def prepared(folder: Path, pages: int) -> dict[str, str]:
    """Make the crawl, its extracted documents and the models."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.readers import WarcReader
    from datatrove.pipeline.writers import JsonlWriter

    from tests.kit.crawl import models, write_crawl

    write_crawl(folder / "crawl", pages, 2 * RANKS)
    steps = [WarcReader(str(folder / "crawl")), Trafilatura(timeout=60)]
    writer = JsonlWriter(str(folder / "documents"), "${rank}.jsonl", compression=None)
    LocalPipelineExecutor([*steps, writer], tasks=RANKS, workers=1, logging_dir=str(folder / "log")).run()
    found = json.dumps(models(folder / "models"))
    return {
        "crawl": str(folder / "crawl"),
        "documents": str(folder / "documents"),
        "folder": str(folder),
        "models": found,
    }


def main() -> int:
    parser = measure.parser(__doc__ or "", repeat=3)
    parser.add_argument("--pages", type=int, default=1200, help="pages of the crawl")
    parser.add_argument("--only", choices=STEPS, help="measure this alone")
    options: argparse.Namespace = parser.parse_args()
    results: dict[str, Any] = {"notes": NOTES}
    requirements = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        given = prepared(Path(folder), options.pages)
        for work in [options.only] if options.only else list(STEPS):
            measure.say(f"{work}: {time.strftime('%H:%M:%S')}")
            results[work] = compared(work, given, options.repeat)
            same = results[work]["stagger"]["documents"] == results[work]["datatrove"]["documents"]
            requirements.append(measure.requirement(f"{work}: documents that differ in number", int(not same), 0))
            if work in LIMITS:
                what = f"{work}: stagger's CPU, as a share of datatrove's"
                requirements.append(measure.requirement(what, results[work]["ratio"]["median"], LIMITS[work]))
    return measure.report(options, results, requirements)


if __name__ == "__main__":
    sys.exit(main())
