"""Job arrays: submitting, rejected submissions, splitting, packing, and finding accepted jobs again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli, PipelineFiles, contents, output_ids, until
from tests.kit.runs import EVERYTHING, SLURM, completions, counts, launches, status
from tests.slurm.conftest import Life, slurm


@pytest.mark.each_version
def test_the_same_outputs_as_a_local_run(slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    slurm_cli("launch", pipeline_file("here"), check=0)
    file = pipeline_file("there", executor=SLURM, randomize_start_duration=2)
    ran = slurm_cli("launch", file, "--wait", check=0)
    assert "submitted 4 ranks in 1 array" in ran.err
    assert contents(tmp_path / "there-output") == contents(tmp_path / "here-output")
    (launch,) = launches(tmp_path / "there")
    (array,) = launch["arrays"]
    for rank, record in enumerate(completions(tmp_path / "there")):
        assert record["job"] == f"{array['job_id']}_{rank}"
        assert record["delay_s"] in (0, 1, 2)
        assert record["window_s"] == 2
        assert record["started"] - record["script_started"] >= record["delay_s"]
    assert counts(status(slurm_cli, tmp_path / "there")) == (4, 0, 0, 0)
    # The end job merged the statistics.
    assert json.loads((tmp_path / "there" / "stats.json").read_text())["done"] == 4
    # Another launch of a finished run submits nothing.
    slurm_cli("launch", file, check=0)
    assert len(launches(tmp_path / "there")) == 1


def test_sparse_ranks_are_retried_as_a_dense_array_of_packed_jobs(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    failing = [0, 3, 4, 5, 9]
    steps = ({"my_steps:fail_on": {"ranks": failing, "flag": str(flag)}},)
    file = pipeline_file(steps=steps, tasks=12, executor={**SLURM, "ranks_per_job": 2}, randomize_start_duration=0)
    slurm_cli("launch", file, "--wait", check=1)
    (launch,) = launches(tmp_path / "run")
    assert (launch["arrays"][0]["jobs"], launch["ranks"]) == (6, "0-11")
    stage = status(slurm_cli, tmp_path / "run")
    assert (counts(stage), stage["failed_ranks"]) == ((7, 5, 0, 0), failing)  # A failed rank stops no other of its job.
    flag.touch()
    slurm_cli("retry", tmp_path / "run", "--wait", check=0)
    again = launches(tmp_path / "run")[1]
    assert (again["arrays"][0]["jobs"], again["ranks"]) == (3, "0,3-5,9")
    by_rank = {record["rank"]: record["job"] for record in completions(tmp_path / "run")}
    array = again["arrays"][0]["job_id"]
    assert [by_rank[rank] for rank in failing] == [f"{array}_0", f"{array}_0", f"{array}_1", f"{array}_1", f"{array}_2"]
    assert by_rank[1] == by_rank[1].replace(array, launch["arrays"][0]["job_id"])


@pytest.mark.each_version
@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"partition": "nonesuch"}, "invalid partition"), ({"sbatch": {"nonesuch": "1"}}, "unrecognized option")],
)
def test_what_slurm_refuses_is_said_in_its_words_and_nothing_stays_queued(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, wrong: dict[str, Any], said: str
) -> None:
    ran = slurm_cli("launch", pipeline_file(executor={**SLURM, **wrong}), check=2)
    assert ran.err.count("\n") == 1
    assert "Slurm refused the job (" in ran.err
    assert said in ran.err
    (launch,) = launches(tmp_path / "run")
    assert "Slurm refused" in launch["refused"]
    assert counts(status(slurm_cli, tmp_path / "run")) == (0, 0, 0, 4)
    slurm_cli("launch", pipeline_file(executor=SLURM, randomize_start_duration=0), "--wait", check=0)
    assert output_ids(tmp_path / "run-output") == EVERYTHING


@pytest.mark.each_version
def test_arrays_are_split_at_the_clusters_limit_and_hold_one_throttle(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    """A wrapper around scontrol reports a smaller MaxArraySize; everything else is the real cluster."""
    real = slurm(slurm_cli, "which", "scontrol").strip()
    front = tmp_path / "front"
    front.mkdir()
    (front / "scontrol").write_text(f"#!/bin/bash\n{real} \"$@\" | sed 's/^MaxArraySize.*/MaxArraySize = 5/'\n")
    (front / "scontrol").chmod(0o755)
    slurm_cli.env["PATH"] = f"{front}:{slurm_cli.env['PATH']}"
    file = pipeline_file(tasks=12, executor={**SLURM, "workers": 7}, randomize_start_duration=1)
    (dry,) = slurm_cli("launch", file, "--dry-run", "--json", check=0).json["stages"]
    assert [(array["jobs"], array["throttle"]) for array in dry["arrays"]] == [(5, 3), (5, 2), (2, 2)]
    slurm_cli("launch", file, "--wait", check=0)
    (launch,) = launches(tmp_path / "run")
    assert [(array["jobs"], array["ranks"]) for array in launch["arrays"]] == [(5, "0-4"), (5, "5-9"), (2, "10-11")]
    assert output_ids(tmp_path / "run-output") == EVERYTHING
    too_few = pipeline_file("other", tasks=12, executor={**SLURM, "workers": 2})
    assert "set workers to 3 or more" in slurm_cli("launch", too_few, "--dry-run", check=2).err


def test_an_sbatch_that_timed_out_but_was_accepted_is_no_second_job(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    real = slurm(slurm_cli, "which", "sbatch").strip()
    front = tmp_path / "front"
    front.mkdir()
    (front / "sbatch").write_text(f'#!/bin/bash\n{real} "$@"\necho Socket timed out >&2\nexit 1\n')
    (front / "sbatch").chmod(0o755)
    file = pipeline_file(executor=SLURM, randomize_start_duration=0)
    slurm_cli("launch", file, check=0, PATH=f"{front}:{slurm_cli.env['PATH']}")
    (launch,) = launches(tmp_path / "run")
    assert launch["arrays"][0]["job_id"].isdecimal()
    slurm_cli("retry", tmp_path / "run", "--wait", check=0)  # Nothing is left to launch; it follows the active jobs.
    assert len(launches(tmp_path / "run")) == 1
    assert output_ids(tmp_path / "run-output") == EVERYTHING


def test_a_launch_whose_third_array_is_refused_leaves_nothing(life: Life, tmp_path: Path) -> None:
    front = tmp_path / "front"
    front.mkdir()
    real = {name: slurm(life.cli, "which", name).strip() for name in ("sbatch", "scontrol")}
    count = f"echo x >> {tmp_path}/calls; [[ $(wc -l < {tmp_path}/calls) == 3 ]]"
    refuse = "echo 'sbatch: error: Batch job submission failed: Invalid qos specification' >&2; exit 1"
    (front / "sbatch").write_text(f'#!/bin/bash\n{count} && {{ {refuse}; }}\nexec {real["sbatch"]} "$@"\n')
    small = "s/^(MaxArraySize *= ).*/\\11/"
    (front / "scontrol").write_text(f'#!/bin/bash\n{real["scontrol"]} "$@" | sed -E "{small}"\n')
    for path in front.iterdir():
        path.chmod(0o755)
    file = life.files(executor=SLURM, tasks=5)
    ran = life.cli("launch", file, check=2, PATH=f"{front}:{life.cli.env['PATH']}")
    assert "Invalid qos specification); change executor.qos." in ran.err
    (launch,) = launches(life.run)
    assert [array["job_id"] is not None for array in launch["arrays"]] == [True, True, False, False, False]
    assert "Invalid qos" in launch["refused"]
    names = ",".join(array["name"] for array in launch["arrays"])
    until(lambda: slurm(life.cli, "squeue", "-h", "-n", names) == "", "the first two to be cancelled")
    assert counts(status(life.cli, life.run)) == (0, 0, 0, 5)
