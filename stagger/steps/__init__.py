"""The steps that ship with stagger, by the names that pipeline files use."""

from __future__ import annotations

#: Name in a pipeline file -> where the step is. A step's module is imported when a pipeline names it.
BUILTIN = {
    "read_csv": "stagger.steps.csv:ReadCsv",
    "read_jsonl": "stagger.steps.jsonl:ReadJsonl",
    "read_parquet": "stagger.steps.parquet:ReadParquet",
    "read_text": "stagger.steps.text:ReadText",
    "read_warc": "stagger.steps.warc:ReadWarc",
    "write_jsonl": "stagger.steps.jsonl:WriteJsonl",
    "write_parquet": "stagger.steps.parquet_writer:WriteParquet",
}
