"""Failed and cancelled ranks: their errors, steps and logs."""

from __future__ import annotations

from pathlib import Path

from stagger.status.failed_ranks import cancelled_ranks
from tests.conftest import Cli, PipelineFiles
from tests.kit.records import launch_record
from tests.kit.runs import failing_run, status


def test_a_rank_that_was_cancelled_and_launched_again_is_not_cancelled() -> None:
    records = [launch_record(1, "0-9", cancelled_ranks="2-4"), launch_record(2, "3")]
    assert cancelled_ranks(records) == {2, 4}
    assert cancelled_ranks([launch_record(1, "0-3", cancelled="by stagger cancel")]) == {0, 1, 2, 3}
    assert cancelled_ranks([launch_record(1, "0-3")]) == set()


def test_failures_are_told_by_kind_and_step_and_logs_by_attempt(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flag = failing_run(cli, pipeline_file, tmp_path, 1, 3)
    assert status(cli, run)["reasons"] == {"ValueError in my_steps:fail_on": 2}
    assert "failed: 2 ranks (1,3): ValueError in my_steps:fail_on" in cli("status", run, check=1).out
    said = cli("logs", run, "--failed", check=0).out.splitlines()
    assert said[0].startswith("2 ranks (1,3): ValueError in my_steps:fail_on: rank 1 cannot go on (my_steps.py:27)")
    assert "    ValueError: rank 1 cannot go on" in said[1:17]
    flag.touch()
    cli("retry", run, check=0)
    assert cli("logs", run, "--failed", check=0).out == "run: no rank has failed\n"
    assert "rank 1, attempt 2" in cli("logs", run, "--rank", 1, check=0).out
    assert "rank 1 cannot go on" in cli("logs", run, "--rank", 1, "--attempt", "1", check=0).out
    assert "Rank 1 has no attempt 7; it has 1, 2." in cli("logs", run, "--rank", 1, "--attempt", "7", check=2).err
    assert "say which with --rank" in cli("logs", run, "--attempt", "1", check=2).err
