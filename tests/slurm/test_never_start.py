"""Jobs that wait for somebody, or for ever: Slurm's reason is told, and what to do about it."""

from __future__ import annotations

from tests.conftest import until
from tests.kit.runs import counts, status
from tests.slurm.conftest import Life, slurm


def test_ranks_that_can_never_start_are_called_that_cancelled_and_mended(life: Life) -> None:
    """Four ranks request more processors than the cluster has. One of the next four is held, and released.

    Slurm 24.11 does not queue such jobs.
    """
    life.launch(executor={"cpus_per_task": 5000})
    until(lambda: status(life.cli, life.run)["stuck"] == 4, "Slurm's reason")
    (why,) = status(life.cli, life.run)["waiting"]
    assert (why["ranks"], why["starts"]) == ("0-3", "never")
    assert why["reason"] in slurm(life.cli, "squeue", "--noheader", "--format=%r")
    said = life.cli("status", life.run, check=1).out
    assert f"4 pending (4 can never start)\n       can never start: 4 ranks (0-3): {why['reason']}: " in said
    life.cli("cancel", life.run, "--rank", "0-3", check=0)
    assert f"stagger cancel {life.run} --rank 0-3 " in said
    life.cli("retry", life.run, "--set", "executor.cpus_per_task=1", "--set", "executor.sbatch.hold=true", check=0)
    until(lambda: status(life.cli, life.run)["waiting"], "Slurm to say that the jobs are held")
    (held,) = status(life.cli, life.run)["waiting"]
    assert (held["reason"], held["starts"], counts(status(life.cli, life.run))) == (
        "JobHeldUser",
        "by hand",
        (0, 0, 0, 4),
    )
    life.cli("status", life.run, check=3)
    release = held["message"].partition(": ")[2].split()
    slurm(life.cli, *release)
    life.finish()
