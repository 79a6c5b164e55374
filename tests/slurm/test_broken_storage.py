"""Storage that disappears or becomes unwritable while jobs run."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import until
from tests.kit.runs import SLURM, launches, status
from tests.kit.s3_server import running
from tests.slurm.conftest import Life, slurm


def test_storage_that_is_gone_fails_the_ranks_soon_and_says_so(life: Life, tmp_path: Path) -> None:
    with running("--serve", f"data={life.files.shards}") as server:
        life.cli.env |= {"AWS_ENDPOINT_URL": server.endpoint, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
        executor = {**SLURM, "sbatch": {"hold": True}}
        file = life.files(source="s3://data", executor=executor, tasks=2, retry_seconds=2, randomize_start_duration=0)
        life.cli("launch", file, check=0)
    slurm(life.cli, "scontrol", "release", life.array)
    stage = until(lambda: (s := status(life.cli, life.run))["failed"] == 2 and s, "the ranks to fail")
    assert all("StorageError" in reason for reason in stage["reasons"])
    said = life.cli("logs", life.run, "--failed", check=0).out
    assert server.endpoint.rpartition(":")[2] in said or "s3://data" in said


def test_a_run_directory_that_cannot_be_written_is_said_in_the_jobs_own_log(life: Life) -> None:
    """The attempt's own log cannot be written there either."""
    executor = {**SLURM, "sbatch": {"hold": True}, "log_dir": str(life.folder / "slurm")}
    life.cli("launch", life.files(executor=executor, tasks=1, randomize_start_duration=0), check=0)
    (life.run / "logs").write_text("not a folder")
    slurm(life.cli, "scontrol", "release", launches(life.run)[0]["arrays"][0]["job_id"])
    stage = until(lambda: (s := status(life.cli, life.run))["failed"] == 1 and s, "the rank to fail")
    assert stage["reasons"] == {"lost (FAILED)": 1}
    assert f"the run directory {life.run} cannot be used" in life.cli("logs", life.run, "--failed", check=0).out
