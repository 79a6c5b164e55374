"""The staggered start on the cluster: slots, restarts, and the environment before the delay."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest

from stagger.start.delays import Slots, slot_ms
from tests.conftest import Cli, PipelineFiles, output_ids, until
from tests.kit.runs import EVERYTHING, SLURM, completions, counts, launches, status
from tests.slurm.conftest import slurm


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
    """When a module is loaded at launch, LD_LIBRARY_PATH and Lmod's BASH_ENV name shared folders."""
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
    # A user's own --export is passed on unchanged.
    assert f"before: {libraries} {init} read" in printed("all", export="ALL")


@pytest.mark.each_version
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
