"""The cluster for the tests in this folder, which are all marked `slurm`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CLUSTER, Cli, PipelineFiles, contents, missing, until
from tests.kit.open_files import process_with
from tests.kit.runs import SLURM, completions, counts, launches, status

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test in this folder before `-m` selects, so that none can be left unmarked."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def slurm_conf() -> str:
    """The slurm.conf of a running cluster. One cluster serves the whole session, and stays up for the next."""
    return started()


def started(**env: str) -> str:
    """Start or repair the cluster that these variables choose. Returns the path of its slurm.conf."""
    if shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        missing("Slurm")
    done = subprocess.run([CLUSTER / "up.sh"], env={**os.environ, **env}, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.fail(f"the cluster did not start:\n{done.stderr}")
    return done.stdout.strip().rpartition("SLURM_CONF=")[2]


@pytest.fixture
def slurm_cli(cli: Cli, slurm_conf: str, tmp_path: Path) -> Iterator[Cli]:
    """The command line on a machine of the cluster. Jobs that a test leaves queued are cancelled after it."""
    cli.env["SLURM_CONF"] = slurm_conf
    yield cli
    for run in tmp_path.rglob("run.json"):
        cli("cancel", run.parent)


def slurm(cli: Cli, *command: str) -> str:
    return subprocess.run(command, env=cli.env, capture_output=True, text=True, check=True).stdout


RECORDS = 12 * 50


class Life:
    """A run on the cluster, which is compared with the same run, undisturbed, on this machine."""

    def __init__(self, cli: Cli, files: PipelineFiles, folder: Path) -> None:
        self.cli = cli
        self.files = files
        self.folder = folder
        self.run = folder / "run"
        self.flag = folder / "flag"
        self.more: dict[str, Any] = {}

    def launch(self, *steps: dict[str, Any], executor: dict[str, Any] | None = None, **more: Any) -> None:
        """Launch the run, passing `flag` to each step."""
        steps = tuple({name: {**params, "flag": str(self.flag)}} for step in steps for name, params in step.items())
        self.more = {"tasks": 4, "randomize_start_duration": 0, **more}
        self.cli("launch", self.files(steps=steps, executor={**SLURM, **(executor or {})}, **self.more), check=0)

    @property
    def array(self) -> str:
        """The id of the first array."""
        return str(launches(self.run)[0]["arrays"][0]["job_id"])

    def begun(self, rank: int) -> Path:
        """Wait until a step has begun the rank. Returns the file by which it announces that."""
        path = Path(f"{self.flag}-{rank}")
        until(path.exists, f"rank {rank} to be at work")
        return path

    def pid(self, rank: int) -> int:
        """The id of the process that runs a rank, found by its open log."""
        return process_with(lambda path: path.startswith(str(self.run)) and f"/logs/{rank:05d}/" in path)

    def finish(self) -> None:
        """Wait until all ranks are done, then compare the outputs."""
        until(lambda: counts(status(self.cli, self.run)) == (self.more["tasks"], 0, 0, 0), "all ranks to be done")
        self.compare()

    def compare(self) -> None:
        """Assert that the outputs equal those of an undisturbed run, and hold every record once."""
        here = {key: value for key, value in self.more.items() if key in ("tasks", "writer")}
        self.cli("launch", self.files("undisturbed", **here), check=0)
        assert visible(self.folder / "run-output") == visible(self.folder / "undisturbed-output")
        records = completions(self.run)
        assert [record["rank"] for record in records] == list(range(self.more["tasks"]))
        assert sum(record["records_in"] for record in records) == RECORDS
        assert sum(record["records_out"] for record in records) == RECORDS


def visible(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if not name.startswith(".")}


@pytest.fixture
def life(slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> Iterator[Life]:
    yield Life(slurm_cli, pipeline_file, tmp_path)
    # A node that a test has set down must not affect the next test.
    for node in ("n1", "n2", "n3", "n4"):
        command = ["scontrol", "update", f"NodeName={node}", "State=RESUME"]
        subprocess.run(command, env=slurm_cli.env, capture_output=True, check=False)


def restarted(life: Life, rank: int = 1) -> bool:
    return (life.run / "logs" / f"{rank:05d}" / "1r1.log").exists()


def finalize_log(life: Life) -> str:
    logs = sorted((life.run / "launches").glob("*/slurm/finalize-*.out"))
    return "".join(path.read_text() for path in logs)
