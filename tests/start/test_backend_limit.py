"""`backend_limit`: the window that keeps starts below it, and the messages about it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from stagger.executor.slurm_start import SlurmStart
from stagger.rundir.run_folder import StageInput
from tests.conftest import Bucket, Cli, PipelineFiles
from tests.kit.records import spec

SLURM = {"type": "slurm"}


def dry_run(cli: Cli, file: Path, *more: str | int) -> tuple[str, int, int, str]:
    """Policy, window and hold of a launch, and its messages."""
    ran = cli("launch", file, "--dry-run", "--json", *more, check=0)
    (stage,) = ran.json["stages"]
    start = stage["start"]
    return start["policy"], start["window_s"], start["hold_s"], ran.err


def test_the_window_for_a_limit_and_what_is_said_about_it(
    cli: Cli, bucket: Bucket, shards: Path, pipeline_file: PipelineFiles
) -> None:
    """A short task with run directory and input on S3 makes six requests: plan, plan, shard, claim, completion, log."""
    cli.env.update(bucket.env)
    bucket.files.put([str(path) for path in sorted(shards.iterdir())], f"{bucket.name}/input/")

    def file(**more: Any) -> Path:
        options = {"executor": SLURM, "tasks": 12, **more}
        return pipeline_file(source=f"{bucket.url}/input", run_dir=f"{bucket.url}/run", **options)

    assert dry_run(cli, file(backend_limit=3.0))[:3] == ("spread", 30, 0)  # 12 * 6 / (0.8 * 3)
    assert dry_run(cli, file(backend_limit=3.0, start_policy="uniform"))[:3] == ("uniform", 30, 0)
    # A throttled launch has a shorter window, and each job holds its slot for that long.
    assert dry_run(cli, file(backend_limit=3.0, executor={**SLURM, "workers": 4}))[:3] == ("spread", 10, 10)
    # A launch of fewer ranks needs a shorter window.
    assert dry_run(cli, file(backend_limit=3.0), "--limit", 4)[:3] == ("spread", 10, 0)
    *start, said = dry_run(cli, file(backend_limit=3.0, randomize_start_duration=20))
    assert start == ["spread", 20, 0]
    assert "starts over 20 s exceed 0.8 of backend_limit, which needs 30 s" in said
    *start, said = dry_run(cli, file(backend_limit=0.12))
    assert start[1] == 750
    assert "sleeps 375 s on average while it holds its processors" in said
    *start, said = dry_run(cli, file(backend_limit=3.0, start_policy="uniform"))
    assert re.search(r"up to \d jobs start within a second and make \d+ requests; .*: leave start_policy out", said)
    ran = cli("launch", file(backend_limit=0.00012), "--dry-run", check=2)
    assert "would spread 12 starts of run over 750,000 s, more than a day: set a smaller throttle" in ran.err
    ran = cli("launch", file(backend_limit=0.12, executor={**SLURM, "time": 12}), "--dry-run", check=2)
    assert "limits each job of run to 720 s, but a job may sleep up to 750 s before it starts" in ran.err
    assert dry_run(cli, file(backend_limit=0.12, executor={**SLURM, "time": 13}))[1] == 750


def test_each_worker_has_its_share_of_the_limit() -> None:
    planned = StageInput(bytes=800 * 50_000, remote_shards=800)

    def share(ranks: int, limit: float | None = 100.0, **executor: Any) -> float:
        run = spec({**SLURM, **executor}, "only")
        stage = run.stages[0].model_copy(update={"tasks": 80, "backend_limit": limit})
        return SlurmStart(run.model_copy(update={"run_dir": "s3://bucket/run"}), stage, planned).share(ranks)

    assert share(80) == 1.0  # 0.8 of 100, for 80 jobs at once.
    assert share(8) == 10.0
    assert share(80, workers=20) == 4.0
    assert share(80, ranks_per_job=8) == 8.0
    assert share(80, ranks_per_job=8, ranks_at_once=4) == 2.0
    assert share(80, None) == 0.0


def test_a_limit_without_remote_storage_is_refused(cli: Cli, pipeline_file: PipelineFiles) -> None:
    ran = cli("launch", pipeline_file(executor=SLURM, backend_limit=50), "--dry-run", check=2)
    assert "its run_dir, input, output and models are local paths. Set randomize_start_duration instead." in ran.err
