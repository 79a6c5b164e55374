"""`stagger doctor` on a cluster."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Cli


def found(text: str) -> dict[str, tuple[str, str]]:
    return {check["name"]: (check["state"], check["text"]) for check in json.loads(text)["checks"]}


@pytest.mark.each_version
def test_a_healthy_cluster(slurm_cli: Cli, tmp_path: Path) -> None:
    options = ("--partition", "cpu", "--time", "30", "--account", "root", "--sbatch", "comment=x")
    ran = slurm_cli("doctor", "--run-dir", tmp_path, *options, "--json", check=0)
    checks = found(ran.out)
    assert {state for state, _ in checks.values()} == {"ok"}
    expected = {"versions", "storage", "slurm", "accounting", "partition", "rules"}
    expected |= {"folder", "python", "commands", "clock"}
    assert checks.keys() == expected
    assert "MaxArraySize 10,001" in checks["slurm"][1]
    assert os.listdir(tmp_path) == []


def test_a_partition_that_is_not_there(slurm_cli: Cli, tmp_path: Path) -> None:
    checks: dict[str, Any] = found(
        slurm_cli("doctor", "--run-dir", tmp_path, "--partition", "nothing", "--json", check=1).out
    )
    assert checks["partition"] == ("problem", "There is no partition nothing; choose from cpu, gpu, scavenge.")
    assert "executor.partition" in checks["node"][1]


def checked(cli: Cli, folder: Path, *options: str, check: int, **env: str) -> dict[str, tuple[str, str]]:
    return found(cli("doctor", "--run-dir", folder, *options, "--json", check=check, **env).out)


def sbatch_that(folder: Path, rule: str) -> str:
    """A PATH whose sbatch first runs `rule`, a line of bash that may refuse the script `$file`."""
    real = shutil.which("sbatch") or "sbatch"
    fake = folder / "fake" / "sbatch"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/bash\nfor file; do :; done\n{rule}\nexec {real} "$@"\n')
    fake.chmod(0o755)
    return f"{fake.parent}:{os.environ['PATH']}"


def test_a_site_that_wants_a_time_limit_for_every_job(slurm_cli: Cli, tmp_path: Path) -> None:
    no_time = 'grep -q "^#SBATCH --time=" "$file" || { echo "sbatch: error: Time limit is invalid" >&2; exit 1; }'
    slurm_cli.env |= {"PATH": sbatch_that(tmp_path, no_time), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    state, text = checked(slurm_cli, tmp_path, check=1)["rules"]
    assert (state, "change executor.time" in text) == ("problem", True)
    ran = slurm_cli("doctor", "--run-dir", tmp_path, "--write-profile", "site", "--json")
    config = tmp_path / "config/stagger/config.yaml"
    assert ran.json["profile"]["written"] == str(config)
    assert config.read_text() == ran.json["profile"]["text"]
    assert yaml.safe_load(config.read_text())["profiles"]["site"]["executor"]["time"] == "01:00:00"
    assert config.stat().st_mode & 0o777 == 0o600
    again = slurm_cli("doctor", "--run-dir", tmp_path, "--write-profile", "other", check=2)
    assert "There is a file" in again.err
    assert "  other:\n    executor:\n      partition: cpu\n" in again.out
    assert config.read_text() == ran.json["profile"]["text"]


def test_nodes_that_cannot_submit_jobs(slurm_cli: Cli, tmp_path: Path) -> None:
    on_node = '[[ -z $SLURM_JOB_ID ]] || { echo "sbatch: error: submit from a login node" >&2; exit 1; }'
    checks = checked(slurm_cli, tmp_path, check=0, PATH=sbatch_that(tmp_path, on_node))
    state, text = checks["commands"]
    assert (state, "submit from a login node" in text) == ("warning", True)
    assert checks["rules"][0] == "ok"


@pytest.mark.parametrize(
    ("python", "setup", "name", "said"),
    [
        (
            "echo stagger 9.9",
            "true",
            "python",
            "has stagger 9.9 with the interpreter of executor.env, but this machine",
        ),
        (
            "echo no module >&2; exit 1",
            "true",
            "python",
            "cannot import stagger with the interpreter of executor.env (no",
        ),
        ("echo stagger 9.9", "modul load gcc", "environment", "modul: command not found"),
    ],
)
def test_the_environment_of_a_profile_is_looked_at_on_a_node(
    slurm_cli: Cli, tmp_path: Path, python: str, setup: str, name: str, said: str
) -> None:
    scripts = tmp_path / "venv/bin"
    scripts.mkdir(parents=True)
    (scripts / "activate").write_text("")
    (scripts / "python").write_text(f"#!/bin/bash\n{python}\n")
    (scripts / "python").chmod(0o755)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"profiles": {"p": {"executor": {"env": {"venv": "venv", "setup": [setup]}}}}}))
    checks = checked(slurm_cli, tmp_path, "--profile", "p", check=1, STAGGER_CONFIG=str(config))
    state, text = checks[name]
    assert (state, said in text) == ("problem", True), text
