"""Jobs are found on a real cluster, whatever was done to them: renamed, held, cancelled by name, sent by --clusters."""

from __future__ import annotations

import shutil

from tests.conftest import until
from tests.kit.runs import counts, launches, status
from tests.slurm.conftest import Life, finalize_log, slurm


def test_renamed_jobs_are_found_and_cancelled(life: Life) -> None:
    life.launch({"my_steps:dawdle": {"ranks": [0, 1, 2, 3]}})
    life.begun(3)
    slurm(life.cli, "scontrol", "update", f"jobid={life.array}", "jobname=another")
    assert counts(status(life.cli, life.run)) == (0, 0, 4, 0)
    assert f"cancelled Slurm job {life.array}" in life.cli("cancel", life.run, check=0).out
    until(lambda: not status(life.cli, life.run)["active"], "the jobs to end")
    assert counts(status(life.cli, life.run)) == (0, 0, 0, 4)


def test_what_somebody_cancelled_by_its_name_is_not_tried_again(life: Life) -> None:
    """The elements that had not started have no state of their own afterwards. The others ran on."""
    life.launch({"my_steps:hold": {}}, executor={"workers": 2}, retries={"max": 2})
    life.begun(0), life.begun(1)
    slurm(life.cli, "scancel", "--state=PENDING", "--name", launches(life.run)[0]["arrays"][0]["name"])
    life.flag.touch()
    until(lambda: "given up" in finalize_log(life), "the stage to end")
    stage = status(life.cli, life.run)
    assert (counts(stage), stage["reasons"]) == ((2, 2, 0, 0), {"CANCELLED": 2})
    assert len(launches(life.run)) == 1
    life.cli("retry", life.run, "--wait", check=0)
    life.compare()


def test_held_jobs_say_so_until_they_are_released(life: Life) -> None:
    life.launch(executor={"sbatch": {"hold": True}})
    (why,) = until(lambda: status(life.cli, life.run)["waiting"], "Slurm's reason")
    assert (why["ranks"], why["reason"], why["job_id"]) == ("0-3", "JobHeldUser", life.array)
    plan = life.run / "plan"
    shutil.move(plan, life.run / "hidden")  # As NFS shows it to a node that looked too early.
    slurm(life.cli, "scontrol", "release", life.array)
    until(lambda: status(life.cli, life.run)["running"] == 4, "all ranks to look for their plan")
    shutil.move(life.run / "hidden", plan)
    life.finish()


def test_jobs_of_a_named_cluster_are_asked_for_there(life: Life) -> None:
    """The test cluster is called stagger. Its end job submits the retry there, too."""
    life.cli.env["SLURM_CLUSTERS"] = "stagger"
    life.launch({"my_steps:fail_on": {"ranks": [2]}}, retries={"max": 1})
    del life.cli.env["SLURM_CLUSTERS"]
    submitted = [("stagger", True), ("stagger", True)]
    until(
        lambda: [(one["cluster"], bool(one["finalize"]["job_id"])) for one in launches(life.run)] == submitted, "both"
    )
    life.flag.touch()
    life.cli("retry", life.run, "--wait")
    assert counts(status(life.cli, life.run))[0] == 4
