"""A real swarm on the cluster, in which everything goes wrong: all documents come out, as one process computes them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stagger.blocks.swarm_place import END
from tests.conftest import ROOT, Cli, contents, jsonl, until
from tests.kit.runs import launches
from tests.models.corpus import documents, save_model
from tests.slurm.conftest import links, slurm

BLOCKS, SERVERS, SPAN, DOCUMENTS, USERS = 12, 6, 4, 600, 2

#: Requests of one client that a server takes at a time.
CREDITS = 2


class Swarm:
    """A run of six servers, and of a stage that scores documents through them."""

    def __init__(self, cli: Cli, folder: Path) -> None:
        self.cli = cli
        self.folder = folder
        self.run = folder / "run"
        self.notes = folder / "notes"
        self.notes.mkdir()
        self.model = save_model(folder / "model", num_hidden_layers=BLOCKS)
        shutil.copy(ROOT / "tests" / "kit" / "faulty_transformer.py", folder / "faulty.py")
        (folder / "input").mkdir()
        for shard in range(4):
            made = documents(DOCUMENTS // 4, seed=shard)
            records = [{"id": f"{shard}-{one.id}", "text": one.text} for one in made]
            (folder / "input" / f"{shard}.jsonl").write_bytes(jsonl(records))

    def score(self, out: str, **params: Any) -> list[dict[str, Any]]:
        return [
            {"read_jsonl": {"path": str(self.folder / "input")}},
            {"score_blocks": {"tokens": 256, "max_length": 150, "buffer_tokens": 8192, **params}},
            {"write_jsonl": {"path": str(self.folder / out)}},
        ]

    def launch(self, **host_options: Any) -> None:
        blocks = {
            "model": self.model,
            "servers": SERVERS,
            "num_blocks": SPAN,
            "host": "faulty:Faulty",
            "host_options": {"notes": str(self.notes), **host_options},
            "mean_block_selection_delay": 0.5,
            "heartbeat": 1,
            "lease": 5,
            "drain": 3,
        }
        gpu = {"type": "slurm", "partition": "gpu", "gpus_per_task": 1, "time": 20, "mem_per_cpu_gb": 1}
        cpu = {"type": "slurm", "partition": "cpu", "time": 20, "mem_per_cpu_gb": 1}
        stages = [
            {"name": "swarm", "blocks": blocks, "executor": gpu},
            {
                "name": "score",
                "uses": ["swarm"],
                "tasks": USERS,
                "pipeline": self.score("out", engine="swarm"),
                "executor": cpu,
            },
        ]
        file = self.folder / "swarm.yaml"
        content = {"name": "swarm", "run_dir": str(self.run), "randomize_start_duration": 0, "stages": stages}
        file.write_text(json.dumps(content))
        self.cli("launch", file, check=0)

    def whole(self) -> dict[str, bytes]:
        """The outputs of one process that has all blocks."""
        file = self.folder / "whole.yaml"
        content = {
            "name": "whole",
            "run_dir": str(self.folder / "whole-run"),
            "tasks": USERS,
            "pipeline": self.score("whole", engine="whole", model=self.model),
            "executor": {"type": "local", "workers": 1},
        }
        file.write_text(json.dumps(content))
        self.cli("launch", file, check=0)
        return contents(self.folder / "whole")

    def begun(self, rank: int) -> int:
        """How many requests the first attempt of a server has begun."""
        path = self.notes / f"{rank:05d}.1"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def pid(self, rank: int) -> int:
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal() and f"/logs/{rank:05d}/" in links(folder / "fd", self.run / "swarm"):
                return int(folder.name)
        raise AssertionError(f"nobody is at work on rank {rank}")

    def users_logs(self) -> str:
        return "".join(path.read_text() for path in sorted((self.run / "score" / "logs").glob("*/*.log")))

    def ended(self) -> bool:
        """Whether no job of the run is queued or running."""
        found = [one for stage in ("swarm", "score") for one in launches(self.run / stage)]
        ids = {job["job_id"] for one in found for job in (*one["arrays"], one["finalize"])}
        return not set(slurm(self.cli, "squeue", "--noheader", "--format=%F").split()) & ids


@pytest.fixture
def swarm(slurm_cli: Cli, tmp_path: Path) -> Swarm:
    slurm_cli.env["OMP_NUM_THREADS"] = "1"
    return Swarm(slurm_cli, tmp_path)


def test_every_document_comes_out_once_and_as_it_should_whatever_happens_to_servers(swarm: Swarm) -> None:
    """One server returns what is not a number, one hangs, one is killed, one cancelled, and one stopped."""
    swarm.launch(delay_s=0.03, faults={"0": "nan", "1": "hang"})
    for rank in (2, 3, 4):
        until(lambda rank=rank: swarm.begun(rank) >= 3, f"server {rank} to compute")  # type: ignore[misc]
    (array,) = launches(swarm.run / "swarm")[0]["arrays"]
    stopped = swarm.pid(4)
    subprocess.run(["kill", "-9", str(swarm.pid(2))], check=True)
    subprocess.run(["scancel", f"{array['job_id']}_3"], env=swarm.cli.env, check=True)
    subprocess.run(["kill", f"-{signal.SIGSTOP.value}", str(stopped)], check=True)
    before = swarm.begun(4)
    until(lambda: swarm.users_logs().count("done: ") == USERS, "the documents to be scored")
    subprocess.run(["kill", f"-{signal.SIGCONT.value}", str(stopped)], check=False)
    until(swarm.ended, "all jobs to end")

    whole, out = swarm.whole(), contents(swarm.folder / "out")
    assert {name: data for name, data in out.items() if name[0] != "."} == whole
    stages = {stage["name"]: stage for stage in swarm.cli("status", swarm.run, "--json").json["stages"]}
    assert stages["score"]["done"] == USERS

    # Nobody sent anything to a server that it had given up.
    log = swarm.users_logs()
    assert "gives up server 00002.1: its connection is gone" in log
    assert "gives up server 00000.1: it failed: NotFinite: the states of" in log
    assert "gives up server 00001.1: it is late" in log
    assert "gives up server 00004.1: its connection is gone" in log
    assert swarm.begun(0) <= 2 + CREDITS * USERS
    assert swarm.begun(1) == 3
    assert swarm.begun(4) <= before + CREDITS * USERS

    # Others took their places without a hand, and nothing is left.
    again = {path.name for path in swarm.notes.iterdir()} - {f"{rank:05d}.1" for rank in range(SERVERS)}
    assert again, "a replacement computed"
    assert [path.name for path in (swarm.run / "swarm" / "registry").iterdir()] == [END]
    assert not (swarm.run / "swarm" / "swarm.key").exists()
