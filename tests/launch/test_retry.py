"""`stagger retry` for single ranks, for failed ranks, and with changed settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Cli, PipelineFiles, output_ids
from tests.kit.runs import EVERYTHING, counts, failing_run, launches, status


def test_a_retry_of_single_ranks_touches_no_other(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flag = failing_run(cli, pipeline_file, tmp_path, 1, 2, 3)
    flag.touch()
    cli("retry", run, "--rank", "1,3")
    assert [launch["ranks"] for launch in launches(run)] == ["0-3", "1,3"]
    assert (counts(stage := status(cli, run)), stage["failed_ranks"]) == ((3, 1, 0, 0), [2])
    cli("retry", run, "--failed-only", check=0)
    assert launches(run)[-1]["ranks"] == "2"
    assert output_ids(tmp_path / "run-output") == EVERYTHING


def test_failed_only_leaves_out_what_never_ran(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    run, flag = tmp_path / "run", tmp_path / "flag"
    file = pipeline_file(steps=({"my_steps:fail_on": {"ranks": [1], "flag": str(flag)}},))
    cli("launch", file, "--limit", 2, check=1)
    flag.touch()
    cli("retry", run, "--failed-only", check=0)
    assert launches(run)[-1]["ranks"] == "1"
    assert counts(status(cli, run)) == (2, 0, 0, 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rank", "9"), "There is no rank 9: the ranks of run are 0 to 3."),
        (("--rank", "0-1"), "Rank 0 of run is done; to repeat it, add --again."),
        (("--rank", "all"), "--rank 'all': write ranks like 3 or 3,17,40-52."),
        (("--stage", "rum"), "There is no stage 'rum'; did you mean 'run'?"),
        (("--set", "tasks=9"), "a retry cannot change tasks, only executor"),
        (("--set", "pipeline=[]"), "launch with a new run_dir"),
        (("--set", "executor.wrokers=9"), "did you mean 'workers'"),
    ],
)
def test_a_wrong_retry_is_one_sentence_and_launches_nothing(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    failing_run(cli, pipeline_file, tmp_path, 1)
    before = (tmp_path / "run" / "run.json").read_bytes()
    ran = cli("retry", tmp_path / "run", *arguments, check=2)
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert len(launches(tmp_path / "run")) == 1
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_settings_that_a_retry_changes_stay(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    run = tmp_path / "run"
    failing_run(cli, pipeline_file, tmp_path, 1).touch()
    cli("retry", run, "--set", "executor.workers=1", "--set", "retry_seconds=7", check=0)
    saved = json.loads((run / "run.json").read_text())["spec"]
    assert (saved["stages"][0]["executor"]["workers"], saved["retry_seconds"]) == (1, 7.0)
    assert json.loads(launches(run)[-1]["settings"])["retry_seconds"] == 7.0
