"""Block servers as jobs of the real cluster: they start, lose ten of twenty-four, recover, and leave in time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stagger.blocks.server.records import Claim, Member, View
from stagger.blocks.server.registry import Registry
from stagger.storage.storage import Storage
from tests.conftest import Cli, until
from tests.kit.claimants import one_at_a_time
from tests.kit.runs import counts, status

TOTAL, SERVERS, ROOM, PERIOD_S, WINDOW_S = 24, 24, 6, 5.0, 8

#: Speed of one server: 1000 / ((6 + 1) / 2) requests per second.
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
    """Polls a swarm as a client would, and remembers all claims and the blocks that had no server."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "registry"
        self.registry = Registry(Storage(), str(self.folder), TOTAL, lease_s=4)
        self.uncovered: set[int] = set()
        self.covered = False
        self.claims: dict[int, Claim] = {}
        self.view = View(0, {})

    def served(self) -> Any:
        """The number of servers that serve each block now."""
        hosts = np.zeros(TOTAL, dtype=int)
        self.view = self.registry.refresh()
        for span in self.view.online():
            hosts[span.start : span.end] += 1
        self.covered |= bool(hosts.min())
        if self.covered:
            self.uncovered |= set(np.flatnonzero(hosts == 0).tolist())
        self._note_claims()
        return hosts

    def members(self) -> dict[str, Member]:
        """The servers that are alive now."""
        self.served()
        return self.view.members

    def beats(self) -> dict[str, int]:
        """The number of announcements of each server."""
        return {name: member.record.sequence for name, member in self.members().items() if member.record}

    def _note_claims(self) -> None:
        """Keep new claims. A claim stays for at least one lease, and this method is called more often."""
        for path in self.folder.glob("claim.*.json"):
            if int(path.name.split(".")[1]) not in self.claims:
                with contextlib.suppress(FileNotFoundError):
                    claim = Claim.decode(path.read_bytes(), TOTAL)
                    self.claims[claim.number] = claim


def test_24_block_jobs_start_lose_ten_recover_and_leave_in_time(slurm_cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "swarm"
    # Without replacements: how those that stay share the work is what is looked at.
    executor = {"type": "slurm", "partition": "gpu", "gpus_per_task": 1, "time": 3, "max_requeues": 0}
    content = {"name": "swarm", "run_dir": str(run), "randomize_start_duration": WINDOW_S, "blocks": BLOCKS}
    file = tmp_path / "swarm.yaml"
    file.write_text(json.dumps({**content, "executor": executor}))
    slurm_cli("blocks", "launch", file, check=0)
    watch = Watch(run)

    # All servers start within their window. Their coverage equals that of servers that join one at a time.
    until(lambda: watch.served().sum() == SERVERS * ROOM, "all to serve")
    assert watch.served().min() * SPEED == pytest.approx(
        one_at_a_time({str(n): (ROOM, SPEED) for n in range(SERVERS)}, TOTAL)
    )
    found = slurm_cli("blocks", "status", run, "--json", check=0).json
    assert {server["state"] for server in found["servers"]} == {"ONLINE"}
    assert all(server["job_ends"] > time.time() for server in found["servers"])

    # Eight servers are cancelled and two are killed; each block keeps at least one server.
    left = until(lambda: survivors(watch), "a swarm whose blocks all have servers that stay")
    lost = sorted(watch.view.members.keys() - set(left))
    assert watch.uncovered == set()
    decided = max(watch.claims)
    launch = json.loads((run / "launches" / "1" / "launch.json").read_text())
    (array,) = launch["arrays"]
    ranks = [int(name[:5]) for name in lost]
    lost_at = time.time()
    subprocess.run(["scancel", *(f"{array['job_id']}_{rank}" for rank in ranks[:8])], env=slurm_cli.env, check=True)
    for rank in ranks[8:]:
        kill(array["job_id"], rank)

    # Fourteen servers of six blocks can serve each of 24 blocks three times; they do within three check periods.
    until(lambda: set(watch.members()) == set(left), "the others to notice")
    until(lambda: watch.served().min() >= 3, "the others to take over")
    recovery_s = time.time() - lost_at
    print(f"recovered {recovery_s:.1f} s after the loss; checks every {PERIOD_S:g} s, lease {BLOCKS['lease']} s")
    assert max(claim.time for claim in watch.claims.values()) > lost_at
    # Each server detects the killed ones by its own lease, which begins up to 1.5 heartbeats after the lease of this
    # watch. Two of the six announcements may belong to a move.
    beats = watch.beats()
    until(lambda: all(count >= beats[name] + 6 for name, count in watch.beats().items()), "each of them to notice")
    until(lambda: watch.served().min() >= 3, "the others to take over for good")
    assert watch.served().min() * SPEED == pytest.approx(3 * SPEED)
    # The ten are not lost at the same moment: a decision in between may have left a block to servers lost after it.
    assert watch.uncovered <= left_to_the_lost(watch.claims, set(lost), decided)

    staying, uncovered = set(left), set[int]()
    watch.uncovered.clear()
    while staying:  # Until the first server's time is up, none leaves a block that needs it.
        uncovered, hosts = set(watch.uncovered), watch.served()
        if not staying <= watch.view.members.keys():
            break
        assert hosts.min() >= 3
        time.sleep(0.2)
    assert uncovered == set()

    # At their time limit the servers drain and leave, and their ranks are done.
    until(lambda: watch.served().sum() == 0, "all to leave", 240)
    until(lambda: counts(status(slurm_cli, run))[0] == 14, "them to be done", 240)
    until(lambda: not any((run / "registry").iterdir()), "the end of the stage to leave nothing in the registry", 120)
    records = [json.loads(path.read_text()) for path in (run / "completions").glob("*.json")]
    assert {record["window_s"] for record in records} == {WINDOW_S}
    assert all(0 <= record["delay_s"] <= WINDOW_S for record in records)
    log = (run / "logs" / f"{records[0]['rank']:05d}" / "1.log").read_text()
    assert "leaves: its job's time is up" in log


def survivors(watch: Watch) -> list[str]:
    """Fourteen servers that together serve all blocks, with many on the same blocks; empty while there are none."""
    members = watch.members()
    left: list[str] = []
    hosts = np.zeros(TOTAL, dtype=int)
    in_order = sorted(members, key=lambda name: (members[name].target.start, name))
    for name in in_order:
        if (serving := members[name].serving) and hosts[slice(*serving)].min() == 0:
            hosts[slice(*serving)] += 1
            left.append(name)
    left += [name for name in in_order if name not in left][: 14 - len(left)]
    return sorted(left) if hosts.min() > 0 and len(members) == SERVERS else []


def left_to_the_lost(claims: dict[int, Claim], lost: set[str], decided: int) -> set[int]:
    """Blocks that a claim after number `decided` took from a staying server, because a lost server still hosted them.

    Nobody could know yet that this server was about to go: its record still announced the blocks.
    """
    found: set[int] = set()
    for number in range(decided + 1, max(claims) + 1):
        before, after = placed(claims[number - 1]), placed(claims[number])
        counted = set().union(*(before[name] for name in lost & before.keys() & after.keys()))
        for name in set(claims[number].moves) - lost:
            found |= (before[name] - after[name]) & counted
    return found


def placed(claim: Claim) -> dict[str, set[int]]:
    """The blocks that a claim assigns to each server."""
    return {name: set(range(place.start, place.end)) for name, (place, _) in claim.placements.items()}


def kill(array: str, rank: int, also: str = "") -> None:
    """Kill the task of one job of an array with SIGKILL; before it, processes of the job that run the module `also`."""
    killed = [pid for pid in processes(array, rank, also) if also] + processes(array, rank, "stagger.task")
    assert processes(array, rank, "stagger.task"), f"there is no task of job {array}_{rank}"
    for pid in killed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def processes(array: str, rank: int, module: str) -> list[int]:
    """The processes of one job of an array that run a module."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            if module.encode() not in (entry / "cmdline").read_bytes():
                continue
        except (OSError, ValueError):
            continue
        if {f"SLURM_ARRAY_JOB_ID={array}".encode(), f"SLURM_ARRAY_TASK_ID={rank}".encode()} <= set(environment):
            found.append(int(entry.name))
    return found
