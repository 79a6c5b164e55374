"""The command line: one clear error per mistake, and machine-readable output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Cli, PipelineFiles, output_ids


def test_json_is_alone_on_standard_output(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    document = cli("launch", pipeline_file(), "--json", check=0).json
    keys = {"name", "tasks", "done", "failed", "running", "pending", "failed_ranks"}
    keys |= {"records_in", "records_out", "bytes_out"}
    assert set(document["stages"][0]) >= keys
    assert cli("status", tmp_path / "run", "--json", check=0).json == document


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["launch"], "launch needs a pipeline file; write for example: stagger launch pipeline.yaml"),
        (
            ["launch", "nothing.yaml"],
            "There is no file nothing.yaml; give the path .*pipeline: classify_gpu, fineweb",
        ),
        (["launch", "run.yaml", "--nonsense"], "launch has no option --nonsense; see stagger launch --help"),
        (["launch", "run.yaml", "--limit", "0"], "--limit: expected a whole number of at least 1, not '0'"),
        (["launch", "run.yaml", "--executor", "slrum"], "no executor 'slrum'; did you mean 'slurm'"),
        (["launch", "run.yaml", "--set", "taks=3"], "taks: unknown key; did you mean 'tasks'"),
        (["status", "nothing"], "There is no run in .*nothing"),
        (["nonsense"], "There is no command 'nonsense'; choose from launch"),
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
