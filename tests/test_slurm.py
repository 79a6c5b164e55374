"""Runs on a real Slurm cluster: what is submitted, what dies, what is found again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from stagger.start.delays import Slots, slot_ms
from tests.conftest import Cli, PipelineFiles, contents, output_ids, until
from tests.test_local import EVERYTHING, counts, status

pytestmark = pytest.mark.slurm

SLURM = {"type": "slurm", "partition": "cpu", "time": 10}


def slurm(cli: Cli, *command: str) -> str:
    return subprocess.run(command, env=cli.env, capture_output=True, text=True, check=True).stdout


def launches(run: Path) -> list[dict[str, Any]]:
    paths = sorted(run.glob("launches/*/launch.json"), key=lambda path: int(path.parent.name))
    return [json.loads(path.read_text()) for path in paths]


def completions(run: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((run / "completions").iterdir())]


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
    # The job that ends the stage merged the statistics.
    assert json.loads((tmp_path / "there" / "stats.json").read_text())["done"] == 4
    # Another launch of a finished run submits nothing.
    slurm_cli("launch", file, check=0)
    assert len(launches(tmp_path / "there")) == 1


def test_each_job_takes_its_slot_and_later_ones_of_a_throttled_run_a_short_one(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    executor = {**SLURM, "workers": 2}
    file = pipeline_file(executor=executor, tasks=6, start_policy="spread", randomize_start_duration=2)
    slurm_cli("launch", file, "--wait", check=0)
    (launch,) = launches(tmp_path / "run")
    fingerprint = json.loads(launch["settings"])["fingerprint"]
    slots = Slots(2, 0, 2, 2, zlib.crc32(f"{fingerprint} 1".encode()))
    for rank, record in enumerate(completions(tmp_path / "run")):
        assert record["delay_s"] == slot_ms(slots, rank) / 1000
        assert record["start_policy"] == "spread"
        assert record["started"] - record["script_started"] >= record["delay_s"]


OWN_TEMPLATE = """\
#!/bin/bash
{% for option in options %}
#SBATCH {{ option }}
{% endfor %}
echo "before: ${LD_LIBRARY_PATH-} ${BASH_ENV-} ${init-}"
{% include "start.sh.j2" %}
echo "after: ${LD_LIBRARY_PATH-} ${BASH_ENV-} ${init-}"
{% include "environment.sh.j2" %}
env
exec {{ python }} -I -m stagger.task {{ settings | quote }} $SLURM_ARRAY_TASK_ID
"""


def test_the_loader_and_bash_look_into_the_users_folders_only_after_the_delay(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    """With a module loaded at launch LD_LIBRARY_PATH names shared folders, and so does Lmod's BASH_ENV."""
    own, init, libraries = tmp_path / "own.j2", tmp_path / "init file.sh", f"{tmp_path}/a,b:{tmp_path}/c d"
    own.write_text(OWN_TEMPLATE)
    init.write_text("init=read\n")
    slurm_cli.env |= {"LD_LIBRARY_PATH": libraries, "BASH_ENV": str(init)}

    def printed(name: str, **sbatch: str) -> list[str]:
        executor = {**SLURM, "template": str(own), "sbatch": sbatch}
        file = pipeline_file(name, tasks=1, executor=executor, randomize_start_duration=0)
        slurm_cli("launch", file, "--wait", check=0)
        (path,) = (tmp_path / name / "launches" / "1" / "slurm").glob("*_0.out")
        return path.read_text().splitlines()

    lines = printed("run")
    found = [line for line in lines if line.startswith(("before: ", "after: ", "STAGGER_LATER", "SLURM_EXPORT_ENV"))]
    assert found == ["before:   ", f"after: {libraries} {init} read"]
    assert {f"LD_LIBRARY_PATH={libraries}", f"BASH_ENV={init}"} <= set(lines)
    # Who chooses what is exported gets just that.
    assert f"before: {libraries} {init} read" in printed("all", export="ALL")


def test_status_is_true_at_each_moment_and_a_second_launch_refuses(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    steps = ({"my_steps:hold": {"flag": str(flag)}},)
    file = pipeline_file(steps=steps, executor={**SLURM, "workers": 2}, randomize_start_duration=0)
    slurm_cli("launch", file, check=0)
    until(lambda: counts(status(slurm_cli, tmp_path / "run")) == (0, 0, 2, 2), "the throttle to let two jobs run")
    (launch,) = launches(tmp_path / "run")
    second = slurm_cli("launch", file, check=2)
    assert f"is already running: Slurm job {launch['arrays'][0]['job_id']} (launch 1)" in second.err
    slurm_cli("retry", tmp_path / "run", check=0)  # Nothing is left that is not active.
    elsewhere = slurm_cli("status", tmp_path / "run", "--json", check=0, PATH="/nonexistent")
    assert counts(elsewhere.json["stages"][0]) == (0, 0, 0, 4)  # No squeue to ask: nothing is called failed.
    assert "no squeue on this machine" in elsewhere.err
    assert len(launches(tmp_path / "run")) == 1
    flag.touch()
    until(lambda: counts(status(slurm_cli, tmp_path / "run")) == (4, 0, 0, 0), "all ranks to be done")
    assert output_ids(tmp_path / "run-output") == EVERYTHING


def test_a_killed_task_is_found_and_only_it_is_run_again(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    slurm_cli("launch", pipeline_file("undisturbed"), check=0)
    flag = tmp_path / "flag"
    steps = ({"my_steps:kill_on": {"ranks": [1], "flag": str(flag)}},)
    file = pipeline_file(steps=steps, executor=SLURM, randomize_start_duration=0)
    ran = slurm_cli("launch", file, "--wait", check=1)
    assert "1 rank of" in ran.err
    visible = [name for name in contents(tmp_path / "run-output") if not name.startswith(".")]
    assert visible == ["00000.jsonl.zst", "00002.jsonl.zst", "00003.jsonl.zst"]
    stage = status(slurm_cli, tmp_path / "run")
    assert (counts(stage), stage["failed_ranks"]) == ((3, 1, 0, 0), [1])
    until(lambda: status(slurm_cli, tmp_path / "run")["reasons"] == {"lost (FAILED)": 1}, "accounting to know")
    assert json.loads((tmp_path / "run" / "stats.json").read_text())["missing_ranks"] == "1"
    assert "rank 1: " in slurm_cli("logs", tmp_path / "run", "--failed", check=0).out
    assert "rank 1, attempt 1" in slurm_cli("logs", tmp_path / "run", "--rank", 1, "--follow", check=0).out
    flag.touch()
    before = contents(tmp_path / "run" / "completions")
    slurm_cli("retry", tmp_path / "run", "--wait", check=0)
    assert launches(tmp_path / "run")[1]["ranks"] == "1"
    after = contents(tmp_path / "run" / "completions")
    assert {name: after[name] for name in before} == before
    assert contents(tmp_path / "run-output") == contents(tmp_path / "undisturbed-output")
    assert json.loads((tmp_path / "run" / "stats.json").read_text())["missing_ranks"] == ""


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
    assert (counts(stage), stage["failed_ranks"]) == ((7, 5, 0, 0), failing)  # One that fails stops no packed other.
    flag.touch()
    slurm_cli("retry", tmp_path / "run", "--wait", check=0)
    again = launches(tmp_path / "run")[1]
    assert (again["arrays"][0]["jobs"], again["ranks"]) == (3, "0,3-5,9")
    by_rank = {record["rank"]: record["job"] for record in completions(tmp_path / "run")}
    array = again["arrays"][0]["job_id"]
    assert [by_rank[rank] for rank in failing] == [f"{array}_0", f"{array}_0", f"{array}_1", f"{array}_1", f"{array}_2"]
    assert by_rank[1] == by_rank[1].replace(array, launch["arrays"][0]["job_id"])


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


def test_a_job_that_is_cancelled_in_its_delay_ends_at_once(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    executor = {**SLURM, "time": "2-00:00:00"}
    file = pipeline_file(tasks=2, executor=executor, randomize_start_duration=86_400)
    slurm_cli("launch", file, check=0)
    until(lambda: status(slurm_cli, tmp_path / "run")["sleeping"] == 2, "the jobs to sleep")
    (launch,) = launches(tmp_path / "run")
    slurm(slurm_cli, "scancel", f"{launch['arrays'][0]['job_id']}_1")
    stage = until(lambda: (s := status(slurm_cli, tmp_path / "run"))["failed"] and s, "the job to end")
    assert (counts(stage), stage["sleeping"], stage["failed_ranks"]) == ((0, 1, 1, 0), 1, [1])


def test_a_job_that_never_reaches_python_is_failed_not_done(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    executor = {**SLURM, "env": {"setup": ["echo this node is broken", "exit 0"]}}
    file = pipeline_file(executor=executor, randomize_start_duration=0)
    slurm_cli("launch", file, "--wait", check=1)
    stage = status(slurm_cli, tmp_path / "run")
    assert counts(stage) == (0, 4, 0, 0)
    # Exit status 0, and yet not done: accounting, a moment later, tells how the jobs ended.
    until(lambda: status(slurm_cli, tmp_path / "run")["reasons"] == {"lost (COMPLETED)": 4}, "accounting to know")
    assert "this node is broken" in slurm_cli("logs", tmp_path / "run", "--failed").out
    assert "this node is broken" in slurm_cli("logs", tmp_path / "run", "--rank", "2").out


def test_environment_is_set_up_before_the_task(slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    (tmp_path / "show.py").write_text(
        "import os, sys\n"
        "def show(data, rank, world_size):\n"
        "    print(os.environ['GREETING'], sys.prefix, os.environ['VIRTUAL_ENV'], os.getcwd())\n"
        "    yield from data\n"
    )
    env = {"setup": ["export GREETING='it'\"'\"'s set up'"], "venv": sys.prefix}
    file = pipeline_file(
        steps=("show:show",), tasks=1, executor={**SLURM, "env": env, "sbatch": {"comment": "a 'b' $c"}}
    )
    slurm_cli("launch", file, "--wait", check=0)
    log = slurm_cli("logs", tmp_path / "run", "--rank", "0", check=0).out
    assert f"it's set up {sys.prefix} {sys.prefix} {tmp_path}" in log


def test_gpus_are_asked_for(slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    (tmp_path / "show.py").write_text(
        "import os\n"
        "def show(data, rank, world_size):\n"
        "    print('devices', os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "    yield from data\n"
    )
    executor = {"type": "slurm", "partition": "gpu", "gpus_per_task": 2, "mem_per_cpu_gb": 0.5}
    slurm_cli("launch", pipeline_file(steps=("show:show",), tasks=1, executor=executor), "--wait", check=0)
    assert re.search(r"devices \d,\d", slurm_cli("logs", tmp_path / "run", "--rank", "0", check=0).out)


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
    assert "Slurm refused" in launch["cancelled"]
    assert counts(status(slurm_cli, tmp_path / "run")) == (0, 0, 0, 4)
    slurm_cli("launch", pipeline_file(executor=SLURM, randomize_start_duration=0), "--wait", check=0)
    assert output_ids(tmp_path / "run-output") == EVERYTHING


def test_arrays_are_split_at_the_clusters_limit_and_hold_one_throttle(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    """A scontrol in front of the real one tells a smaller MaxArraySize; all else is the cluster."""
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
    too_few = ("--set", "executor.workers=2", "--run-dir", tmp_path / "other")
    assert "set workers to 3 or more" in slurm_cli("launch", file, "--dry-run", *too_few, check=2).err


def test_stages_launch_one_another_and_one_that_fails_holds_the_next_back(
    slurm_cli: Cli, tmp_path: Path, pipeline_file: PipelineFiles
) -> None:
    flag = tmp_path / "flag"
    middle, end = str(tmp_path / "middle"), str(tmp_path / "end")
    failing = {"my_steps:fail_on": {"ranks": [1], "flag": str(flag)}}
    source = {"read_jsonl": {"path": str(pipeline_file.shards)}}
    stages = [
        {"name": "first", "tasks": 3, "pipeline": [source, failing, {"write_jsonl": {"path": middle}}]},
        {
            "name": "second",
            "depends": ["first"],
            "tasks": 2,
            "pipeline": [{"read_jsonl": {"path": middle}}, {"write_jsonl": {"path": end}}],
        },
    ]
    file = tmp_path / "p.yaml"
    run = tmp_path / "run"
    content = {"name": "p", "run_dir": str(run), "executor": SLURM, "randomize_start_duration": 0, "stages": stages}
    file.write_text(json.dumps(content))
    slurm_cli("launch", file, "--wait", check=1)
    assert list(Path(end).iterdir()) == []
    assert not (run / "second" / "launches").exists()
    flag.touch()
    slurm_cli("retry", run, "--wait", check=0)  # The stage's last job launches the next one; we only follow.
    assert output_ids(Path(end)) == EVERYTHING
    document = slurm_cli("status", run, "--json", check=0).json
    assert [(stage["name"], stage["done"]) for stage in document["stages"]] == [("first", 3), ("second", 2)]


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
    slurm_cli("retry", tmp_path / "run", "--wait", check=0)  # Nothing is left to launch; it follows what is active.
    assert len(launches(tmp_path / "run")) == 1
    assert output_ids(tmp_path / "run-output") == EVERYTHING


def test_failing_stages_are_not_launched_again_while_they_are_followed(
    slurm_cli: Cli, tmp_path: Path, pipeline_file: PipelineFiles
) -> None:
    source = {"read_jsonl": {"path": str(pipeline_file.shards)}}
    failing = {"my_steps:fail_on": {"ranks": [0, 1]}}
    stages = [
        {"name": "a", "tasks": 2, "pipeline": [source, failing]},
        {"name": "b", "tasks": 2, "pipeline": [source, failing], "executor": {"type": "local"}},
        {"name": "c", "tasks": 2, "pipeline": [source], "depends": ["a"], "executor": {"type": "local"}},
    ]
    content = {"name": "p", "run_dir": "run", "executor": SLURM, "randomize_start_duration": 0, "stages": stages}
    (tmp_path / "p.yaml").write_text(json.dumps(content))
    slurm_cli("launch", "p.yaml", "--wait", check=1)
    assert [len(launches(tmp_path / "run" / name)) for name in "abc"] == [1, 1, 0]


def test_launching_from_inside_a_job(slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    """The surrounding job's variables must not leak: sbatch would take its options from them."""
    file = pipeline_file(executor=SLURM, randomize_start_duration=0)
    outer = f"cd {tmp_path} && exec {sys.executable} -m stagger launch {file} --wait"
    slurm(slurm_cli, "sbatch", "--array=3", f"--output={tmp_path}/outer", "--mem=50", "--wrap", outer)
    until(lambda: (tmp_path / "outer").exists() and "The result is in" in (tmp_path / "outer").read_text(), "the run")
    assert output_ids(tmp_path / "run-output") == EVERYTHING


def test_python_objects_run_as_jobs(slurm_cli: Cli, tmp_path: Path, shards: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from stagger import ReadJsonl, SlurmExecutor, WriteJsonl\n"
        "suffix = '!'\n"
        "def shout(data, rank, world_size):\n"
        "    for document in data:\n"
        "        document.text += suffix\n"
        "        yield document\n"
        f"executor = SlurmExecutor([ReadJsonl({str(shards)!r}), shout, lambda data, rank, world_size: data,\n"
        f"    WriteJsonl({str(tmp_path / 'out')!r})], tasks=3, run_dir={str(tmp_path / 'run')!r}, partition='cpu',\n"
        "    randomize_start_duration=0)\n"
        "print(executor.run().stages[0].done)\n"
    )
    done = subprocess.run([sys.executable, script], env=slurm_cli.env, capture_output=True, text=True, check=True)
    assert done.stdout == "3\n"
    assert output_ids(tmp_path / "out") == EVERYTHING
    (pickle,) = tmp_path.glob("run/launches/1/pipeline.pkl")
    assert os.stat(pickle).st_mode & 0o077 == 0


def test_a_requeued_job_sleeps_again_and_is_another_attempt(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    steps = ({"my_steps:hold": {"ranks": [1], "flag": str(flag)}},)
    file = pipeline_file(steps=steps, executor=SLURM, start_policy="spread", randomize_start_duration=2)
    slurm_cli("launch", file, check=0)
    until((tmp_path / "flag-1").exists, "rank 1 to run")
    (launch,) = launches(tmp_path / "run")
    slurm(slurm_cli, "scontrol", "requeue", f"{launch['arrays'][0]['job_id']}_1")
    (tmp_path / "flag-1").unlink()
    until((tmp_path / "flag-1").exists, "rank 1 to run again")
    flag.touch()
    until(lambda: counts(status(slurm_cli, tmp_path / "run")) == (4, 0, 0, 0), "all ranks to be done")
    record = completions(tmp_path / "run")[1]
    assert (record["attempt"], record["restart"]) == ("1r1", 1)
    slots = Slots(2, 0, 4, 2, zlib.crc32(f"{record['fingerprint']} 1".encode()))
    assert record["delay_s"] == slot_ms(slots, 1, restart=1) / 1000 != slot_ms(slots, 1) / 1000
    assert sorted(path.name for path in (tmp_path / "run" / "logs" / "00001").iterdir()) == ["1.log", "1r1.log"]
    assert output_ids(tmp_path / "run-output") == EVERYTHING
