"""The end job: it has what describes where its stage runs, resources of its own, and nothing else of its stage."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from stagger.errors import StaggerError
from stagger.executor.end_job import INHERITED, end_options, end_time, gpus
from stagger.executor.job_script import finalize_script
from stagger.spec.executors import SBATCH_OPTIONS, EndSpec, SlurmSpec
from tests.executor.test_job_script import context


def options(**spec: Any) -> dict[str, Any]:
    return end_options(SlurmSpec(type="slurm", **spec))


OWN = {"time": "0-00:30:00", "cpus-per-task": "1", "mem": "2048M"}


def test_where_a_stage_runs_is_inherited_and_nothing_else() -> None:
    where: dict[str, Any] = {option: f"the {option}" for option in INHERITED}
    rest = {
        "begin", "deadline", "dependency", "exclusive", "export", "hold", "input", "licenses", "mail-type",
        "mail-user", "mincpus", "nice", "no-requeue", "ntasks", "signal", "tmp", "container-image",
    }  # fmt: skip
    resources = {"time": "3-0", "mem-per-cpu": "400G", "cpus-per-task": 64, "nodes": 4}
    sbatch = {**where, **dict.fromkeys(rest, "1"), **resources}
    assert options(sbatch=sbatch) == {**where, **OWN}
    assert set(INHERITED) <= set(SBATCH_OPTIONS)


def test_keys_and_options_of_sbatch_are_inherited_alike() -> None:
    keys = options(partition="cpu", account="a", qos="q")
    assert keys == options(sbatch={"partition": "cpu", "account": "a", "qos": "q"})
    assert keys == {"partition": "cpu", "account": "a", "qos": "q", **OWN}
    assert options(account="a", sbatch={"account": "b"})["account"] == "b"  # As in the stage's own jobs.


def test_the_nodes_of_a_stage_are_inherited_if_its_jobs_need_one() -> None:
    assert options(sbatch={"nodelist": "n1"})["nodelist"] == "n1"
    assert "nodelist" not in options(sbatch={"nodelist": "n1,n2"}, nodes_per_task=2)
    assert "nodelist" not in options(sbatch={"nodelist": "n1,n2", "nodes": 2})


def test_each_key_of_end_replaces_what_would_be_inherited() -> None:
    end = {"partition": "small", "account": "b", "qos": "r", "time": 5, "mem_gb": 0.5, "cpus_per_task": 2, "gpus": 1}
    found = options(partition="cpu", account="a", qos="q", time="2:00", end=end)
    assert found == {
        "partition": "small",
        "account": "b",
        "qos": "r",
        "time": "5",
        "cpus-per-task": "2",
        "mem": "512M",
        "gres": "gpu:1",
    }


def test_options_of_end_replace_and_remove_any() -> None:
    stage = {"partition": "gpu", "gpus_per_task": 2, "sbatch": {"constraint": "a100", "comment": "x"}}
    found = options(**stage, end={"sbatch": {"mem-per-cpu": "1G", "gpus": 1, "constraint": False, "licenses": "a"}})
    text = finalize_script(
        context(**stage, end=EndSpec(sbatch={"mem-per-cpu": "1G", "gpus": 1, "constraint": False})), "end", ["1"]
    )
    assert (found["mem-per-cpu"], found["gpus"], found["licenses"], found["comment"]) == ("1G", 1, "a", "x")
    assert "mem" not in found
    assert "gres" not in found
    assert "constraint" not in text
    assert "--mem=" not in finalize_script(context(end=EndSpec(sbatch={"mem": False})), "end", ["1"])


def test_requeueing_is_requested_unless_the_stage_does_without() -> None:
    assert "--requeue" in finalize_script(context(), "end", ["1"])
    assert "--requeue" not in finalize_script(context(sbatch={"no-requeue": True}), "end", ["1"])


def test_in_another_partition_the_nodes_of_the_stage_do_not_matter() -> None:
    sbatch = {"constraint": "a100", "nodelist": "g1", "reservation": "r", "prefer": "b", "exclude": "g2"}
    found = options(partition="gpu", gpus_per_task=1, sbatch=sbatch, end={"partition": "cpu"})
    assert found == {"partition": "cpu", "exclude": "g2", **OWN}
    same = options(partition="gpu", gpus_per_task=1, sbatch=sbatch, end={"partition": "gpu"})
    assert (same["constraint"], same["gres"]) == ("a100", "gpu:1")


@pytest.mark.parametrize(
    ("spec", "gres"),
    [
        ({}, None),
        ({"gpus_per_task": 4}, "gpu:1"),
        ({"gpus_per_task": 4, "end": {"gpus": 0}}, None),
        ({"gpus_per_task": 4, "end": {"gpus": 2}}, "gpu:2"),
        ({"sbatch": {"gres": "gpu:a100:8"}}, "gpu:a100:1"),
        ({"sbatch": {"gres": "gpu:8,lustre:1"}}, "gpu:1"),
        ({"sbatch": {"gres": "lustre:1"}}, None),
        ({"sbatch": {"gpus": 8}}, "gpu:1"),
        ({"sbatch": {"gpus-per-task": "h100:2"}}, "gpu:h100:1"),
        ({"sbatch": {"tres-per-node": "gres/gpu:v100=2"}}, "gpu:v100:1"),
    ],
)
def test_in_a_partition_for_gpus_the_end_job_has_one(spec: dict[str, Any], gres: str | None) -> None:
    assert gpus(SlurmSpec(type="slurm", **spec)) == gres


@pytest.mark.parametrize(
    ("spec", "limit"),
    [
        ({}, "0-00:30:00"),
        ({"time": "1-0"}, "0-00:30:00"),
        ({"time": 10}, "0-00:10:00"),
        ({"sbatch": {"time": "5:00"}}, "0-00:05:00"),
        ({"time": "0"}, "0-00:30:00"),
        ({"time": 10, "end": {"time": "1:00:00"}}, "1:00:00"),
    ],
)
def test_its_time_limit_fits_where_the_stage_does(spec: dict[str, Any], limit: str) -> None:
    assert end_time(SlurmSpec(type="slurm", **spec)) == limit


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="depends on the stage's arrays"):
        EndSpec(sbatch={"dependency": "singleton"})
    with pytest.raises(ValueError, match="is set by stagger itself; set `log_dir`"):
        EndSpec(sbatch={"output": "/x"})
    with pytest.raises(ValueError, match="not a time that Slurm understands"):
        EndSpec(time="soon")
    with pytest.raises(StaggerError, match="line break"):
        finalize_script(context(end=EndSpec(account="a\nb")), "end", ["1"])


def run_script(folder: Path, python: str, settings: Path) -> tuple[str, list[str]]:
    """Run an end job's script with stand-ins for Slurm's commands: its output, and the commands that it ran."""
    calls = folder / "calls"
    for name, answer in (("squeue", "echo n7"), ("scontrol", "")):
        (folder / name).write_text(f'#!/bin/bash\necho {name} "$@" >>{calls}\n{answer}\n')
        (folder / name).chmod(0o755)
    text = finalize_script(context(), "end", ["1"])
    text = text.replace("settings='/lustre/my runs/100%/launches/2/settings.json'", f"settings={settings}")
    text = "\n".join(f"python={python}" if line.startswith("python=") else line for line in text.splitlines())
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "SLURM_JOB_ID": "5", "SLURMD_NODENAME": "n3"}
    done = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True, check=False)
    return done.stdout, calls.read_text().splitlines() if calls.exists() else []


def test_a_node_that_cannot_run_it_is_left_for_another(tmp_path: Path) -> None:
    """The node is excluded, as are those that were excluded before."""
    settings = tmp_path / "settings.json"
    settings.write_text("{}")
    moved = ["scontrol requeue 5", "scontrol update jobid=5 excnodelist=n7,n3"]
    for python, there, fault in (
        ("/no/python", settings, "cannot run /no/python"),
        ("/usr/bin/true", tmp_path / "gone.json", f"cannot read {tmp_path}/gone.json"),
        ("/usr/bin/false", settings, "cannot import stagger with /usr/bin/false"),
    ):
        (tmp_path / "calls").unlink(missing_ok=True)
        out, calls = run_script(tmp_path, python, there)
        assert f"The end job cannot run on n3: this node {fault}." in out
        assert calls[-2:] == moved


def test_a_failure_of_its_own_is_not_the_fault_of_the_node(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\n[[ "$*" == *-c* ]]\n')  # Can import stagger; the end of the stage fails.
    python.chmod(0o755)
    settings = tmp_path / "settings.json"
    settings.write_text("{}")
    assert run_script(tmp_path, str(python), settings) == ("", [])
    assert run_script(tmp_path, "/usr/bin/true", settings) == ("", [])
