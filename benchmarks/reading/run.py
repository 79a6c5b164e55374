"""CPU and memory of reading and writing, compared with datatrove and with the codec alone.

Each figure is for one task in a fresh process, over the same generated documents (kit/documents.py). The CPU of stagger
is taken from the completion record of the task, that of datatrove from its executor's run(); neither includes the start
of the interpreter.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.kit import documents, measure
from benchmarks.kit.peer import Peer, default_folder
from benchmarks.reading import datatrove, tasks
from benchmarks.reading.tasks import Sample, Steps

PEAK_LIMIT_MB = 150

NOTES = (
    "Each tool has one processor.",
    "In datatrove's favour: its imports are not in its CPU, those of stagger's steps, codecs and storage are.",
    "In datatrove's favour: its filter is the same plain function. A LambdaFilter would cost more.",
    "In datatrove's favour: stagger syncs its outputs to disk, and its zstd has a checksum.",
    "In datatrove's favour, in `filter_same_codec`: its zstd level is set to 3. By itself it takes fsspec's, 10.",
    "Against datatrove: it keeps statistics and times of each document, and adds the file's path to its metadata, which"
    " it also writes. stagger counts documents and times whole steps.",
    "Against datatrove: nothing in datatrove[io,s3] asks for isal, and without it fsspec uses Python's gzip. Where isal"
    " is installed, fsspec uses it: that is 'datatrove with isal', of which nothing is required.",
    "What launches is in no figure: the command `stagger launch`, the process that datatrove's executor starts.",
    "datatrove reads the first frame of a .zst file and no more, so the files here have one.",
    "In `peak_memory` each tool writes at its defaults, and runs once.",
    "The words are made up. Codecs and parsers on other text are faster or slower, for all tools alike.",
)

Tools = dict[str, Callable[[], Sample]]


@dataclass
class Bench:
    """State shared by the items, and their results. Without a `peer`, the comparison with datatrove is left out."""

    options: argparse.Namespace
    work: str
    peer: Peer | None
    made: dict[str, dict[str, int]] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    requirements: list[dict[str, Any]] = field(default_factory=list)

    def data(self, kind: str) -> dict[str, Any]:
        """Describe the only file of folder `kind`: gz, zst (the same documents) or warc. The first call creates it."""
        make = documents.make_warc if kind == "warc" else documents.make_jsonl
        if kind not in self.made:
            measure.say(f"making {self.options.megabytes} MB with {make.__name__}")
            folder, megabytes, seed = self.work, self.options.megabytes, self.options.seed
            found, _ = measure.fresh(make, folder=folder, megabytes=megabytes, seed=seed)
            self.made |= {"warc": found} if kind == "warc" else {"gz": found, "zst": found}
        return described(self.file(kind), self.made[kind])

    def file(self, kind: str) -> str:
        (path,) = Path(self.work, kind).iterdir()
        return str(path)

    def readers(self, kind: str, mine: str, theirs: str) -> Tools:
        """Tasks that only read."""
        folder = f"{self.work}/{kind}"
        tools: Tools = {"stagger": partial(tasks.stagger, reading(mine, folder), self.work)}
        if self.peer is not None:
            steps: Steps = [(theirs, {"data_folder": folder}), ("drain", {})]
            tools["datatrove"] = partial(datatrove.task, self.peer, steps, self.work)
            if kind != "zst":
                tools["datatrove with isal"] = partial(datatrove.task, self.peer, steps, self.work, isal=self.peer.isal)
        return tools

    def filters(self, folder: str, ours: dict[str, Any], theirs: str = "gzip", **options: Any) -> Tools:
        """Tasks that read JSON Lines, keep half of the documents, and write them."""
        steps: Steps = [
            ("read_jsonl", {"path": folder}),
            ("steps:keep_half", {}),
            ("write_jsonl", {"path": f"{self.work}/from-stagger", **ours}),
        ]
        tools: Tools = {"stagger": partial(tasks.stagger, steps, self.work)}
        if self.peer is not None:
            output = f"{self.work}/from-datatrove"
            steps = [
                ("JsonlReader", {"data_folder": folder}),
                ("keep_half", {}),
                ("JsonlWriter", {"output_folder": output, "compression": theirs}),
            ]
            run = partial(datatrove.task, self.peer, steps, self.work, output, **options)
            tools |= {"datatrove": run, "datatrove with isal": partial(run, isal=self.peer.isal)}
        return tools

    def compare(self, item: str, tools: Tools, about: dict[str, Any]) -> None:
        """Run the tools in turn, once without counting and then `repeat` times.

        Raises RuntimeError when they read or wrote different numbers of documents.
        """
        samples: dict[str, list[Sample]] = {name: [] for name in tools}
        for number in range(self.options.repeat + 1):
            for name, tool in tools.items():
                sample = tool()
                measure.say(f"{item}, {name}: {sample.cpu_s:.2f} CPU s")
                if number > 0:
                    samples[name].append(sample)
        check(item, samples)
        found = {name: figures(several, about["mb"]) for name, several in samples.items()}
        mine = found["stagger"]["cpu_s"]["median"]
        ratios = {name: round(tool["cpu_s"]["median"] / mine, 3) for name, tool in found.items() if name != "stagger"}
        self.results[item] = {"input": about, "tools": found, "speed of stagger / speed of": ratios}

    def require(self, item: str, tool: str, least: float) -> None:
        """Require stagger to be at least `least` times as fast as a tool."""
        what = f"{item}: speed of stagger / speed of {tool}"
        ratios = self.results[item]["speed of stagger / speed of"]
        self.requirements.append(
            measure.at_least(what, ratios[tool], least)
            if tool in ratios
            else measure.not_measured(what, f"there is no {tool} here")
        )


def reading(reader: str, path: str) -> Steps:
    return [(reader, {"path": path}), ("steps:drain", {})]


def described(path: str, made: dict[str, int]) -> dict[str, Any]:
    codec = "zstd" if path.endswith(".zst") else "gzip"
    size = os.path.getsize(path)
    return {
        "file": os.path.basename(path),
        "codec": codec,
        "level": documents.LEVELS[codec],
        "documents": made["documents"],
        "mb": round(made["bytes"] / 1e6, 1),
        "mb_compressed": round(size / 1e6, 1),
        "compressed_to_one_in": round(made["bytes"] / size, 2),
    }


def check(item: str, samples: dict[str, list[Sample]]) -> None:
    """Raise RuntimeError unless all tools have read, and written, the same number of documents."""
    for key in ("read", "written"):
        counts = {name: getattr(several[0], key) for name, several in samples.items()}
        if len(set(counts.values()) - {None}) > 1:
            raise RuntimeError(f"{item}: not as many documents {key}: {counts}")


def figures(samples: list[Sample], megabytes: float) -> dict[str, Any]:
    """The figures of several runs of one tool. `megabytes` is the size of the uncompressed input."""
    last = samples[-1]
    return {
        "cpu_s": measure.summary(sample.cpu_s for sample in samples),
        "mb_per_cpu_s": measure.summary(megabytes / sample.cpu_s for sample in samples),
        **{key: value for key in ("peak_mb", "written", "written_mb") if (value := getattr(last, key)) is not None},
    }


def codecs(path: str, codec: str) -> Tools:
    """Tools that only decompress, the fastest first."""
    name, fastest = tasks.alone(path, codec)
    tools: Tools = {name: fastest}
    if codec == "gzip" and shutil.which("gzip"):
        tools["gzip -d"] = partial(tasks.by_program, "gzip", path)
    return tools


def read(bench: Bench, kind: str, mine: str, theirs: str, least: float, least_alone: float | None = None) -> None:
    about = bench.data(kind)
    alone = codecs(bench.file(kind), about["codec"])
    bench.compare(f"read_{kind}", bench.readers(kind, mine, theirs) | alone, about)
    bench.require(f"read_{kind}", "datatrove", least)
    if least_alone is not None:
        bench.require(f"read_{kind}", next(iter(alone)), least_alone)


def filter_defaults(bench: Bench) -> None:
    about = {
        **bench.data("gz"),
        "output": {"stagger": "zstd-3", "datatrove": "gzip-9", "datatrove with isal": "gzip, isal-2"},
    }
    bench.compare("filter_defaults", bench.filters(f"{bench.work}/gz", {}), about)
    bench.require("filter_defaults", "datatrove", 6)


def filter_same_codec(bench: Bench) -> None:
    about = {**bench.data("gz"), "output": "zstd-3"}
    ours = {"compression": "zstd", "level": 3}
    bench.compare("filter_same_codec", bench.filters(f"{bench.work}/gz", ours, "zstd", zstd_level=3), about)
    bench.require("filter_same_codec", "datatrove", 1.5)


def peak_memory(bench: Bench) -> None:
    """Peak memory of tasks that filter one large shard."""
    results: dict[str, Any] = {}
    for kind, repeat in (("gz", documents.repeat_gz), ("zst", documents.repeat_zst)):
        bench.data(kind)
        source, folder = bench.file(kind), f"{bench.work}/large-{kind}"
        os.mkdir(folder)
        target = f"{folder}/{os.path.basename(source)}"
        measure.fresh(repeat, source=source, target=target, megabytes=bench.options.large)
        found: dict[str, Any] = {"mb_compressed": round(os.path.getsize(target) / 1e6, 1)}
        samples: dict[str, list[Sample]] = {}
        for name, tool in bench.filters(folder, {}).items():
            if name != "datatrove with isal":
                measure.say(f"peak_memory, {name}, .{kind}")
                samples[name] = [tool()]
                found[name] = {"peak_mb": samples[name][0].peak_mb, "cpu_s": round(samples[name][0].cpu_s, 2)}
        check("peak_memory", samples)
        shutil.rmtree(folder)
        results[f".jsonl.{kind}"] = found
        what = f"peak_memory: MB of a task that filters a .jsonl.{kind} of {found['mb_compressed']:.0f} MB"
        bench.requirements.append(measure.requirement(what, found["stagger"]["peak_mb"], PEAK_LIMIT_MB))
    bench.results["peak_memory"] = results


ITEMS: dict[str, Callable[[Bench], None]] = {
    "read_gz": partial(read, kind="gz", mine="read_jsonl", theirs="JsonlReader", least=2.5, least_alone=0.5),
    "read_zst": partial(read, kind="zst", mine="read_jsonl", theirs="JsonlReader", least=1.7),
    "read_warc": partial(read, kind="warc", mine="read_warc", theirs="WarcReader", least=2.9),
    "filter_defaults": filter_defaults,
    "filter_same_codec": filter_same_codec,
    "peak_memory": peak_memory,
}


def find_peer(options: argparse.Namespace) -> tuple[Peer | None, Any]:
    """datatrove's environment, or None, and its entry in the JSON document."""
    try:
        found = Peer(options.peer_venv)
        return found, found.versions()
    except (OSError, RuntimeError) as error:
        return None, f"left out, there is no environment for it: {error}"


def parse() -> argparse.Namespace:
    parser = measure.parser((__doc__ or "").partition("\n")[0], repeat=3)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(ITEMS), help="items, with commas")
    parser.add_argument("--megabytes", type=float, default=160, help="of generated documents, uncompressed")
    parser.add_argument("--seed", type=int, default=1, help="of the generated documents")
    parser.add_argument("--large", type=float, default=300, help="MB on disk of peak_memory's shards")
    parser.add_argument("--peer-venv", type=Path, default=default_folder(), help="datatrove's environment")
    options = parser.parse_args()
    if unknown := set(options.only) - set(ITEMS):
        parser.error(f"there is no item {', '.join(sorted(unknown))}; there are {', '.join(ITEMS)}")
    return options


def main() -> int:
    options = parse()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # With a second one, stagger's codecs work in threads.
    found, about = find_peer(options)
    work = tempfile.mkdtemp(prefix="stagger-read-write-", dir=options.folder)
    bench = Bench(options, work, found)
    try:
        for item in options.only:
            ITEMS[item](bench)
    finally:
        shutil.rmtree(work)
    options.peer_venv = str(options.peer_venv)
    mine = {name: measure.version(name) for name in ("isal", "zstandard", "orjson")}
    results = {"datatrove": about, "stagger": mine, "items": bench.results, "notes": NOTES}
    return measure.report(options, results, bench.requirements)


if __name__ == "__main__":
    sys.exit(main())
