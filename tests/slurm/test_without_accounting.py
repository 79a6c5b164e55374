"""A cluster without accounting."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import until
from tests.kit.runs import counts, status
from tests.slurm.conftest import Life, finalize_log


def test_a_cluster_without_accounting_is_enough(life: Life, tmp_path: Path) -> None:
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "sacct").write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2\nexit 1\n")
    (fake / "sacct").chmod(0o755)
    life.cli.env["PATH"] = f"{fake}:{life.cli.env['PATH']}"
    life.launch({"my_steps:kill_on": {"ranks": [2]}}, retries={"max": 1})
    until(lambda: "given up: rank 2: FAILED after 1 retry" in finalize_log(life), "the stage to end")
    stage = status(life.cli, life.run)
    assert (counts(stage), stage["reasons"]) == ((3, 1, 0, 0), {"lost (FAILED)": 1})
    life.flag.touch()
    life.cli("retry", life.run, "--wait", check=0)
    life.compare()
