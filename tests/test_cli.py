"""The command line: dry runs that touch nothing, one clear error for each mistake, output that programs can read."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stagger.errors import StaggerError
from stagger.storage.storage import Storage
from tests.conftest import Cli, PipelineFiles, contents, output_ids

SLURM = {"type": "slurm", "partition": "cpu", "workers": 500}


def without_slurm(cli: Cli, tmp_path: Path) -> None:
    """A laptop: nothing but Python and the shell."""
    folder = tmp_path / "laptop-bin"
    folder.mkdir()
    for name in ("bash", "sh", "env", "python3"):
        found = subprocess.run(["which", name], capture_output=True, text=True, check=True).stdout.strip()
        (folder / name).symlink_to(found)
    cli.env["PATH"] = str(folder)


def tree(folder: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_of_8000_tasks_shows_all_and_touches_nothing(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    without_slurm(cli, tmp_path)
    file = pipeline_file(tasks=8000, executor=SLURM, steps=("my_steps:swallow",))
    cli.env.pop("PYTHONDONTWRITEBYTECODE", None)
    before = tree(tmp_path)
    ran = cli("launch", file, "--dry-run", "--json", check=0)
    assert tree(tmp_path) == before
    assert "Assuming Slurm's default MaxArraySize, 1001" in ran.err
    document = ran.json
    assert set(document) == {"run_dir", "fingerprint", "stages"}
    assert document["run_dir"] == str(tmp_path / "run")
    (stage,) = document["stages"]
    assert (stage["name"], stage["tasks"], stage["shards"], stage["jobs"]) == ("run", 8000, 12, 8000)
    assert stage["bytes"] == sum(path.stat().st_size for path in pipeline_file.shards.iterdir())
    assert (stage["start"]["policy"], stage["start"]["window_s"]) == ("uniform", 180)
    summary = "the first 500 of 8,000 jobs start over 180 s (uniform), at most "
    assert stage["start"]["summary"].startswith(summary)
    assert [array["jobs"] for array in stage["arrays"]] == [1001] * 7 + [993]
    assert sum(array["throttle"] for array in stage["arrays"]) == 500
    script = stage["arrays"][7]["script"]
    assert script.startswith("#!/bin/bash\n#SBATCH --job-name=run-")
    assert "#SBATCH --array=0-992%62\n" in script
    assert "ranks=$(( 7007 + SLURM_ARRAY_TASK_ID ))" in script
    text = cli("launch", file, "--dry-run", check=0)
    assert "8000 of 8000 to run" in text.out
    assert text.out.count("#!/bin/bash") == 8
    assert tree(tmp_path) == before


def test_the_same_file_runs_its_first_ranks_here(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    without_slurm(cli, tmp_path)
    file = pipeline_file(tasks=8000, executor=SLURM)
    assert "no sbatch on this machine" in cli("launch", file, check=2).err
    assert not (tmp_path / "run").exists()
    (stage,) = cli("launch", file, "--executor", "local", "--limit", 10, "--json", check=0).json["stages"]
    assert (stage["done"], stage["pending"], stage["tasks"]) == (10, 7990, 8000)
    assert len(contents(tmp_path / "run-output")) == 10


def test_json_is_alone_on_standard_output(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    document = cli("launch", pipeline_file(), "--json", check=0).json
    keys = {"name", "tasks", "done", "failed", "running", "pending", "failed_ranks"}
    keys |= {"records_in", "records_out", "bytes_out"}
    assert set(document["stages"][0]) >= keys
    assert cli("status", tmp_path / "run", "--json", check=0).json == document


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["launch"], "Missing argument 'FILE'"),
        (["launch", "nothing.yaml"], "There is no file nothing.yaml.*ready one: quickstart"),
        (["launch", "run.yaml", "--nonsense"], "No such option"),
        (["launch", "run.yaml", "--limit", "0"], "--limit.*greater than or equal to 1"),
        (["launch", "run.yaml", "--executor", "slrum"], "no executor 'slrum'; did you mean 'slurm'"),
        (["launch", "run.yaml", "--set", "taks=3"], "taks: unknown key; did you mean 'tasks'"),
        (["status", "nothing"], "There is no run in .*nothing"),
        (["nonsense"], "No such command 'nonsense'"),
        (["status", "run", "--storage-options", "7"], "--storage-options must be a mapping"),
    ],
)
def test_each_mistake_is_one_line_and_status_2(
    cli: Cli, pipeline_file: PipelineFiles, arguments: list[str], said: str
) -> None:
    import re

    pipeline_file()
    ran = cli(*arguments, check=2)
    assert re.search(said, ran.err)
    assert ran.err.startswith("stagger: ")
    assert ran.err.count("\n") == 1
    assert ran.out == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": "/no/such/folder"}, "Nothing in /no/such/folder matches"),
        ({"run_dir": "/proc/nothing/run"}, "/proc/nothing/run cannot be"),
        ({"output": "/proc/nothing/out"}, "/proc/nothing/out cannot be"),
        ({"run_dir": "nonesuch://x"}, "No storage speaks nonesuch://"),
        ({"steps": ("no_such_module:step",)}, "step 2: The step 'no_such_module:step' cannot be imported"),
    ],
)
def test_a_launch_that_cannot_work_launches_nothing(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    file = pipeline_file(**change)
    before = tree(tmp_path)
    ran = cli("launch", file, check=2, PYTHONDONTWRITEBYTECODE="1")
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert tree(tmp_path) == before


def test_a_file_in_place_of_the_run_directory_is_said(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    assert "run is not a folder" in cli("launch", pipeline_file(), check=2).err


def test_an_unwritable_run_directory_is_said(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    """As a user without rights, since root may write anywhere."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    file = pipeline_file(run_dir=str(closed / "run"))
    if os.geteuid():
        assert "no permission in" in cli("launch", file, check=2).err
        return
    for folder in (closed, *closed.parents):
        if folder.is_relative_to(tmp_path.parents[1]):
            folder.chmod(0o555)
    context = multiprocessing.get_context("fork")
    said = context.SimpleQueue()
    process = context.Process(target=_check_as_nobody, args=(str(closed / "run"), said))
    process.start()
    process.join()
    for folder in closed.parents:
        if folder.is_relative_to(tmp_path.parents[1]):
            folder.chmod(0o700)
    assert f"no permission in {closed}" in said.get()


def _check_as_nobody(folder: str, said: multiprocessing.SimpleQueue[str]) -> None:
    os.setuid(65534)
    try:
        Storage().check_writable(folder)
        said.put("writable")
    except StaggerError as error:
        said.put(str(error))


def test_help_names_every_command(cli: Cli) -> None:
    text = cli("--help", check=0).out
    for command in ("launch", "status", "logs", "retry", "cancel", "schema"):
        assert command in text
    assert cli("--version", check=0).out.startswith("stagger 0.")


def test_watch_ends_with_the_run(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    cli("launch", pipeline_file(), check=0)
    assert "4 done" in cli("status", tmp_path / "run", "--watch", check=0).out


def test_a_ready_pipeline_is_found_by_its_name(cli: Cli, tmp_path: Path) -> None:
    cli("launch", "quickstart", check=0)
    assert len(output_ids(tmp_path / "runs" / "quickstart" / "output")) == 513
    document = json.loads((tmp_path / "runs" / "quickstart" / "stats.json").read_text())
    assert (document["records_in"], document["records_out"]) == (983, 513)
