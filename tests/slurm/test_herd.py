"""A small herd on the real cluster, with the benchmark that runs the large herd."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def test_a_herd_at_once_is_refused_and_one_with_a_limit_never(slurm_conf: str, tmp_path: Path) -> None:
    options = ["--tasks=16", "--backend-limit=12", "--calibrate=10", "--policies=none,limit", f"--folder={tmp_path}"]
    command = [sys.executable, "-m", "benchmarks.herd.run", *options, f"--plot={tmp_path}/herd.png"]
    env = {**os.environ, "SLURM_CONF": slurm_conf}
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    results = json.loads(ran.stdout)["results"]
    none, limit = results["none"], results["limit"]
    assert none["measured"]["refused"] > 0
    assert none["predicted"]["refused"] > 0
    assert limit["measured"]["window_s"] == 12  # 16 * 7 / (0.8 * 12)
    assert limit["measured"]["refused"] == limit["predicted"]["refused"] == 0
    for run in (none, limit):
        assert run["measured"]["tasks_failed"] == 0
        made = run["measured"]["requests_by_kind"]
        # A commit whose requests were refused for more than 5 s looks for a later claim, once.
        looks = made.pop("HeadObject", 0)
        answered = sum(made.values()) + looks - run["measured"]["refused"]
        assert 16 * 7 <= answered <= 16 * 7 + looks
        assert set(made) == {"GetObject", "PutObject"}
    assert (tmp_path / "herd.png").stat().st_size > 10_000
