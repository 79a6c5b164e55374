"""stagger: run pipelines as thousands of Slurm tasks, or on this machine, without a stampede on the storage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stagger.api.executors import LocalExecutor, PipelineExecutor, SlurmExecutor, run_stages
    from stagger.api.removed import WithRemoved
    from stagger.api.run import Run
    from stagger.api.run_status import RunStatus
    from stagger.errors import BadInput, RunFailed, StaggerError
    from stagger.models.steps import EmbedBlocks, ScoreBlocks
    from stagger.pipeline import Document, Shard, count
    from stagger.pipeline.hooks import BoundStep, Reader, Writer, costly, kept, stateless
    from stagger.pipeline.media import Media
    from stagger.pipeline.task_context import TaskContext
    from stagger.steps.arrow import ReadArrow
    from stagger.steps.csv import ReadCsv
    from stagger.steps.dataset import ReadDataset
    from stagger.steps.filter import Filter
    from stagger.steps.jsonl import ReadJsonl, WriteJsonl
    from stagger.steps.parquet import ReadParquet
    from stagger.steps.parquet_writer import WriteParquet
    from stagger.steps.text import ReadText
    from stagger.steps.warc import ReadWarc

__version__ = "0.1.0"

#: Public name -> its module, imported at first use, so that a task does not import modules that only a launch needs.
_PUBLIC = {
    "BadInput": "stagger.errors",
    "BoundStep": "stagger.pipeline.hooks",
    "Document": "stagger.pipeline",
    "EmbedBlocks": "stagger.models.steps",
    "Filter": "stagger.steps.filter",
    "LocalExecutor": "stagger.api.executors",
    "Media": "stagger.pipeline.media",
    "PipelineExecutor": "stagger.api.executors",
    "ReadJsonl": "stagger.steps.jsonl",
    "ReadArrow": "stagger.steps.arrow",
    "Reader": "stagger.pipeline.hooks",
    "ReadCsv": "stagger.steps.csv",
    "ReadDataset": "stagger.steps.dataset",
    "ReadParquet": "stagger.steps.parquet",
    "ReadWarc": "stagger.steps.warc",
    "WriteParquet": "stagger.steps.parquet_writer",
    "ReadText": "stagger.steps.text",
    "Run": "stagger.api.run",
    "RunFailed": "stagger.errors",
    "RunStatus": "stagger.api.run_status",
    "ScoreBlocks": "stagger.models.steps",
    "Shard": "stagger.pipeline",
    "SlurmExecutor": "stagger.api.executors",
    "StaggerError": "stagger.errors",
    "TaskContext": "stagger.pipeline.task_context",
    "WithRemoved": "stagger.api.removed",
    "WriteJsonl": "stagger.steps.jsonl",
    "Writer": "stagger.pipeline.hooks",
    "costly": "stagger.pipeline.hooks",
    "count": "stagger.pipeline",
    "kept": "stagger.pipeline.hooks",
    "run_stages": "stagger.api.executors",
    "stateless": "stagger.pipeline.hooks",
}

__all__ = [
    "BadInput",
    "BoundStep",
    "Document",
    "EmbedBlocks",
    "Filter",
    "LocalExecutor",
    "Media",
    "PipelineExecutor",
    "ReadArrow",
    "ReadJsonl",
    "ReadCsv",
    "ReadDataset",
    "ReadParquet",
    "ReadWarc",
    "WriteParquet",
    "ReadText",
    "Reader",
    "Run",
    "RunFailed",
    "RunStatus",
    "ScoreBlocks",
    "Shard",
    "SlurmExecutor",
    "StaggerError",
    "TaskContext",
    "WithRemoved",
    "WriteJsonl",
    "Writer",
    "costly",
    "count",
    "kept",
    "run_stages",
    "stateless",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'stagger' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)
