"""A real swarm on the cluster, in which everything goes wrong: all documents come out, as one process computes them."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stagger.blocks.coverage import missing_blocks
from stagger.blocks.server.records import View, rank_of
from stagger.blocks.server.registry import Registry
from stagger.blocks.swarm_place import END
from stagger.storage.storage import Storage
from tests.conftest import ROOT, Cli, contents, jsonl, until
from tests.kit.open_files import process_with
from tests.kit.runs import launches
from tests.models.corpus import documents, save_model
from tests.slurm.conftest import slurm

BLOCKS, SERVERS, SPAN, USERS = 12, 6, 4, 2
SHARDS, DOCUMENTS = 8, 150

#: Requests of one client that a server takes at a time.
CREDITS = 2

#: Rank -> what its servers do from their third request on, until the users have said this of one of them.
FAULTS = {"0": "nan", "1": "hang"}
SEEN = {"nan": "it failed: NotFinite: the states of", "hang": "it is late"}

LEASE_S = 5

#: Seconds until something has happened that can take the time limits of two servers, one after the other.
PATIENCE_S = 300.0


class Swarm:
    """A run of six servers, and of a stage that scores documents through them."""

    def __init__(self, cli: Cli, folder: Path) -> None:
        self.cli = cli
        self.folder = folder
        self.run = folder / "run"
        self.notes = folder / "notes"
        self.notes.mkdir()
        self.go_on = folder / "go-on"
        self.registry = Registry(Storage(), str(self.run / "swarm" / "registry"), BLOCKS, lease_s=LEASE_S)
        self.attacked: set[str] = set()
        self.model = save_model(folder / "model", num_hidden_layers=BLOCKS)
        shutil.copy(ROOT / "tests" / "kit" / "faulty_transformer.py", folder / "faulty.py")
        (folder / "input").mkdir()
        for shard in range(SHARDS):
            made = documents(DOCUMENTS, seed=shard)
            records = [{"id": f"{shard}-{one.id}", "text": one.text} for one in made]
            (folder / "input" / f"{shard}.jsonl").write_bytes(jsonl(records))

    def score(self, out: str, **params: Any) -> list[dict[str, Any]]:
        wait = [{"faulty:WaitForFile": {"file": str(self.go_on)}}] if params["engine"] == "swarm" else []
        return [
            {"read_jsonl": {"path": str(self.folder / "input")}},
            *wait,
            {"score_blocks": {"tokens": 256, "max_length": 150, "buffer_tokens": 8192, **params}},
            {"write_jsonl": {"path": str(self.folder / out), "filename": "{stem}.jsonl"}},
        ]

    def launch(self, **host_options: Any) -> None:
        """Launch it. Users wait before their last shard, and servers take their time, until `go_on` exists."""
        options = {"notes": str(self.notes), "until": str(self.go_on), "faults": FAULTS, **host_options}
        blocks = {
            "model": self.model,
            "servers": SERVERS,
            "num_blocks": SPAN,
            "host": "faulty:Faulty",
            "host_options": options,
            "mean_block_selection_delay": 0.5,
            "heartbeat": 1,
            "lease": LEASE_S,
            "drain": 3,
        }
        gpu = {"type": "slurm", "partition": "scavenge", "gpus_per_task": 1, "time": 2, "mem_per_cpu_gb": 1}
        cpu = {"type": "slurm", "partition": "cpu", "time": 20, "mem_per_cpu_gb": 1}
        stages = [
            {"name": "swarm", "blocks": blocks, "executor": {**gpu, "max_requeues": 20}, "retries": {"max": 20}},
            {
                "name": "score",
                "uses": ["swarm"],
                "tasks": USERS,
                "commit": "shard",
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
            "commit": "shard",
            "pipeline": self.score("whole", engine="whole", model=self.model),
            "executor": {"type": "local", "workers": 1},
        }
        file.write_text(json.dumps(content))
        self.cli("launch", file, check=0)
        return self.outputs("whole")

    def outputs(self, name: str) -> dict[str, bytes]:
        return {path: data for path, data in contents(self.folder / name).items() if path[0] != "."}

    # ---- Servers ----

    def view(self) -> View:
        return self.registry.refresh()

    def begun(self, server: str) -> int:
        """How many requests a server has begun."""
        path = self.notes / server
        return len(path.read_text().splitlines()) if path.exists() else 0

    def busy(self) -> dict[str, str]:
        """The servers that serve users now, and have not been attacked -> their jobs."""
        members = self.view().members
        return {
            name: one.record.job
            for name, one in sorted(members.items())
            if one.record is not None and one.serving and name not in self.attacked and self.begun(name) >= 3
        }

    def victim(self) -> tuple[str, str]:
        """A server to attack, without a fault of its own, and its job."""
        able = self.until(
            lambda: [one for one in self.busy().items() if str(rank_of(one[0])) not in FAULTS], "a victim"
        )
        self.attacked.add(able[0][0])
        return able[0]  # type: ignore[no-any-return]

    def pid(self, server: str) -> int:
        rank, _, attempt = server.partition(".")
        log = str(self.run / "swarm" / "logs" / rank / f"{attempt}.log")
        return process_with(lambda path: path == log)

    def cancel(self, *jobs: str) -> None:
        subprocess.run(["scancel", *jobs], env=self.cli.env, check=True)

    def missing(self) -> list[int]:
        return missing_blocks(self.view(), BLOCKS)

    def log(self, server: str) -> str:
        rank, _, attempt = server.partition(".")
        return (self.run / "swarm" / "logs" / rank / f"{attempt}.log").read_text()

    def servers(self) -> list[str]:
        """The servers that ever were, those of a rank in the order of their attempts."""
        found = (self.run / "swarm" / "logs").glob("*/*.log")
        return [f"{path.parent.name}.{path.stem}" for path in sorted(found, key=lambda path: path.stat().st_mtime)]

    def left_in_time(self) -> dict[int, list[str]]:
        """Rank -> its servers that have left for their job's time."""
        found: dict[int, list[str]] = {}
        for server in self.servers():
            if "its job's time is up; it comes back in a new one" in self.log(server):
                found.setdefault(rank_of(server), []).append(server)
        return found

    # ---- Jobs ----

    def arrays(self) -> list[str]:
        found = [array["job_id"] for one in launches(self.run / "swarm") for array in one["arrays"]]
        return [job for job in found if job]  # One that is being submitted has no id yet.

    def preempted(self) -> list[str]:
        """The servers' jobs that Slurm has preempted for another job."""
        command = ["sacct", "--allocations", "--duplicates", "--noheader", "--parsable2", "--format=jobid,state"]
        found = slurm(self.cli, *command, f"--jobs={','.join(self.arrays())}").split()
        return [line.partition("|")[0] for line in found if line.endswith("|PREEMPTED")]

    def preempt(self) -> list[str]:
        """Start a job of a higher priority that needs more GPUs than a node of the servers has left. Returns the jobs
        that Slurm has preempted; none, if servers have ended at that moment.
        """
        node = slurm(self.cli, "squeue", "--noheader", f"--jobs={','.join(self.arrays())}", "--format=%N").split()[0]
        taken = re.search(r"AllocTRES=\S*gres/gpu=(\d+)", slurm(self.cli, "scontrol", "show", "node", "-o", node))
        assert taken is not None
        submit = ["sbatch", "--parsable", "--partition=gpu", f"--nodelist={node}", "--nodes=1", "--mem=100", "--time=5"]
        urgent = slurm(
            self.cli, *submit, f"--gres=gpu:{12 - int(taken[1]) + 2}", "--output=/dev/null", "--wrap=sleep 600"
        ).strip()
        try:
            self.until(lambda: self.preempted() or self.runs(urgent), "a server to be preempted")
        finally:
            self.cancel(urgent)
        return self.preempted()

    def runs(self, job: str) -> bool:
        return slurm(self.cli, "squeue", "--noheader", f"--jobs={job}", "--format=%T").strip() == "RUNNING"

    def users_logs(self) -> str:
        return "".join(path.read_text() for path in sorted((self.run / "score" / "logs").glob("*/*.log")))

    def note_faults(self) -> bool:
        """End the faults that users have noticed. Returns whether they have noticed all."""
        log = self.users_logs()
        for fault, said in SEEN.items():
            if said in log:
                (self.notes / fault).touch()
        return all((self.notes / fault).exists() for fault in SEEN)

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait for something, and end each fault once users have noticed it."""

        def met() -> Any:
            self.note_faults()
            return condition()

        return until(met, what, PATIENCE_S)

    def ended(self) -> bool:
        """Whether no job of the run is queued or running."""
        found = [one for stage in ("swarm", "score") for one in launches(self.run / stage)]
        ids = {job["job_id"] for one in found for job in (*one["arrays"], one["finalize"])}
        return not set(slurm(self.cli, "squeue", "--noheader", "--format=%F").split()) & ids


@pytest.fixture
def swarm(slurm_cli: Cli, tmp_path: Path) -> Swarm:
    slurm_cli.env["OMP_NUM_THREADS"] = "1"
    return Swarm(slurm_cli, tmp_path)


@pytest.mark.timeout(900)
def test_every_document_comes_out_once_and_as_it_should_whatever_happens_to_servers(swarm: Swarm) -> None:
    """Servers return what is not a number, hang, are preempted, killed, cancelled and stopped, all of a block are
    cancelled, and each reaches its time limit. Users wait before their last shard until all of that has happened.
    """
    swarm.launch(delay_s=1.0)
    swarm.until(lambda: len(swarm.busy()) >= SERVERS - 1, "the servers to compute")
    preempted = swarm.until(swarm.preempt, "a server to be preempted")

    killed, _ = swarm.victim()
    subprocess.run(["kill", "-9", str(swarm.pid(killed))], check=True)
    cancelled, job = swarm.victim()
    swarm.cancel(job)
    stopped, _ = swarm.victim()
    subprocess.run(["kill", f"-{signal.SIGSTOP.value}", str(swarm.pid(stopped))], check=True)

    # A wave after which some blocks have no server, until others come.
    swarm.until(lambda: not swarm.missing(), "all blocks to have servers")
    members = swarm.view().members.values()
    hosts = [one.record.job for one in members if one.record is not None and one.target.start <= 5 < one.target.end]
    swarm.cancel(*hosts)
    swarm.until(swarm.missing, "blocks to have no server")

    whole = swarm.whole()
    swarm.until(swarm.note_faults, "users to notice what is not a number, and what hangs")
    swarm.until(lambda: len(swarm.left_in_time()) == SERVERS, "each server to reach its time limit")
    assert swarm.users_logs().count("done: ") == 0
    swarm.go_on.touch()
    swarm.until(lambda: swarm.users_logs().count("done: ") == USERS, "the documents to be scored")
    swarm.until(swarm.ended, "all jobs to end")

    assert swarm.outputs("out") == whole
    stages = {stage["name"]: stage for stage in swarm.cli("status", swarm.run, "--json").json["stages"]}
    assert stages["score"]["done"] == USERS

    # Nobody sent anything to a server that it had given up, or connected to it again. The one that was stopped may
    # serve once more: Slurm wakes it with the warning of its job's end.
    log, servers = swarm.users_logs(), swarm.servers()
    for server in (killed, cancelled, stopped):
        assert re.search(rf"\b{re.escape(server)}\b", log), f"users have noticed what happened to {server}"
    for path in (swarm.run / "score" / "logs").glob("*/*.log"):
        given_up = Counter(re.findall(r"gives up server (\S+):", path.read_text()))
        assert set(given_up.values()) <= {1}
    broken = re.findall(rf"gives up server (\S+): {SEEN['nan']}", log)
    assert all(swarm.begun(server) <= 2 + CREDITS * USERS for server in broken)
    hung = [server for server in servers if server.startswith("00001.") and f"{server}: {SEEN['hang']}" in log]
    assert [swarm.begun(server) for server in hung] == [3] * len(hung)

    # Others came without a hand: a rank that lost a server has a later one. Nothing is left.
    for rank in range(SERVERS):
        assert len([server for server in servers if rank_of(server) == rank]) > 1
    for job in preempted:
        assert any("stopped by SIGTERM" in swarm.log(server) for server in servers if job in swarm.log(server)), job
    assert [path.name for path in (swarm.run / "swarm" / "registry").iterdir()] == [END]
    assert not (swarm.run / "swarm" / "swarm.key").exists()
