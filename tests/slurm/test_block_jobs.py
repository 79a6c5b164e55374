"""Block servers as jobs of the real cluster: they start, lose ten of twenty-four, recover, and leave in time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stagger.blocks.server.registry import Registry
from stagger.storage.storage import Storage
from tests.conftest import Cli, until
from tests.kit.claimants import one_at_a_time
from tests.kit.runs import counts, status

TOTAL, SERVERS, ROOM, PERIOD_S, WINDOW_S = 24, 24, 6, 5.0, 8

#: Of one server: 1000 / ((6 + 1) / 2) requests per second.
SPEED = 2000 / 7

BLOCKS: dict[str, Any] = {
    "total": TOTAL,
    "servers": SERVERS,
    "host_options": {"room": ROOM, "seconds_per_block": 0.1},
    "mean_block_selection_delay": 0.5,
    "mean_balance_check_period": PERIOD_S,
    "heartbeat": 1,
    "lease": 4,
    "drain": 2,
}


class Watch:
    """Looks at a swarm again and again, as a client would, and remembers when a block had no server."""

    def __init__(self, run: Path) -> None:
        self.registry = Registry(Storage(), str(run / "registry"), TOTAL, lease_s=4)
        self.uncovered: list[float] = []
        self.covered = False

    def served(self) -> Any:
        """The servers of each block that serve it now."""
        hosts = np.zeros(TOTAL, dtype=int)
        for span in self.registry.refresh().online():
            hosts[span.start : span.end] += 1
        self.covered |= bool(hosts.min())
        if self.covered and not hosts.min():
            self.uncovered.append(time.time())
        return hosts


def test_24_block_jobs_start_lose_ten_recover_and_leave_in_time(slurm_cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "swarm"
    executor = {"type": "slurm", "partition": "gpu", "gpus_per_task": 1, "time": 3}
    content = {"name": "swarm", "run_dir": str(run), "randomize_start_duration": WINDOW_S, "blocks": BLOCKS}
    file = tmp_path / "swarm.yaml"
    file.write_text(json.dumps({**content, "executor": executor}))
    slurm_cli("blocks", "launch", file, check=0)
    watch = Watch(run)

    # All start within their window, and cover as those do that join one at a time.
    until(lambda: watch.served().sum() == SERVERS * ROOM, "all to serve")
    assert watch.served().min() * SPEED == pytest.approx(
        one_at_a_time({str(n): (ROOM, SPEED) for n in range(SERVERS)}, TOTAL)
    )
    found = slurm_cli("blocks", "status", run, "--json", check=0).json
    assert {server["state"] for server in found["servers"]} == {"ONLINE"}
    assert all(server["job_ends"] > time.time() for server in found["servers"])

    # Eight are cancelled and two killed: of each block some server is left.
    left = until(lambda: survivors(watch), "a swarm whose blocks all have servers that stay")
    lost = [name for name in watch.registry.refresh().members if name not in left]
    launch = json.loads((run / "launches" / "1" / "launch.json").read_text())
    (array,) = launch["arrays"]
    ranks = [int(name[:5]) for name in lost]
    lost_at = time.time()
    subprocess.run(["scancel", *(f"{array['job_id']}_{rank}" for rank in ranks[:8])], env=slurm_cli.env, check=True)
    for rank in ranks[8:]:
        kill(array["job_id"], rank)

    # Fourteen servers of six blocks can serve each of 24 three times; they do within three periods of their checks.
    until(lambda: set(watch.registry.refresh().members) == set(left), "the others to notice")
    until(lambda: watch.served().min() >= 3, "the others to take over")
    recovery_s = time.time() - lost_at
    print(f"recovered {recovery_s:.1f} s after the loss; checks every {PERIOD_S:g} s, lease {BLOCKS['lease']} s")
    recovered = [json.loads(path.read_text())["time"] for path in (run / "registry").glob("claim.*.json")]
    assert max(recovered) > lost_at
    assert watch.served().min() * SPEED == pytest.approx(3 * SPEED)

    staying = set(left)
    while staying:  # Until the first one's time is up: nobody moves away from where it is needed.
        uncovered, hosts = list(watch.uncovered), watch.served()
        if not staying <= watch.registry.refresh().members.keys():
            break
        assert hosts.min() >= 3
        time.sleep(0.2)
    assert uncovered == []

    # At their time limit they leave by themselves, and are done.
    until(lambda: watch.served().sum() == 0, "all to leave", 240)
    until(lambda: counts(status(slurm_cli, run))[0] == 14, "them to be done", 240)
    until(lambda: not any((run / "registry").iterdir()), "the end of the stage to leave nothing in the registry", 120)
    records = [json.loads(path.read_text()) for path in (run / "completions").glob("*.json")]
    assert {record["window_s"] for record in records} == {WINDOW_S}
    assert all(0 <= record["delay_s"] <= WINDOW_S for record in records)
    log = (run / "logs" / f"{records[0]['rank']:05d}" / "1.log").read_text()
    assert "leaves: its job's time is up" in log


def survivors(watch: Watch) -> list[str]:
    """Fourteen servers that together serve all blocks, but most of them the same; empty while there are none such."""
    members = watch.registry.refresh().members
    left: list[str] = []
    hosts = np.zeros(TOTAL, dtype=int)
    in_order = sorted(members, key=lambda name: (members[name].target.start, name))
    for name in in_order:
        if (serving := members[name].serving) and hosts[slice(*serving)].min() == 0:
            hosts[slice(*serving)] += 1
            left.append(name)
    left += [name for name in in_order if name not in left][: 14 - len(left)]
    return sorted(left) if hosts.min() > 0 and len(members) == SERVERS else []


def kill(array: str, rank: int) -> None:
    """kill -9 of the task of one job of an array."""
    for entry in Path("/proc").iterdir():
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            if b"stagger.task" not in (entry / "cmdline").read_bytes():
                continue
        except (OSError, ValueError):
            continue
        if {f"SLURM_ARRAY_JOB_ID={array}".encode(), f"SLURM_ARRAY_TASK_ID={rank}".encode()} <= set(environment):
            os.kill(int(entry.name), signal.SIGKILL)
            return
    raise AssertionError(f"there is no task of job {array}_{rank}")
