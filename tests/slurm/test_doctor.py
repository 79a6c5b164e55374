"""`stagger doctor` on a cluster."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli


def found(text: str) -> dict[str, tuple[str, str]]:
    return {check["name"]: (check["state"], check["text"]) for check in json.loads(text)["checks"]}


@pytest.mark.each_version
def test_a_healthy_cluster(slurm_cli: Cli, tmp_path: Path) -> None:
    ran = slurm_cli("doctor", "--run-dir", tmp_path, "--partition", "cpu", "--json", check=0)
    checks = found(ran.out)
    assert {state for state, _ in checks.values()} == {"ok"}
    expected = {"versions", "storage", "slurm", "accounting", "partition", "folder", "python", "commands", "clock"}
    assert checks.keys() == expected
    assert "MaxArraySize 10,001" in checks["slurm"][1]
    assert os.listdir(tmp_path) == []


def test_a_partition_that_is_not_there(slurm_cli: Cli, tmp_path: Path) -> None:
    checks: dict[str, Any] = found(
        slurm_cli("doctor", "--run-dir", tmp_path, "--partition", "nothing", "--json", check=1).out
    )
    assert checks["partition"] == ("problem", "There is no partition nothing; choose from cpu, gpu.")
    assert "executor.partition" in checks["node"][1]
