"""Runs with their input, output and run directory in a bucket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.conftest import Bucket, PipelineFiles


def objects(bucket: Bucket, folder: str) -> dict[str, bytes]:
    root = f"{bucket.name}/{folder}/"
    return {path.removeprefix(root): bucket.files.cat(path) for path in bucket.files.find(root)}


def on_s3(pipeline_file: PipelineFiles, bucket: Bucket, name: str = "run", **more: Any) -> Path:
    options = {"source": f"{bucket.url}/input", "output": f"{bucket.url}/output", "run_dir": f"{bucket.url}/run"}
    return pipeline_file(name, **{**options, **more})
