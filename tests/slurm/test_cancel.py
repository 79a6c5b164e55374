"""Jobs that are cancelled, by `stagger cancel` or by others: nothing stays queued, and the run can be resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Cli, PipelineFiles, output_ids, until
from tests.kit.runs import EVERYTHING, SLURM, counts, launches, status
from tests.slurm.conftest import Life, finalize_log, slurm


@pytest.mark.each_version
def test_single_ranks_are_cancelled_and_wait_for_a_retry(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    run, flag = tmp_path / "run", tmp_path / "flag"
    file = pipeline_file(
        steps=({"my_steps:hold": {"flag": str(flag)}},), executor=SLURM, tasks=6, randomize_start_duration=0
    )
    slurm_cli("launch", file, check=0)
    until(lambda: counts(status(slurm_cli, run)) == (0, 0, 6, 0), "all ranks to run")
    said = slurm_cli("cancel", run, "--rank", "1,3-4", check=0).out
    assert said == "cancelled ranks 1,3-4 (3 jobs)\n"
    assert launches(run)[0]["cancelled_ranks"] == "1,3-4"
    until(lambda: counts(status(slurm_cli, run)) == (0, 0, 3, 3), "the others to run on alone")
    assert status(slurm_cli, run)["cancelled"] == 3
    flag.touch()
    until(lambda: counts(status(slurm_cli, run)) == (3, 0, 0, 3), "the others to be done")
    until(lambda: not status(slurm_cli, run)["active"], "the end")
    slurm_cli("retry", run, "--failed-only", check=0)
    assert len(launches(run)) == 1  # No rank has failed.
    slurm_cli("retry", run, "--wait", "--set", "executor.mem_per_cpu_gb=0.2", check=0)
    assert (launches(run)[1]["ranks"], launches(run)[1]["resources"]["mem_per_cpu_gb"]) == ("1,3-4", 0.2)
    assert output_ids(tmp_path / "run-output") == EVERYTHING


def test_ranks_in_the_job_of_a_cancelled_one_are_named(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    run, flag = tmp_path / "run", tmp_path / "flag"
    executor = {**SLURM, "ranks_per_job": 2}
    steps = ({"my_steps:hold": {"flag": str(flag)}},)
    slurm_cli("launch", pipeline_file(steps=steps, executor=executor, randomize_start_duration=0), check=0)
    until((tmp_path / "flag-2").exists, "rank 2 to run")
    said = slurm_cli("cancel", run, "--rank", "3", check=0).out
    assert said == "cancelled rank 3 (1 job); rank 2 was in the same jobs\n"
    until(lambda: status(slurm_cli, run)["cancelled"] == 2, "both to be cancelled")
    assert "Rank 0 of run is queued or running" in slurm_cli("retry", run, "--rank", "0", check=2).err


def test_a_cancelled_stage_leaves_nothing_queued_and_says_what_will_not_begin(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    source = {"read_jsonl": {"path": str(pipeline_file.shards)}}
    stages = [
        {"name": "a", "tasks": 4, "pipeline": [source]},
        {"name": "b", "tasks": 2, "pipeline": [source], "depends": ["a"]},
        {"name": "c", "tasks": 2, "pipeline": [source]},
    ]
    executor = {**SLURM, "time": "1-00:00:00"}
    content = {"name": "p", "run_dir": "run", "executor": executor, "stages": stages}
    (tmp_path / "p.yaml").write_text(json.dumps({**content, "randomize_start_duration": 80_000}))
    run = tmp_path / "run"
    slurm_cli("launch", "p.yaml", check=0)

    def asleep_now() -> list[int]:
        return [stage["sleeping"] for stage in slurm_cli("status", run, "--json").json["stages"]]

    until(lambda: asleep_now() == [4, 0, 2], "all to sleep")
    assert "4 sleeping" in slurm_cli("status", run).out
    said = slurm_cli("cancel", run, "--stage", "a", check=0).out.splitlines()
    assert said[-1] == f"b will not start until a is done: stagger retry {run}"
    assert len(said) == 3  # The array, its end job, and the stage that will not start.
    until(lambda: asleep_now() == [0, 0, 2], "only c to be left")
    assert slurm_cli("cancel", run, check=0).out.count("cancelled Slurm job") == 2
    names = [job["name"] for path in "ac" for record in launches(run / path) for job in record["arrays"]]
    names += [record["finalize"]["name"] for path in "ac" for record in launches(run / path)]
    until(lambda: slurm(slurm_cli, "squeue", "--noheader", "--name", ",".join(names)) == "", "nothing to be left")


def test_cancel_leaves_nothing_queued_and_the_run_goes_on_later(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    steps = ({"my_steps:hold": {"flag": str(flag)}},)
    file = pipeline_file(steps=steps, executor={**SLURM, "workers": 2}, randomize_start_duration=0)
    slurm_cli("launch", file, check=0)
    until(lambda: (tmp_path / "flag-0").exists() and (tmp_path / "flag-1").exists(), "two jobs to run")
    assert "cancelled Slurm job" in slurm_cli("cancel", tmp_path / "run", check=0).out
    flag.touch()
    (launch,) = launches(tmp_path / "run")
    names = ",".join([launch["arrays"][0]["name"], launch["finalize"]["name"]])
    until(lambda: slurm(slurm_cli, "squeue", "-h", "-n", names) == "", "the queue to be empty")
    stage = status(slurm_cli, tmp_path / "run")
    assert counts(stage) == (0, 0, 0, 4)
    slurm_cli("launch", file, "--wait", check=0)
    assert output_ids(tmp_path / "run-output") == EVERYTHING


@pytest.mark.each_version
def test_a_rank_whose_job_somebody_cancelled_is_failed_not_forgotten(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    steps = ({"my_steps:dawdle": {"ranks": [1], "flag": str(flag)}},)
    file = pipeline_file(steps=steps, executor=SLURM, randomize_start_duration=0)
    waiting = slurm_cli.start("launch", file, "--wait")
    until((tmp_path / "flag-1").exists, "rank 1 to run")
    (launch,) = launches(tmp_path / "run")
    slurm(slurm_cli, "scancel", f"{launch['arrays'][0]['job_id']}_1")
    _, err = waiting.communicate(timeout=100)
    assert waiting.returncode == 1
    assert "1 rank of" in err
    stage = status(slurm_cli, tmp_path / "run")
    assert (counts(stage), stage["failed_ranks"], stage["reasons"]) == ((3, 1, 0, 0), [1], {"CANCELLED": 1})
    assert "rank 1: stopped by SIGTERM" in slurm_cli("logs", tmp_path / "run", "--failed").out
    assert not (tmp_path / "run-output" / "00001.jsonl.zst").exists()


RETRIES = {"max": 2}


def test_one_cancelled_element_is_left_to_its_user(life: Life) -> None:
    life.launch({"my_steps:dawdle": {"ranks": [1]}}, retries=RETRIES)
    life.begun(1)
    slurm(life.cli, "scancel", f"{life.array}_1")
    until(lambda: "given up" in finalize_log(life), "the stage to end")
    assert "CANCELLED is not retried" in finalize_log(life)
    assert len(launches(life.run)) == 1
    life.cli("retry", life.run, "--wait", check=0)
    life.compare()


def test_single_ranks_are_cancelled_and_tried_again_with_other_settings(life: Life) -> None:
    life.launch({"my_steps:dawdle": {"ranks": [1, 2]}})
    life.begun(1), life.begun(2)
    ran = life.cli("cancel", life.run, "--rank", "1-2", check=0)
    assert ran.out == "cancelled ranks 1-2 (2 jobs)\n"
    until(lambda: counts(status(life.cli, life.run)) == (2, 0, 0, 2), "the two to end")
    assert "a retry cannot change tasks" in life.cli("retry", life.run, "--set", "tasks=9", check=2).err
    assert "There is no rank 4" in life.cli("retry", life.run, "--rank", "4", check=2).err
    assert "Rank 0 of run is done" in life.cli("retry", life.run, "--rank", "0,1", check=2).err
    life.cli("retry", life.run, "--failed-only", check=0)
    assert len(launches(life.run)) == 1  # Cancelled ranks are not failed.
    life.cli("retry", life.run, "--rank", "1", "--set", "executor.mem_per_cpu_gb=0.3", "--wait", check=0)
    second = launches(life.run)[1]
    assert (second["ranks"], second["resources"]["mem_per_cpu_gb"]) == ("1", 0.3)
    life.cli("retry", life.run, "--wait", check=0)
    assert launches(life.run)[2]["resources"]["mem_per_cpu_gb"] == 0.3  # The override persists.
    life.compare()
