"""Jobs with input, output and run directory on S3."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Bucket, Cli, PipelineFiles, contents
from tests.kit.buckets import objects, on_s3


@pytest.fixture
def s3_cli(cli: Cli, bucket: Bucket) -> Cli:
    cli.env.update(bucket.env)
    return cli


@pytest.mark.parametrize(("packed", "jobs"), [({}, 4), ({"ranks_per_job": 4, "ranks_at_once": 2}, 1)])
def test_the_same_outputs_from_slurm_jobs(
    s3_cli: Cli,
    slurm_cli: Cli,
    loaded: Bucket,
    pipeline_file: PipelineFiles,
    tmp_path: Path,
    packed: dict[str, int],
    jobs: int,
) -> None:
    s3_cli("launch", pipeline_file("here"), check=0)
    executor = {"type": "slurm", "time": 10, "log_dir": str(tmp_path / "job-logs"), **packed}
    file = on_s3(pipeline_file, loaded, executor=executor, randomize_start_duration=1)
    slurm_cli("launch", file, "--wait", check=0)
    assert objects(loaded, "output") == contents(tmp_path / "here-output")
    assert len(list((tmp_path / "job-logs" / "launch-1").glob("*_*.out"))) == jobs
