"""Failures of nodes, slurmstepd and slurmctld during a run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from tests.conftest import CLUSTER, until
from tests.kit.runs import SLURM, completions, launches
from tests.slurm.conftest import Life, restarted, slurm

RETRIES = {"max": 2}


@pytest.mark.each_version
def test_a_job_whose_keeper_is_killed_is_tried_again(life: Life) -> None:
    """The keeper is slurmstepd, which supervises a job for Slurm."""
    life.launch({"my_steps:hold": {"ranks": [1]}}, retries=RETRIES)
    life.begun(1)
    task = life.pid(1)
    keeper = int(Path(f"/proc/{task}/stat").read_text().rpartition(")")[2].split()[1])
    assert "slurmstepd" in Path(f"/proc/{keeper}/cmdline").read_text()
    node = slurm(life.cli, "squeue", "-h", "-j", f"{life.array}_1", "-o", "%N").strip()
    os.kill(keeper, signal.SIGKILL)
    os.kill(task, signal.SIGKILL)
    life.flag.touch()
    # Slurm considers a job alive until its node registers, at least 20 s after the job's start.
    while slurm(life.cli, "squeue", "-h", "-j", f"{life.array}_1", "-o", "%T").strip() == "RUNNING":
        restart(life, node)
    life.finish()
    assert completions(life.run)[1]["attempt"] == "1r1"


def restart(life: Life, node: str) -> None:
    """Restart a node's slurmd, and wait until it has registered.

    SIGHUP makes it register as well, but from Slurm 23.11 on by a restart, and another SIGHUP during that kills it.
    """
    killed = datetime.now().replace(microsecond=0)
    os.kill(daemon(f"slurmd.{node}"), signal.SIGKILL)
    repaired = subprocess.run([CLUSTER / "up.sh"], capture_output=True, text=True, timeout=120)
    assert repaired.returncode == 0, repaired.stderr
    until(lambda: started(life, node) >= killed, f"{node} to register")


def started(life: Life, node: str) -> datetime:
    """When the slurmd that has registered last for this node was started."""
    shown = re.search(r"SlurmdStartTime=([-0-9T:]+)", slurm(life.cli, "scontrol", "show", "node", node))
    assert shown is not None
    return datetime.fromisoformat(shown[1])


def test_a_node_that_is_set_down_gives_its_jobs_to_another(life: Life) -> None:
    life.launch({"my_steps:hold": {"ranks": [1]}})
    life.begun(1)
    node = slurm(life.cli, "squeue", "-h", "-j", f"{life.array}_1", "-o", "%N").strip()
    slurm(life.cli, "scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    until(lambda: restarted(life), "another node to begin the rank")
    life.flag.touch()
    life.finish()
    assert completions(life.run)[1]["attempt"] == "1r1"


def cluster_folder() -> Path:
    return Path(os.environ.get("STAGGER_CLUSTER_DIR", "/var/tmp/stagger-cluster"))


def daemon(name: str) -> int:
    return int((cluster_folder() / "run" / f"{name}.pid").read_text())


def saved(name: str) -> None:
    """Wait until the controller has saved a job to disk, which takes seconds. A crash loses jobs that are not saved."""
    state = cluster_folder() / "spool" / "slurmctld" / "job_state"
    until(lambda: name.encode() in state.read_bytes(), "the controller to save its state")


def test_slurmctld_dies_and_comes_back_while_a_run_is_under_way(life: Life) -> None:
    life.launch({"my_steps:hold": {"ranks": [1]}}, executor={"workers": 2}, retries=RETRIES)
    life.begun(1)
    saved(launches(life.run)[0]["finalize"]["name"])
    os.kill(daemon("slurmctld"), signal.SIGKILL)
    life.flag.touch()  # The task ends while the controller is down.
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
