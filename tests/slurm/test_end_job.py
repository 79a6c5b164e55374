"""The end job on the cluster: it meets what a site asks of every job, and no faulty node stops it."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from tests.conftest import Cli, PipelineFiles, output_ids, until
from tests.kit.runs import EVERYTHING, SLURM, counts, launches, status
from tests.slurm.conftest import slurm

#: A site's sbatch: it refuses jobs without these options.
RULE = """#!/bin/bash
for script; do :; done
for option in {options}; do
  grep -qE "^#SBATCH --$option" "$script" && continue
  echo "sbatch: error: every job must have --$option" >&2
  exit 1
done
exec {sbatch} "$@"
"""


def site(cli: Cli, *options: str) -> None:
    """Put a site's sbatch before the real one: for the command, and for the jobs that inherit its PATH."""
    folder = cli.folder / "site"
    folder.mkdir()
    text = RULE.format(options=" ".join(options), sbatch=shutil.which("sbatch"))
    (folder / "sbatch").write_text(text)
    (folder / "sbatch").chmod(0o755)
    cli.env["PATH"] = f"{folder}:{os.environ['PATH']}"


def two_stages(cli: Cli, files: PipelineFiles, **executor: Any) -> Path:
    middle, end = str(cli.folder / "middle"), str(cli.folder / "end")
    first = [{"read_jsonl": {"path": str(files.shards)}}, {"write_jsonl": {"path": middle}}]
    second = [{"read_jsonl": {"path": middle}}, {"write_jsonl": {"path": end}}]
    stages = [
        {"name": "a", "tasks": 2, "pipeline": first},
        {"name": "b", "tasks": 2, "pipeline": second, "depends": ["a"]},
    ]
    content = {"name": "p", "run_dir": "run", "executor": {**SLURM, **executor}, "randomize_start_duration": 0}
    (cli.folder / "p.yaml").write_text(json.dumps({**content, "stages": stages}))
    return cli.folder / "p.yaml"


def test_what_a_site_asks_of_every_job_the_end_job_has(slurm_cli: Cli, pipeline_file: PipelineFiles) -> None:
    site(slurm_cli, "time", "mem", "gres", "comment", "account")
    me = f"user={getpass.getuser()}"
    account = slurm(slurm_cli, "sacctmgr", "-nP", "show", "assoc", "where", me, "format=account")
    file = two_stages(
        slurm_cli,
        pipeline_file,
        partition="gpu",
        gpus_per_task=1,
        mem_per_cpu_gb=0.1,
        sbatch={"comment": "project 7", "account": account.split()[-1]},
    )
    slurm_cli("launch", file, "--wait", check=0)
    assert output_ids(slurm_cli.folder / "end") == EVERYTHING


def test_the_end_job_runs_where_its_stage_does(slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    """Outside the reservation of its stage it would wait until that is over."""
    name = f"r{os.getpid()}"
    made = ("ReservationName=" + name, "Nodes=ALL", "StartTime=now", "Duration=10", "Users=root")
    slurm(slurm_cli, "scontrol", "create", "reservation", *made)
    try:
        file = two_stages(slurm_cli, pipeline_file, sbatch={"reservation": name})
        slurm_cli("launch", file, "--wait", check=0)
        assert output_ids(tmp_path / "end") == EVERYTHING
    finally:
        until(lambda: slurm(slurm_cli, "squeue", "-h", "-R", name) == "", "the reservation to be empty")
        slurm(slurm_cli, "scontrol", "delete", "ReservationName=" + name)


def test_a_setup_that_fails_on_one_node_does_not_stop_the_retries(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    env = {"setup": ["test $SLURMD_NODENAME != n1"]}
    executor = {**SLURM, "env": env, "sbatch": {"nodelist": "n1"}}
    file = pipeline_file(executor=executor, retries={"max": 1}, randomize_start_duration=0)
    slurm_cli("launch", file, "--wait", check=1)
    first, second = launches(tmp_path / "run")
    assert (first["ranks"], second["ranks"], second["arrays"][0]["tries"]) == ("0-3", "0-3", 1)
    stage = status(slurm_cli, tmp_path / "run")
    assert counts(stage) == (0, 4, 0, 0)
    assert "given up: ranks 0-3: FAILED after 1 retry (retries.max)" in stage["end"]["message"]


def test_a_cancelled_end_job_is_told_with_the_command_to_type(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    slurm_cli("launch", two_stages(slurm_cli, pipeline_file, sbatch={"hold": True}), check=0)
    run = tmp_path / "run"
    (launch,) = launches(run / "a")
    slurm(slurm_cli, "scancel", launch["finalize"]["job_id"])
    slurm(slurm_cli, "scontrol", "release", launch["arrays"][0]["job_id"])

    def first() -> dict[str, Any]:
        found: list[dict[str, Any]] = slurm_cli("status", run, "--json").json["stages"]
        return found[0]

    until(lambda: first()["done"] == 2, "the first stage to be done")
    number = launch["finalize"]["job_id"]
    assert first()["end"]["message"] == (
        f"end job {number} was cancelled; b will not start; nothing more starts by itself: stagger retry {run}"
    )
    slurm_cli("retry", run, "--set", "executor.sbatch.hold=false", "--wait", check=0)
    assert output_ids(tmp_path / "end") == EVERYTHING


#: An interpreter that fails on the first node where it is tried.
FAULTY = """#!/bin/bash
set -o noclobber
echo "$SLURMD_NODENAME" 2>/dev/null >{bad}
[[ $(<{bad}) != "$SLURMD_NODENAME" ]] && exec {python} "$@"
"""


def test_an_end_job_leaves_a_node_that_cannot_run_it(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    site(slurm_cli)
    python, bad = tmp_path / "python", tmp_path / "bad"
    python.write_text(FAULTY.format(bad=bad, python=sys.executable))
    python.chmod(0o755)
    sbatch = slurm_cli.folder / "site" / "sbatch"
    change = f"grep -q -- '--dependency' \"$script\" && sed -i 's#^python=.*#python={python}#' \"$script\"\nexec"
    sbatch.write_text(sbatch.read_text().replace("\nexec", f"\n{change}"))
    slurm_cli("launch", two_stages(slurm_cli, pipeline_file), "--wait", check=0)
    assert output_ids(tmp_path / "end") == EVERYTHING
    (launch,) = launches(tmp_path / "run" / "a")
    output = Path(launch["log_dir"], f"finalize-{launch['finalize']['job_id']}.out").read_text()
    assert f"The end job cannot run on {bad.read_text().strip()}: this node cannot import stagger" in output
    assert "all 2 ranks are done" in output  # The next try is appended to the same log.


def test_ranks_that_failed_stay_failed_when_only_the_end_job_is_cancelled(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    executor = {**SLURM, "end": {"sbatch": {"begin": "now+600"}}}
    steps = ({"my_steps:fail_on": {"ranks": [1]}},)
    slurm_cli("launch", pipeline_file(steps=steps, executor=executor, randomize_start_duration=0), check=0)
    run = tmp_path / "run"
    until(lambda: counts(status(slurm_cli, run)) == (3, 1, 0, 0), "the ranks to end")
    until(lambda: status(slurm_cli, run)["end"].get("state") == "waiting", "the end job to be alone")
    number = launches(run)[0]["finalize"]["job_id"]
    assert slurm_cli("cancel", run, check=0).out == f"cancelled Slurm job {number}\n"
    until(lambda: status(slurm_cli, run)["end"].get("state") == "cancelled", "the end job to be cancelled")
    stage = status(slurm_cli, run)
    assert (counts(stage), stage["cancelled"]) == ((3, 1, 0, 0), 0)
