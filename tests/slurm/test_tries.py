"""Failed ranks that the end job retries: which ranks, with which resources, and how often."""

from __future__ import annotations

import os
import signal

import pytest

from tests.conftest import until
from tests.kit.runs import counts, launches, status
from tests.slurm.conftest import Life, finalize_log, restarted

RETRIES = {"max": 2}


@pytest.mark.each_version
def test_a_killed_task_is_tried_again_by_the_job_that_ends_the_stage(life: Life) -> None:
    life.launch({"my_steps:hold": {"ranks": [1]}}, retries=RETRIES)
    life.begun(1)
    os.kill(life.pid(1), signal.SIGKILL)
    life.flag.touch()
    life.finish()
    first, second = launches(life.run)
    assert (first["ranks"], second["ranks"], second["arrays"][0]["tries"]) == ("0-3", "1", 1)


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
    assert not restarted(life, 3)  # A restart would have got no further.


@pytest.mark.each_version
def test_a_rank_that_runs_out_of_memory_gets_twice_as_much(life: Life) -> None:
    """Slurm samples the memory of a job every second here, and ends a job that exceeds its limit."""
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
