"""What clusters do to jobs, on a real one: after each, the outputs equal those of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CLUSTER, Cli, PipelineFiles, contents, until
from tests.s3_server import running
from tests.test_local import counts, status
from tests.test_slurm import SLURM, completions, launches, slurm

pytestmark = pytest.mark.slurm

RECORDS = 12 * 50


class Life:
    """A run on the cluster, and the same one undisturbed, on this machine, to compare with."""

    def __init__(self, cli: Cli, files: PipelineFiles, folder: Path) -> None:
        self.cli = cli
        self.files = files
        self.folder = folder
        self.run = folder / "run"
        self.flag = folder / "flag"
        self.more: dict[str, Any] = {}

    def launch(self, *steps: dict[str, Any], executor: dict[str, Any] | None = None, **more: Any) -> None:
        """Launch it, with `flag` given to each step."""
        steps = tuple({name: {**params, "flag": str(self.flag)}} for step in steps for name, params in step.items())
        self.more = {"tasks": 4, "randomize_start_duration": 0, **more}
        self.cli("launch", self.files(steps=steps, executor={**SLURM, **(executor or {})}, **self.more), check=0)

    @property
    def array(self) -> str:
        """The id of the first array."""
        return str(launches(self.run)[0]["arrays"][0]["job_id"])

    def begun(self, rank: int) -> Path:
        """Wait until a step says that it is at work on the rank."""
        path = Path(f"{self.flag}-{rank}")
        until(path.exists, f"rank {rank} to be at work")
        return path

    def pid(self, rank: int) -> int:
        """The process at work on a rank: that which has its log open."""
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal() and f"/logs/{rank:05d}/" in links(folder / "fd", self.run):
                return int(folder.name)
        raise AssertionError(f"nobody is at work on rank {rank}")

    def finish(self) -> None:
        """Wait for the end, and compare."""
        until(lambda: counts(status(self.cli, self.run)) == (self.more["tasks"], 0, 0, 0), "all ranks to be done")
        self.compare()

    def compare(self) -> None:
        """The outputs are those of a run that nobody disturbed, and every record is in them once."""
        here = {key: value for key, value in self.more.items() if key in ("tasks", "writer")}
        self.cli("launch", self.files("undisturbed", **here), check=0)
        assert visible(self.folder / "run-output") == visible(self.folder / "undisturbed-output")
        records = completions(self.run)
        assert [record["rank"] for record in records] == list(range(self.more["tasks"]))
        assert sum(record["records_in"] for record in records) == RECORDS
        assert sum(record["records_out"] for record in records) == RECORDS


def links(folder: Path, below: Path) -> str:
    """Where the descriptors of a process lead, as far as below a folder."""
    try:
        found = [os.readlink(path) for path in folder.iterdir()]
    except OSError:
        return ""
    return " ".join(path for path in found if path.startswith(str(below)))


def visible(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if not name.startswith(".")}


@pytest.fixture
def life(slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> Iterator[Life]:
    yield Life(slurm_cli, pipeline_file, tmp_path)
    # What was done to a node must not be felt by the next test.
    for node in ("n1", "n2", "n3", "n4"):
        command = ["scontrol", "update", f"NodeName={node}", "State=RESUME"]
        subprocess.run(command, env=slurm_cli.env, capture_output=True, check=False)


RETRIES = {"max": 2}


def test_a_killed_task_is_tried_again_by_the_job_that_ends_the_stage(life: Life) -> None:
    life.launch({"my_steps:hold": {"ranks": [1]}}, retries=RETRIES)
    life.begun(1)
    os.kill(life.pid(1), signal.SIGKILL)
    life.flag.touch()
    life.finish()
    first, second = launches(life.run)
    assert (first["ranks"], second["ranks"], second["arrays"][0]["tries"]) == ("0-3", "1", 1)


def test_a_job_whose_keeper_is_killed_is_tried_again(life: Life) -> None:
    """slurmstepd, which watches over a job for Slurm."""
    life.launch({"my_steps:hold": {"ranks": [1]}}, retries=RETRIES)
    life.begun(1)
    task = life.pid(1)
    keeper = int(Path(f"/proc/{task}/stat").read_text().rpartition(")")[2].split()[1])
    assert "slurmstepd" in Path(f"/proc/{keeper}/cmdline").read_text()
    node = slurm(life.cli, "squeue", "-h", "-j", f"{life.array}_1", "-o", "%N").strip()
    os.kill(keeper, signal.SIGKILL)
    os.kill(task, signal.SIGKILL)
    life.flag.touch()
    # Slurm believes a job to be alive until its node registers again, which SIGHUP makes it do. `scontrol reconfigure`
    # would not always serve: from 23.11 on it restarts slurmctld too, which then believes in each job for 20 s more.
    while not restarted(life):
        with suppress(OSError, ValueError):  # slurmd may be about to write another pid.
            os.kill(daemon(f"slurmd.{node}"), signal.SIGHUP)
        time.sleep(2)
    life.finish()
    assert completions(life.run)[1]["attempt"] == "1r1"


def restarted(life: Life, rank: int = 1) -> bool:
    return (life.run / "logs" / f"{rank:05d}" / "1r1.log").exists()


def test_one_cancelled_element_is_left_to_its_user(life: Life) -> None:
    life.launch({"my_steps:dawdle": {"ranks": [1]}}, retries=RETRIES)
    life.begun(1)
    slurm(life.cli, "scancel", f"{life.array}_1")
    until(lambda: "given up" in finalize_log(life), "the stage to end")
    assert "CANCELLED is not tried again" in finalize_log(life)
    assert len(launches(life.run)) == 1
    life.cli("retry", life.run, "--wait", check=0)
    life.compare()


def finalize_log(life: Life) -> str:
    logs = sorted((life.run / "launches").glob("*/slurm/finalize-*.out"))
    return "".join(path.read_text() for path in logs)


def test_a_requeue_by_hand_loses_nothing(life: Life) -> None:
    life.launch({"my_steps:dawdle": {"ranks": [1]}})
    life.begun(1)
    slurm(life.cli, "scontrol", "requeue", f"{life.array}_1")
    life.finish()
    record = completions(life.run)[1]
    assert (record["attempt"], record["launch"]) == ("1r1", 1)
    assert len(launches(life.run)) == 1


def test_at_its_time_limit_a_job_goes_on_with_the_first_shard_that_is_not_committed(life: Life) -> None:
    life.launch(
        {"my_steps:linger": {"first": 250}},
        executor={"time": 1},
        tasks=2,
        commit="shard",
        writer={"filename": "{stem}.jsonl"},
    )
    begun = life.begun(1)
    until(lambda: restarted(life), "Slurm to warn it, and to start it again")
    life.flag.touch()
    begun.unlink()
    life.finish()
    record = completions(life.run)[1]
    assert record["attempt"] == "1r1"
    log = (life.run / "logs" / "00001" / "1r1.log").read_text()
    assert "goes on after 2 shards, which attempt 1 committed" in log
    assert len(record["outputs"]) == record["shards"] == 6


def test_a_rank_that_gets_nothing_done_in_its_time_is_tried_again_with_more(life: Life) -> None:
    life.launch({"my_steps:linger": {"first": 550, "seconds": 2}}, executor={"time": 1}, retries={"time_factor": 3})
    life.begun(3)
    until(lambda: len(launches(life.run)) == 2, "the stage to end, and the rank to be launched again", 240)
    life.flag.touch()
    life.finish()
    second = launches(life.run)[1]
    assert (second["ranks"], second["arrays"][0]["time_scale"]) == ("3", 3.0)
    script = (life.run / "launches" / "2" / f"{second['arrays'][0]['name']}.sh").read_text()
    assert "#SBATCH --time=0-00:03:00" in script
    assert not restarted(life, 3)  # It would have come no further.


def test_a_preempted_job_queues_itself_again(life: Life) -> None:
    """As Slurm preempts with a grace time: SIGTERM to the batch script, and the job goes on running for a while."""
    life.launch({"my_steps:dawdle": {"ranks": [1]}})
    life.begun(1)
    slurm(life.cli, "scancel", "--batch", "--signal=TERM", f"{life.array}_1")
    until(lambda: restarted(life), "it to begin again")
    life.finish()
    assert completions(life.run)[1]["attempt"] == "1r1"


def test_a_job_that_was_queued_again_often_enough_is_failed(life: Life) -> None:
    life.launch({"my_steps:dawdle": {"ranks": [1]}}, executor={"max_requeues": 0})
    life.begun(1)
    slurm(life.cli, "scancel", "--batch", "--signal=TERM", f"{life.array}_1")
    until(lambda: counts(status(life.cli, life.run)) == (3, 1, 0, 0), "it to end")
    assert status(life.cli, life.run)["reasons"] == {"PREEMPTED": 1}
    output = (life.run / "launches" / "1" / "slurm" / f"{life.array}_1.out").read_text()
    assert "not queued again after 0 times (executor.max_requeues)" in output
    life.cli("retry", life.run, "--wait", check=0)
    life.compare()


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
    assert "Invalid qos" in launch["cancelled"]
    names = ",".join(array["name"] for array in launch["arrays"])
    until(lambda: slurm(life.cli, "squeue", "-h", "-n", names) == "", "the first two to be cancelled")
    assert counts(status(life.cli, life.run)) == (0, 0, 0, 5)


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
    """Not even a log can be written there."""
    executor = {**SLURM, "sbatch": {"hold": True}, "log_dir": str(life.folder / "slurm")}
    life.cli("launch", life.files(executor=executor, tasks=1, randomize_start_duration=0), check=0)
    (life.run / "logs").write_text("not a folder")
    slurm(life.cli, "scontrol", "release", launches(life.run)[0]["arrays"][0]["job_id"])
    stage = until(lambda: (s := status(life.cli, life.run))["failed"] == 1 and s, "the rank to fail")
    assert stage["reasons"] == {"lost (FAILED)": 1}
    assert f"the run directory {life.run} cannot be used" in life.cli("logs", life.run, "--failed", check=0).out


def test_a_node_that_is_set_down_gives_its_jobs_to_another(life: Life) -> None:
    life.launch({"my_steps:hold": {"ranks": [1]}})
    life.begun(1)
    node = slurm(life.cli, "squeue", "-h", "-j", f"{life.array}_1", "-o", "%N").strip()
    slurm(life.cli, "scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    until(lambda: restarted(life), "another node to begin the rank")
    life.flag.touch()
    life.finish()
    assert completions(life.run)[1]["attempt"] == "1r1"


def test_a_rank_that_runs_out_of_memory_gets_twice_as_much(life: Life) -> None:
    """Slurm looks at a job's memory every second here, and ends one that has too much."""
    executor = {"mem_per_cpu_gb": 0.2, "sbatch": {"acctg-freq": "task=1"}}
    life.launch({"my_steps:need_memory": {"ranks": [1], "mb": 300}}, executor=executor, retries=RETRIES)
    life.finish()
    second = launches(life.run)[1]
    assert (second["ranks"], second["arrays"][0]["memory_scale"]) == ("1", 2.0)
    script = (life.run / "launches" / "2" / f"{second['arrays'][0]['name']}.sh").read_text()
    assert "--mem-per-cpu=410M" in script


def test_the_same_error_twice_is_not_tried_for_ever(life: Life) -> None:
    life.launch({"my_steps:fail_on": {"ranks": [1, 3]}}, retries={"max": 5})
    until(
        lambda: (
            "given up: ranks 1,3: the same error twice" in finalize_log(life).replace("rank 1 cannot", "")
            or finalize_log(life).count("given up") == 2
        ),
        "the stage to end",
    )
    assert len(launches(life.run)) == 2
    stage = status(life.cli, life.run)
    assert (counts(stage), stage["failed_ranks"]) == ((2, 2, 0, 0), [1, 3])
    life.flag.touch()
    life.cli("retry", life.run, "--wait", check=0)
    life.compare()


def test_a_cluster_without_accounting_is_enough(life: Life, tmp_path: Path) -> None:
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "sacct").write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2\nexit 1\n")
    (fake / "sacct").chmod(0o755)
    life.cli.env["PATH"] = f"{fake}:{life.cli.env['PATH']}"
    life.launch({"my_steps:kill_on": {"ranks": [2]}}, retries={"max": 1})
    until(lambda: "given up: ranks 2: FAILED after 1 retries" in finalize_log(life), "the stage to end")
    stage = status(life.cli, life.run)
    assert (counts(stage), stage["reasons"]) == ((3, 1, 0, 0), {"lost (FAILED)": 1})
    life.flag.touch()
    life.cli("retry", life.run, "--wait", check=0)
    life.compare()


def test_an_attempt_that_slurm_took_for_dead_commits_nothing_any_more(life: Life) -> None:
    """Two processes for one rank: the old one waits until the new one is at work."""
    life.launch({"my_steps:hold": {"ranks": [1]}})
    life.begun(1)
    # A later attempt announces itself, as one on another node would.
    (life.run / "logs" / "00001" / "1r1.log").touch()
    life.flag.touch()
    until(lambda: (life.run / "failures" / "00001.1.json").exists(), "the old attempt to end")
    failure = json.loads((life.run / "failures" / "00001.1.json").read_text())
    assert failure["error"] == "Attempt 1r1 has begun meanwhile: this one, 1, commits nothing."
    assert "00001.jsonl.zst" not in visible(life.folder / "run-output")
    life.cli("retry", life.run, "--wait", check=0)
    life.compare()


def test_what_a_packed_job_has_done_is_not_done_again(life: Life) -> None:
    life.launch({"my_steps:hold": {"ranks": [1]}}, executor={"ranks_per_job": 2})
    begun = life.begun(1)
    until(lambda: (life.run / "completions" / "00000.json").exists(), "the rank before it to be done")
    begun.unlink()
    slurm(life.cli, "scontrol", "requeue", f"{life.array}_0")
    life.begun(1)
    life.flag.touch()
    life.finish()
    assert [record["attempt"] for record in completions(life.run)] == ["1", "1r1", "1", "1"]


def test_single_ranks_are_cancelled_and_tried_again_with_other_settings(life: Life) -> None:
    life.launch({"my_steps:dawdle": {"ranks": [1, 2]}})
    life.begun(1), life.begun(2)
    ran = life.cli("cancel", life.run, "--rank", "1-2", check=0)
    assert ran.out == "cancelled ranks 1-2 (2 jobs)\n"
    until(lambda: counts(status(life.cli, life.run)) == (2, 0, 0, 2), "the two to end")
    assert "retry can change" in life.cli("retry", life.run, "--set", "tasks=9", check=2).err
    assert "There is no rank 4" in life.cli("retry", life.run, "--rank", "4", check=2).err
    assert "Ranks 0 of run are done" in life.cli("retry", life.run, "--rank", "0,1", check=2).err
    life.cli("retry", life.run, "--failed-only", check=0)
    assert len(launches(life.run)) == 1  # Cancelled is not failed.
    life.cli("retry", life.run, "--rank", "1", "--set", "executor.mem_per_cpu_gb=0.3", "--wait", check=0)
    second = launches(life.run)[1]
    assert (second["ranks"], second["resources"]["mem_per_cpu_gb"]) == ("1", 0.3)
    life.cli("retry", life.run, "--wait", check=0)
    assert launches(life.run)[2]["resources"]["mem_per_cpu_gb"] == 0.3  # It stays.
    life.compare()


def test_a_task_on_several_nodes_commits_once(life: Life) -> None:
    life.launch({"my_steps:note_node": {}}, executor={"nodes_per_task": 2}, tasks=2)
    life.finish()
    notes = sorted(path.name for path in life.folder.glob("flag-*"))
    assert notes == [f"flag-{rank}-{node}-of-2" for rank in (0, 1) for node in (0, 1)]
    logs = sorted(path.name for path in (life.run / "logs" / "00000").iterdir())
    assert logs == ["1.log", "1.node1.log"]


def test_a_container_runs_the_task(life: Life, tmp_path: Path) -> None:
    """A stand-in for apptainer, which is not to be had here, that shows what it was asked to do, and does it."""
    front = tmp_path / "front"
    front.mkdir()
    words = f'echo "$@" >> {tmp_path}/asked; while [[ $1 != image.sif && $1 != */image.sif ]]; do shift; done; shift'
    (front / "apptainer").write_text(f'#!/bin/bash\n{words}\nshift\nexec {sys.executable} "$@"\n')
    (front / "apptainer").chmod(0o755)
    life.cli.env["PATH"] = f"{front}:{life.cli.env['PATH']}"
    (tmp_path / "image.sif").touch()
    life.launch(executor={"env": {"container": "image.sif", "container_args": ["--nv"]}}, tasks=2)
    life.finish()
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[0].startswith(f"exec --pwd={tmp_path} --nv {tmp_path}/image.sif python -I -m stagger.task ")


def cluster_folder() -> Path:
    return Path(os.environ.get("STAGGER_CLUSTER_DIR", "/var/tmp/stagger-cluster"))


def daemon(name: str) -> int:
    return int((cluster_folder() / "run" / f"{name}.pid").read_text())


def saved(name: str) -> None:
    """Wait until the controller has written down a job: within seconds; what it has not, a crash takes away."""
    state = cluster_folder() / "spool" / "slurmctld" / "job_state"
    until(lambda: name.encode() in state.read_bytes(), "the controller to save its state")


def test_slurmctld_dies_and_comes_back_while_a_run_is_under_way(life: Life) -> None:
    life.launch({"my_steps:hold": {"ranks": [1]}}, executor={"workers": 2}, retries=RETRIES)
    life.begun(1)
    saved(launches(life.run)[0]["finalize"]["name"])
    os.kill(daemon("slurmctld"), signal.SIGKILL)
    life.flag.touch()  # The task ends while nobody is there to be told.
    subprocess.run([CLUSTER / "up.sh"], check=True, capture_output=True, timeout=120)
    life.finish()


def test_slurmctld_dies_and_comes_back_during_a_launch(life: Life) -> None:
    file = life.files(executor=SLURM, randomize_start_duration=0)
    life.more = {"tasks": 4}
    before = slurm(life.cli, "sbatch", "--parsable", "--hold", "--job-name=before", "--wrap=true").strip()
    saved("before")
    os.kill(daemon("slurmctld"), signal.SIGKILL)
    launching = life.cli.start("launch", file)
    subprocess.run([CLUSTER / "up.sh"], check=True, capture_output=True, timeout=120)
    _, err = launching.communicate(timeout=240)
    slurm(life.cli, "scancel", before)
    assert launching.returncode == 0, err
    life.finish()
    (launch,) = launches(life.run)
    names = [launch["arrays"][0]["name"], launch["finalize"]["name"]]
    jobs = slurm(life.cli, "squeue", "-h", "--states=all", "-n", ",".join(names), "-o", "%F").split()
    assert set(jobs) <= {launch["arrays"][0]["job_id"], launch["finalize"]["job_id"]}
