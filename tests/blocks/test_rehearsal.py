"""`stagger blocks launch`: a rehearsal on this machine, mistakes, and the job script."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.blocks.conftest import QUICK
from tests.conftest import ROOT, Cli, PipelineFiles, until
from tests.kit.runs import counts, status


@pytest.fixture
def swarm(tmp_path: Path) -> Callable[..., Path]:
    """Write the pipeline file of a swarm."""

    def write(executor: dict[str, Any] | None = None, **blocks: Any) -> Path:
        settings = {
            **QUICK,
            "total": 24,
            "servers": 4,
            "heartbeat": 0.5,
            "host_options": {"room": [6, 8], "seconds_per_block": 0.02},
            **blocks,
        }
        content = {"name": "swarm", "run_dir": str(tmp_path / "swarm"), "blocks": settings}
        if executor:
            content["executor"] = executor
        path = tmp_path / "swarm.yaml"
        path.write_text(json.dumps(content))
        return path

    return write


def swarm_status(cli: Cli, run: Path) -> dict[str, Any]:
    ran = cli("blocks", "status", run, "--json")
    assert ran.status in (0, 1), ran.err
    document: dict[str, Any] = ran.json
    assert (min(document["online"]) == 0) == (ran.status == 1)
    return document


#: A host that waits for a file before it serves: no server fails or leaves before the test has seen all of them.
HELD = '''
import os
from stagger.blocks.server.simulated_host import SimulatedHost

class Held(SimulatedHost):
    """fail_after counts from when the file `flag` exists. The file `flag`-<rank> holds the process id."""

    def __init__(self, context, flag, **options):
        super().__init__(context, **options)
        self.flag, self.rank = flag, context.rank

    def serve(self, stop):
        with open(f"{self.flag}-{self.rank}", "w") as file:
            file.write(str(os.getpid()))
        while not os.path.exists(self.flag) and not stop.wait(0.02):
            pass
        super().serve(stop)
'''


def test_a_rehearsal_on_this_machine(cli: Cli, swarm: Callable[..., Path], tmp_path: Path) -> None:
    """Servers of two kinds: one fails, the others take over, and then all reach the end of their time."""
    (tmp_path / "held.py").write_text(HELD)
    flag = tmp_path / "flag"
    failing = {"room": [6, 8], "seconds_per_block": 0.02, "fail_after": [None, None, 0.1, None], "flag": str(flag)}
    file = swarm(host="held:Held", host_options=failing, servers=5)
    run = tmp_path / "swarm"
    launched = cli.start("blocks", "launch", file)

    def covered(servers: int) -> dict[str, Any] | None:
        if not (run / "run.json").exists():
            return None
        found = swarm_status(cli, run)
        online = [server for server in found["servers"] if server["state"] == "ONLINE"]
        return found if len(online) == servers and min(found["online"]) > 0 else None

    found = until(lambda: covered(5), "all to serve")
    assert found["bound"] >= min(found["online"])
    shown = cli("blocks", "status", run, check=0).out
    assert "5 servers: 5 online" in shown
    assert "######" in shown
    flag.touch()
    assert until(lambda: covered(4), "the others to take over")
    for rank in (0, 1, 3, 4):
        os.kill(int(Path(f"{flag}-{rank}").read_text()), signal.SIGUSR2)
    assert launched.wait(timeout=60) == 1
    assert counts(status(cli, run)) == (4, 1, 0, 0)
    failure = json.loads((run / "failures" / "00002.1.json").read_text())
    assert failure["error"] == "serving failed: StaggerError: the simulated host fails after 0.1 s (fail_after)"
    record = json.loads((run / "completions" / "00000.json").read_text())
    assert record["notes"]["server"] == "00000.1"
    assert list((run / "registry").iterdir()) == []
    gone = cli("blocks", "status", run, check=1).out
    assert "none is queued or running" in gone


def test_ctrl_c_ends_a_rehearsal_and_leaves_nothing(cli: Cli, swarm: Callable[..., Path], tmp_path: Path) -> None:
    run = tmp_path / "swarm"
    launched = cli.start("launch", swarm(servers=2))
    until(lambda: len(list((run / "registry").glob("server.*"))) == 2, "the servers to be there")
    launched.send_signal(2)
    assert launched.wait(timeout=60) == 130
    assert counts(status(cli, run))[0] == 0
    log = (run / "logs" / "00000" / "1.log").read_text()
    assert "leaves: stopped by SIGTERM" in log


def test_a_models_config_says_how_many_blocks_it_has(cli: Cli, swarm: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    config = tmp_path / "model" / "config.json"
    config.write_text('{"num_hidden_layers": 12}')
    file = swarm(total=None, model=str(tmp_path / "model"), serve_for=0.5, servers=1)
    cli("launch", file, check=0)
    spec = json.loads((tmp_path / "swarm" / "run.json").read_text())["spec"]["stages"][0]
    assert spec["blocks"]["total"] == 12
    config.write_text('{"hidden_size": 12}')
    assert "has none of num_hidden_layers" in cli("launch", file, check=2).err
    config.write_text('{"num_hidden_layers": 12')
    assert "is damaged" in cli("launch", file, check=2).err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["blocks.total=null"], "blocks: the number of blocks is missing: set `total`, or `model`"),
        (["blocks.servers=0"], "--set blocks.servers: expected a whole number of at least 1, not the number 0"),
        (["blocks.num_blocks=25"], "num_blocks is 25, but the model has 24 blocks"),
        (["blocks.lease=1"], "it must be longer than two heartbeats"),
        (["blocks.hots=simulated"], "blocks.hots: unknown key; did you mean 'host'?"),
        (["blocks.host=nonsense"], "blocks.host: "),
        (["blocks.host=no_such:Host"], "no_such"),
        (["blocks.host=tests.kit.block_hosts:Half"], "is not a block host: it has no measure, load, unload, serve"),
        (["blocks.host_options.rom=3"], "blocks: host_options: simulated does not accept them"),
        (["tasks=4"], "tasks: not allowed with `blocks`: the number of servers is blocks.servers"),
        (["pipeline=[{read_jsonl: {path: x}}]"], "pipeline: not allowed with `blocks`"),
        (["executor={type: local, workers: 2}"], "4 servers must run at once"),
        (["executor={type: slurm, ranks_per_job: 2}"], "each server is its own job, on one node"),
        (["executor={type: slurm, ranks_per_job: 2, ranks_at_once: auto}"], "each server is its own job, on one node"),
        (["blocks.model=nowhere"], "nowhere: there is no config.json. A model is a folder"),
        (["blocks.rebalance=petals"], "blocks.rebalance: expected planner, own_gain, full or none, not 'petals'"),
        (["blocks.balance_quality=0"], "blocks.balance_quality: expected a number greater than 0"),
    ],
)
def test_each_mistake_is_one_sentence(cli: Cli, swarm: Callable[..., Path], wrong: list[str], message: str) -> None:
    root = str(ROOT)
    ran = cli("launch", swarm(), *(f"--set={change}" for change in wrong), check=2, PYTHONPATH=root)
    assert message in ran.err
    assert "Traceback" not in ran.err
    assert len(ran.err.splitlines()) == 1, ran.err


def test_commands_for_blocks_refuse_what_has_none(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    file = pipeline_file()
    assert "it has no stage with the key `blocks`" in cli("blocks", "launch", file, check=2).err
    cli("launch", file, check=0)
    assert "hosts no blocks; see its progress with" in cli("blocks", "status", tmp_path / "run", check=2).err


def test_the_script_of_a_slurm_job(cli: Cli, swarm: Callable[..., Path], tmp_path: Path) -> None:
    executor = {"type": "slurm", "partition": "gpu", "gpus_per_task": 1, "time": "1:00:00"}
    plan = cli("blocks", "launch", swarm(executor, drain=90), "--dry-run", "--json", check=0).json
    (array,) = plan["stages"][0]["arrays"]
    script = array["script"]
    for line in ("--array=0-3", "--gres=gpu:1", "--signal=B:USR2@150", "--requeue"):
        assert f"#SBATCH {line}" in script
    assert "randint(0, 30)" in script
    assert script.index("sleep") < script.index("stagger.task")
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    with contextlib.suppress(FileNotFoundError):
        assert not list((tmp_path / "swarm").iterdir())
