"""What the tests of datatrove's blocks read, made by datatrove from the generated crawl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.readers import WarcReader
from datatrove.pipeline.writers import JsonlWriter

from tests.kit.crawl import train_language_model, train_tokenizer, write_crawl

#: The crawl that the tests share.
PAGES, FILES = 60, 4


def make_materials(folder: Path) -> Path:
    """Fill a folder.

    `crawl/` holds WARC files; `documents/` the pages' texts as JSON Lines, by datatrove's reader and extractor;
    `parquet/`, `csv/`, `ipc/` and `dataset/` the same documents in other formats; `tokenizer.json` and
    `language_model.bin` small models.
    """
    write_crawl(folder / "crawl", PAGES, FILES)
    LocalPipelineExecutor(
        [
            WarcReader(str(folder / "crawl")),
            Trafilatura(timeout=60),
            JsonlWriter(str(folder / "documents"), "${rank}.jsonl", compression=None),
        ],
        tasks=FILES,
        workers=1,
        logging_dir=str(folder / "logs"),
    ).run()
    for path in (folder / "documents").iterdir():
        documents = [json.loads(line) for line in path.read_text().splitlines()]
        for document in documents:
            del document["metadata"]["file_path"]  # Of datatrove's reader; stagger's has no such field.
        path.write_text("".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents))
        write_tables(folder, path.stem, documents)
    train_tokenizer(folder / "tokenizer.json")
    train_language_model(folder / "language_model.bin")
    return folder


def write_tables(folder: Path, stem: str, documents: list[dict[str, Any]]) -> None:
    """Write documents in the other formats that datatrove reads."""
    import pyarrow as pa
    from datasets import Dataset
    from pyarrow import csv, parquet

    rows = [{"text": each["text"], "id": each["id"], "url": each["metadata"]["url"]} for each in documents]
    table = pa.Table.from_pylist(rows)
    for name in ("parquet", "csv", "ipc"):
        (folder / name).mkdir(exist_ok=True)
    parquet.write_table(table, folder / "parquet" / f"{stem}.parquet")
    csv.write_csv(table, folder / "csv" / f"{stem}.csv")
    with pa.OSFile(str(folder / "ipc" / f"{stem}.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    if stem == "00000":
        Dataset(table).save_to_disk(str(folder / "dataset"))
