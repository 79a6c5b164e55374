"""The end of a stage: what its end job does is recorded and shown, and a waiting command acts where it did not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from stagger.launch import finalize
from tests.conftest import Cli, PipelineFiles, until
from tests.kit.runs import launches, status

#: A stand-in for sbatch that runs the elements of an array at once, and forgets them. It runs an end job if the file
#: END exists, and waits for it if that says `first`. If the file REFUSE exists, it refuses what an end job submits;
#: if REFUSE_END exists, it refuses end jobs.
SBATCH = """
for script; do :; done
echo "$script" >>{folder}/submitted
id=$(wc -l <{folder}/submitted)
if [[ $END_JOB && -e {folder}/REFUSE ]]; then
  echo "sbatch: error: $(<{folder}/REFUSE)" >&2
  exit 1
fi
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
if [[ $last ]]; then
  for element in $(seq 0 "$last"); do
    SLURM_JOB_ID=$id$element SLURM_ARRAY_JOB_ID=$id SLURM_ARRAY_TASK_ID=$element bash "$script" &>/dev/null
  done
elif [[ -e {folder}/REFUSE_END ]]; then
  echo "sbatch: error: $(<{folder}/REFUSE_END)" >&2
  exit 1
elif [[ -e {folder}/END ]]; then
  cp "$script" {folder}/$id.sh
  SLURM_JOB_ID=$id SLURMD_NODENAME=n3 END_JOB=yes bash {folder}/$id.sh &>>{folder}/end.out &
  grep -q first {folder}/END && wait
fi
echo "Submitted batch job $id"
"""

COMMANDS = {
    "sbatch": SBATCH,
    "srun": "true",
    "squeue": "true",
    "sacct": "cat {folder}/accounting 2>/dev/null; true",
    "scancel": "true",
    "scontrol": "echo 'MaxArraySize = 1001'",
}


@pytest.fixture
def slurm_cli(cli: Cli, tmp_path: Path) -> Cli:
    """The command line on a machine with stand-ins for Slurm's commands."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, does in COMMANDS.items():
        (folder / name).write_text(f"#!/bin/bash\n{does.format(folder=folder)}\n")
        (folder / name).chmod(0o755)
    cli.env["PATH"] = f"{folder}:{os.environ['PATH']}"
    return cli


def bin_file(cli: Cli, name: str) -> Path:
    return cli.folder / "bin" / name


SLURM = {"type": "slurm"}


def two_stages(cli: Cli, files: PipelineFiles, **executor: Any) -> Path:
    source = {"read_jsonl": {"path": str(files.shards)}}
    stages = [
        {"name": "a", "tasks": 2, "pipeline": [source]},
        {"name": "b", "tasks": 2, "pipeline": [source], "depends": ["a"]},
    ]
    content = {"name": "p", "run_dir": "run", "executor": {**SLURM, **executor}, "randomize_start_duration": 0}
    (cli.folder / "p.yaml").write_text(json.dumps({**content, "stages": stages}))
    return cli.folder / "p.yaml"


def stages(cli: Cli) -> dict[str, dict[str, Any]]:
    found = cli("status", cli.folder / "run", "--json").json["stages"]
    return {stage["name"]: stage for stage in found}


def ended(cli: Cli, *parts: str) -> dict[str, Any]:
    """The record of an end, once it has ended."""
    path = cli.folder.joinpath("run", *parts, "end.json")
    until(lambda: path.exists() and json.loads(path.read_text())["ended"], f"{path} to have ended")
    return dict(json.loads(path.read_text()))


def test_an_end_job_records_and_shows_what_it_did(slurm_cli: Cli, pipeline_file: PipelineFiles) -> None:
    bin_file(slurm_cli, "END").touch()
    slurm_cli("launch", two_stages(slurm_cli, pipeline_file), check=0)
    ended(slurm_cli, "b", "launches", "1")
    found = stages(slurm_cli)
    assert [(stage["done"], stage["end"]["state"]) for stage in found.values()] == [(2, "done"), (2, "done")]
    assert found["a"]["end"]["message"] == "end job 2 on n3: all 2 ranks are done; launched b"
    assert "end: end job 4 on n3: all 2 ranks are done\n" in slurm_cli("status", slurm_cli.folder / "run").out


def test_an_end_job_decides_how_many_ranks_the_next_stage_gets(slurm_cli: Cli, pipeline_file: PipelineFiles) -> None:
    bin_file(slurm_cli, "END").touch()
    file = two_stages(slurm_cli, pipeline_file)
    file.write_text(file.read_text().replace('"name": "b", "tasks": 2', '"name": "b", "tasks": "auto"'))
    slurm_cli("launch", file, "--wait", check=0)  # This process, too, learns the number.
    found = stages(slurm_cli)
    assert [(stage["done"], stage["tasks"]) for stage in found.values()] == [(2, 2), (12, 12)]
    scripts = (slurm_cli.folder / "run" / "b" / "launches" / "1").glob("*.sh")
    assert any("#SBATCH --array=0-11" in script.read_text() for script in scripts)


def test_an_end_job_that_vanished_is_told_with_the_command_to_type(
    slurm_cli: Cli, pipeline_file: PipelineFiles
) -> None:
    slurm_cli("launch", two_stages(slurm_cli, pipeline_file), check=0)
    message = stages(slurm_cli)["a"]["end"]["message"]
    run = slurm_cli.folder / "run"
    assert message.startswith("end job 2 ended without a record, and Slurm does not know it any more")
    assert message.endswith(f"; b will not start; nothing more starts by itself: stagger retry {run}")
    bin_file(slurm_cli, "accounting").write_text("2|OUT_OF_MEMORY|0:125|n1\n")
    output = run / "a" / "launches" / "1" / "slurm" / "finalize-2.out"
    output.write_text("first\nslurmstepd: error: Detected 1 oom_kill event\n")
    message = stages(slurm_cli)["a"]["end"]["message"]
    assert f"end job 2 ended (OUT_OF_MEMORY) before it was done; its output, {output}, ends with: slurmst" in message
    bin_file(slurm_cli, "accounting").write_text("2|CANCELLED by 0|0:15|n1\n")
    assert stages(slurm_cli)["a"]["end"]["message"].startswith("end job 2 was cancelled; b will not start")
    slurm_cli("retry", run, check=0)
    assert "end" not in slurm_cli("status", run).out.partition("  b  ")[0].partition("  a  ")[2]


@pytest.mark.parametrize(
    ("refusal", "advice"),
    [
        ("Batch job submission failed: Access/permission denied", "executor.nodes_submit: false"),
        ("Batch job submission failed: Invalid qos specification", "change executor.qos"),
    ],
)
def test_ranks_stay_failed_with_their_reasons_when_their_retry_is_refused(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, refusal: str, advice: str
) -> None:
    bin_file(slurm_cli, "END").touch()
    bin_file(slurm_cli, "REFUSE").write_text(refusal)
    file = pipeline_file(
        steps=({"my_steps:fail_on": {"ranks": [1, 3]}},),
        executor=SLURM,
        retries={"max": 1},
        randomize_start_duration=0,
    )
    slurm_cli("launch", file, check=0)
    record = ended(slurm_cli, "launches", "1")
    assert refusal in record["error"]
    assert advice in record["error"]
    stage = status(slurm_cli, tmp_path / "run")
    assert (stage["done"], stage["failed"], stage["pending"], stage["cancelled"]) == (2, 2, 0, 0)
    assert stage["reasons"] == {"ValueError in my_steps:fail_on": 2}
    assert stage["end"]["state"] == "failed"
    assert stage["end"]["message"].endswith(f"nothing more starts by itself: stagger retry {tmp_path}/run")
    assert refusal in launches(tmp_path / "run")[1]["refused"]
    bin_file(slurm_cli, "REFUSE").unlink()
    slurm_cli("retry", tmp_path / "run", check=0)  # It does what the end job could not: the first retry.
    assert [array["tries"] for array in launches(tmp_path / "run")[2]["arrays"]] == [1]
    ended(slurm_cli, "launches", "3")
    assert "FAILED after 1 retry (retries.max)" in status(slurm_cli, tmp_path / "run")["end"]["message"]


def test_a_launch_that_is_refused_at_once_is_no_try(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    bin_file(slurm_cli, "REFUSE").write_text("no")
    file = pipeline_file(executor=SLURM, randomize_start_duration=0)
    assert "Slurm refused the job" in slurm_cli("launch", file, END_JOB="yes", check=2).err
    stage = status(slurm_cli, tmp_path / "run")
    assert (stage["pending"], stage["cancelled"], stage["end"]) == (4, 0, {})


def test_a_refused_end_job_names_its_keys(slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    bin_file(slurm_cli, "REFUSE_END").write_text("CPU job setup is not valid")
    error = slurm_cli("launch", pipeline_file(executor=SLURM, randomize_start_duration=0), check=2).err
    assert "Slurm refused the end job of run (CPU job setup is not valid); change executor.end." in error
    assert "the end job of run" in launches(tmp_path / "run")[0]["refused"]


def test_a_waiting_command_acts_in_place_of_end_jobs_that_failed_or_vanished(
    slurm_cli: Cli, pipeline_file: PipelineFiles
) -> None:
    slurm_cli("launch", two_stages(slurm_cli, pipeline_file), "--wait", check=0)  # No end job runs.
    assert ended(slurm_cli, "a", "launches", "1")["said"] == ["all 2 ranks are done", "launched b"]
    assert [stage["end"]["state"] for stage in stages(slurm_cli).values()] == ["done", "done"]
    assert (slurm_cli.folder / "run" / "b" / "stats.json").exists()


def test_a_waiting_command_retries_as_the_end_job_would(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    file = pipeline_file(
        steps=({"my_steps:fail_on": {"ranks": [1]}},), executor=SLURM, retries={"max": 3}, randomize_start_duration=0
    )
    slurm_cli("launch", file, "--wait", check=1)
    tried = [launch["arrays"][0]["tries"] for launch in launches(tmp_path / "run") if not launch.get("refused")]
    assert tried == [0, 1]
    assert "given up: rank 1: the same error twice" in status(slurm_cli, tmp_path / "run")["end"]["message"]


def test_a_waiting_command_does_not_act_for_an_end_job_that_somebody_cancelled(
    slurm_cli: Cli, pipeline_file: PipelineFiles
) -> None:
    bin_file(slurm_cli, "accounting").write_text("2|CANCELLED by 1000|0:15|n1\n")
    done = slurm_cli("launch", two_stages(slurm_cli, pipeline_file), "--wait", check=1)
    assert "(b: 0-1); launch them again with: stagger retry" in done.err
    assert not (slurm_cli.folder / "run" / "b" / "launches").exists()


def test_where_jobs_may_not_submit_commands_launch_what_follows(slurm_cli: Cli, pipeline_file: PipelineFiles) -> None:
    bin_file(slurm_cli, "END").touch()
    file = two_stages(slurm_cli, pipeline_file, nodes_submit=False)
    run = slurm_cli.folder / "run"
    said = slurm_cli("launch", file, check=0).err
    assert f"the stage b will be started by launch --wait, or when you type: stagger retry {run}" in said
    record = ended(slurm_cli, "a", "launches", "1")
    assert (record["error"], record["left"]) == ("", ["the stage b"])
    assert (run / "a" / "stats.json").exists()
    found = stages(slurm_cli)
    assert (found["a"]["end"]["state"], found["b"]["pending"]) == ("left", 2)
    assert (
        f"left to do: the stage b; b will not start; nothing more starts by itself: stagger retry {run}"
        in (found["a"]["end"]["message"])
    )
    slurm_cli("retry", run, "--wait", check=0)
    assert [(stage["done"], stage["end"]["state"]) for stage in stages(slurm_cli).values()] == [
        (2, "done"),
        (2, "done"),
    ]


def test_a_waiting_command_launches_all_that_jobs_may_not(slurm_cli: Cli, pipeline_file: PipelineFiles) -> None:
    bin_file(slurm_cli, "END").write_text("first")
    slurm_cli("launch", two_stages(slurm_cli, pipeline_file, nodes_submit=False), "--wait", check=0)
    assert [stage["done"] for stage in stages(slurm_cli).values()] == [2, 2]
    assert ended(slurm_cli, "a", "launches", "1")["by"].startswith("a waiting command on ")


def test_an_error_that_nobody_foresaw_is_recorded(slurm_cli: Cli, pipeline_file: PipelineFiles) -> None:
    bin_file(slurm_cli, "END").touch()
    run = slurm_cli.folder / "run"
    (run / "a" / "stats.json").mkdir(parents=True)  # It cannot be replaced by a file.
    run.chmod(0o700)
    slurm_cli("launch", two_stages(slurm_cli, pipeline_file), check=0)
    assert "stats.json" in ended(slurm_cli, "a", "launches", "1")["error"]
    assert "stats.json" in stages(slurm_cli)["a"]["end"]["message"]


class Stopped(BaseException):
    """Slurm has stopped the job."""


@pytest.fixture
def full_cluster(slurm_cli: Cli, pipeline_file: PipelineFiles, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose first stage is done, on a cluster where the user's jobs take up MaxSubmitJobs; returns its settings.

    The file `used` holds their number.
    """
    slurm_cli("launch", two_stages(slurm_cli, pipeline_file), check=0)
    folder = slurm_cli.folder / "bin"
    usage = "ClusterName=c Account=a UserName=me(1) Partition= DefAssoc=Yes\\n MaxSubmitJobs=5($(<{folder}/used))"
    config = "AccountingStorageEnforce = limits"
    shown = f'case $2 in config) echo "{config}";; assoc_mgr) echo -e "{usage}";; esac'
    answers = {
        "sacctmgr": "[[ $4 == assoc ]] && echo 'a|||5'; true",
        "scontrol": f'echo "$@" >>{{folder}}/asked; {shown}',
    }
    for name, does in answers.items():
        (folder / name).write_text(f"#!/bin/bash\n{does.format(folder=folder)}\n")
        (folder / name).chmod(0o755)
    (folder / "used").write_text("4")
    monkeypatch.setenv("PATH", slurm_cli.env["PATH"])
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.chdir(slurm_cli.folder)
    return slurm_cli.folder / "run" / "a" / "launches" / "1" / "settings.json"


def test_an_end_job_waits_for_room(full_cluster: Path, slurm_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []

    def others_end(_: float) -> None:
        waits.append(json.loads((full_cluster.parent / "end.json").read_text())["said"][0])
        bin_file(slurm_cli, "used").write_text("1")

    monkeypatch.setattr(finalize, "sleep", others_end)
    assert finalize.main([str(slurm_cli.folder / "run"), "a", str(full_cluster)]) == 0
    (said,) = waits
    assert "waits: The launch of b needs 3 jobs" in said
    assert "your MaxSubmitJobs in the account a is 5, and 4 jobs count against it now" in said
    assert ended(slurm_cli, "a", "launches", "1")["said"] == ["all 2 ranks are done", "launched b"]


def test_an_end_job_that_waits_goes_back_into_the_queue_in_time(
    full_cluster: Path, slurm_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(_: float) -> None:
        raise Stopped

    monkeypatch.setattr(finalize, "sleep", stopped)
    monkeypatch.setattr(finalize, "SHARE", -1)
    with pytest.raises(Stopped):
        finalize.main([str(slurm_cli.folder / "run"), "a", str(full_cluster)])
    assert "requeue 5" in bin_file(slurm_cli, "asked").read_text()
    record = json.loads((full_cluster.parent / "end.json").read_text())
    assert record["ended"] is None
    monkeypatch.setattr(finalize, "PATIENCE_S", -1)  # It does not wait for ever, all its tries together.
    assert finalize.main([str(slurm_cli.folder / "run"), "a", str(full_cluster)]) == 2
    assert ended(slurm_cli, "a", "launches", "1")["started"] == record["started"]
