"""The FineWeb recipe on the generated crawl: how it is launched small, and the same by datatrove's own executor."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import zstandard
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    LanguageFilter,
    URLFilter,
)
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import JsonlReader, WarcReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.hashing import HashConfig

from tests.kit.crawl import BLOCKED_HOST

#: Ranks of the stages that read documents, and of `buckets`.
TASKS, BUCKETS = 2, 14

#: What makes the ready pipeline small, and alike on both sides: the same ranks read the same files, the lists of URLs
#: are short, and an extraction on a busy machine may take long.
SMALL = (
    f"stages.base.tasks={TASKS}",
    "stages.base.shard_by=count",
    "stages.base.pipeline.Trafilatura.timeout=60",
    "stages.base.pipeline.URLFilter.use_integrated_lists=false",
    f"stages.base.pipeline.URLFilter.extra_domains=[{BLOCKED_HOST}]",
    "stages.base.pipeline.URLFilter.banned_subwords=[porn]",
    f"stages.signatures.tasks={TASKS}",
    f"stages.buckets.tasks={BUCKETS}",
    f"stages.deduplicate.tasks={TASKS}",
)

#: The folders of documents that the recipe writes.
FOLDERS = (
    "deduplicated",
    "removed/1_url",
    "removed/2_language",
    "removed/3_gopher_repetition",
    "removed/4_gopher_quality",
    "removed/5_c4_quality",
    "removed/6_fineweb_quality",
    "removed/7_duplicates",
)


def run_datatrove(crawl: Path, out: Path) -> None:
    """The same stages and filters by datatrove's own executor."""

    def removed(name: str) -> JsonlWriter:
        return JsonlWriter(str(out / "removed" / name), "${rank}.jsonl", compression=None)

    def stage(name: str, tasks: int, *steps: Any) -> None:
        LocalPipelineExecutor(list(steps), tasks=tasks, workers=1, logging_dir=str(out / "logs" / name)).run()

    def minhash(name: str) -> str:
        return str(out / "minhash" / name)

    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8, hash_config=HashConfig(precision=64))
    stage(
        "base",
        TASKS,
        WarcReader(str(crawl), glob_pattern="*.warc.gz", default_metadata={"dump": "D1"}),
        URLFilter(
            use_integrated_lists=False,
            extra_domains=[BLOCKED_HOST],
            banned_subwords=["porn"],
            exclusion_writer=removed("1_url"),
        ),
        Trafilatura(favour_precision=True, timeout=60),
        LanguageFilter(languages="en", exclusion_writer=removed("2_language")),
        GopherRepetitionFilter(exclusion_writer=removed("3_gopher_repetition")),
        GopherQualityFilter(exclusion_writer=removed("4_gopher_quality")),
        C4QualityFilter(filter_no_terminal_punct=False, exclusion_writer=removed("5_c4_quality")),
        FineWebQualityFilter(exclusion_writer=removed("6_fineweb_quality")),
        JsonlWriter(str(out / "base"), "${rank}.jsonl", compression=None),
    )
    reader = JsonlReader(str(out / "base"), add_file_path=False)
    stage("signatures", TASKS, reader, MinhashDedupSignature(minhash("signatures"), config=config))
    stage("buckets", BUCKETS, MinhashDedupBuckets(minhash("signatures"), minhash("buckets"), config=config))
    stage("cluster", 1, MinhashDedupCluster(minhash("buckets"), minhash("remove_ids"), config=config))
    stage(
        "deduplicate",
        TASKS,
        reader,
        MinhashDedupFilter(minhash("remove_ids"), exclusion_writer=removed("7_duplicates")),
        PIIFormatter(),
        JsonlWriter(str(out / "deduplicated"), "${rank}.jsonl", compression=None),
    )


def documents(out: Path) -> dict[str, list[tuple[Any, ...]]]:
    """The documents of each folder, rank after rank: id, text, URL, dump, language and the reason of a removal.

    The readers of the two tools note other things beside these: datatrove's the file, stagger's the type and status.
    """
    return {folder: [_facts(line) for path in _files(out / folder) for line in _lines(path)] for folder in FOLDERS}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.jsonl*") if not path.name.startswith("."))


def _lines(path: Path) -> list[str]:
    data = path.read_bytes()
    return (
        (zstandard.ZstdDecompressor().decompressobj().decompress(data) if path.suffix == ".zst" else data)
        .decode()
        .splitlines()
    )


def _facts(line: str) -> tuple[Any, ...]:
    document = json.loads(line)
    keys = ("url", "dump", "language", "language_score", "filter_reason")
    return (document["id"], document["text"], *(document["metadata"].get(key) for key in keys))


def reasons_of_datatrove(out: Path) -> dict[str, int]:
    """Drop reasons -> documents, from the statistics that datatrove's executor merges."""
    found: Counter[str] = Counter()
    for step in json.loads((out / "logs" / "base" / "stats.json").read_text()):
        counts = {name: value if isinstance(value, int) else value["total"] for name, value in step["stats"].items()}
        reasons = {name.removeprefix("dropped_"): counts[name] for name in counts if name.startswith("dropped_")}
        found.update({**reasons, "no reason given": counts.get("dropped", 0) - sum(reasons.values())})
    return dict(found)


def reasons_of_stagger(run: Path) -> dict[str, int]:
    """The same from the statistics of the run's first stage."""
    found: Counter[str] = Counter()
    for step in json.loads((run / "base" / "stats.json").read_text())["steps"]:
        found.update(step.get("dropped", {}))
    return dict(found)
