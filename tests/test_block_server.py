"""Block servers: a life from claim to leave, what hosts may do to it, and a rehearsal on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stagger.blocks.host import HostContext, Speed
from stagger.blocks.measuring import cache_folder, measured
from stagger.blocks.placement import MEAN_BLOCK_SELECTION_DELAY, ServerState
from stagger.blocks.registry import Registry, ServerRecord, as_moves
from stagger.blocks.server import RULES, BlockServer, Identity
from stagger.blocks.settings import BlockSettings
from stagger.blocks.simulation.policies import POLICIES
from stagger.errors import Interrupted, StaggerError
from stagger.executor.slurm import block_scripts
from stagger.spec.blocks import HOST_STEP, BlocksSpec
from stagger.spec.models import StageSpec
from stagger.storage import Storage
from stagger.task_context import StopFlag
from tests.block_hosts import Recorder
from tests.conftest import Cli, PipelineFiles, until
from tests.test_local import counts, status

QUICK: dict[str, Any] = {
    "total": 8,
    "servers": 2,
    "mean_block_selection_delay": 0,
    "mean_balance_check_period": 0.2,
    "heartbeat": 0.1,
    "lease": 5,
    "drain": 1,
}


class Life:
    """A server in a thread of its own, and another's look at the registry."""

    def __init__(
        self, folder: Path, name: str = "00000.1", host: dict[str, Any] | None = None, **settings: Any
    ) -> None:
        self.settings = BlockSettings(**{**QUICK, **settings})
        self.stop = StopFlag()
        context = HostContext(8, None, int(name[:5]), lambda: bool(self.stop.signal))
        self.host = Recorder(context, **(host or {}))
        self.folder = str(folder / "registry")
        registry = Registry(Storage(), self.folder, 8, name, lease_s=self.settings.lease)
        self.server = BlockServer(self.settings, self.host, registry, Identity(name), self.stop, seed=1)
        self.reader = Registry(Storage(), self.folder, 8, lease_s=self.settings.lease)
        self.name = name
        self.ended: object = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.ended = self.server.run()
        except BaseException as error:
            self.ended = error

    def start(self) -> Life:
        self.thread.start()
        return self

    def record(self) -> ServerRecord | None:
        view = self.reader.refresh()
        member = view.members.get(self.name)
        return member.record if member is not None else view.gone.get(self.name)

    def beats(self) -> int:
        record = self.record()
        return 0 if record is None else record.sequence

    def serves(self, start: int, end: int) -> bool:
        record = self.record()
        return record is not None and record.state == ServerState.ONLINE and record.serving == (start, end)

    def end(self, signal: str = "SIGTERM") -> Any:
        """Tell it to stop; how it ended."""
        self.stop.signal = signal
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.ended


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Callable[..., Life]]:
    lives: list[Life] = []

    def start(name: str = "00000.1", **options: Any) -> Life:
        lives.append(Life(tmp_path, name, **options).start())
        return lives[-1]

    yield start
    for life in lives:
        life.stop.signal = "SIGTERM"


def test_a_server_claims_loads_serves_and_leaves(live: Callable[..., Life]) -> None:
    one = live()
    until(lambda: one.serves(0, 4), "it to serve")
    record = one.record()
    assert record is not None
    assert (record.host, record.port, record.moves, record.blocks_loaded) == (os.uname().nodename, 4242, 0, 4)
    assert record.throughput == 400  # 1000 / ((4 + 1) / 2)
    beats = record.sequence
    until(lambda: one.beats() > beats + 2, "heartbeats")
    two = live("00001.1")
    until(lambda: two.serves(4, 8), "the other one to take the other blocks")
    ended = one.end()
    assert isinstance(ended, Interrupted)
    record = one.record()
    assert record is not None
    assert (record.state, record.serving, record.reason) == (ServerState.OFFLINE, None, "told to stop")
    assert one.host.calls == ["measure", *(("load", range(b, b + 1)) for b in range(4)), "drained"]
    assert one.server.notes() == {"server": "00000.1", "moves": 0, "blocks_loaded": 4}


def test_a_server_whose_time_is_up_ends_well(live: Callable[..., Life]) -> None:
    one = live()
    until(lambda: one.serves(0, 4), "it to serve")
    assert one.end("SIGUSR2") == "its job's time is up"
    two = live("00001.1", serve_for=0.5)
    two.thread.join(20)
    assert two.ended == "it has served as long as it was to"


def test_signals_that_come_while_it_drains_change_nothing(live: Callable[..., Life], tmp_path: Path) -> None:
    one = live(host={"script": {"drain": "wait"}, "flag": str(tmp_path / "flag")}, drain=20)
    until(lambda: one.serves(0, 4), "it to serve")
    one.stop.signal = "SIGUSR2"
    until(lambda: (record := one.record()) and record.reason, "it to leave")
    one.stop.signal = "SIGUSR2"
    (tmp_path / "flag").touch()
    one.thread.join(20)
    assert one.ended == "its job's time is up"
    one.stop.check()  # What commits the rank looks at this.


@pytest.mark.parametrize("drain", [0, 30, 90, 110, 300])
def test_slurms_warning_however_early_is_the_end_of_a_servers_time(tmp_path: Path, drain: float) -> None:
    """And not a preemption, after which the job would be queued again."""
    stage = StageSpec.model_validate(
        {
            "name": "swarm",
            "blocks": {"total": 8, "servers": 1, "drain": drain},
            "pipeline": [HOST_STEP],
            "executor": {"type": "slurm", "time": "1-00:00:00"},
        }
    )
    one = Life(tmp_path, drain=drain)
    warned_s = block_scripts(stage)["warning_s"] + 60
    one.server.identity = Identity("00000.1", "12_0", time.time() + warned_s)
    assert one.server.near_its_end()
    one.server.identity = Identity("00000.1", "12_0", time.time() + warned_s + 600)
    assert not one.server.near_its_end()


def test_settings_are_the_keys_of_a_file_and_its_defaults_are_what_was_simulated() -> None:
    spec = BlocksSpec(total=8, servers=2)
    assert vars(BlockSettings(total=8, servers=2)) == spec.model_dump()
    simulated = POLICIES["recommended"]
    assert RULES[spec.rebalance](spec.balance_quality) is simulated.rule
    assert (spec.lease, simulated.lock, simulated.delta) == (simulated.lease_s, True, True)
    assert spec.mean_block_selection_delay == MEAN_BLOCK_SELECTION_DELAY


def test_a_server_leaves_before_its_job_ends_without_being_told(tmp_path: Path) -> None:
    one = Life(tmp_path)
    one.server.identity = Identity("00000.1", "12_0", time.time() + 7)
    one.start()
    one.thread.join(20)
    assert one.ended == "its job's time is up"
    record = one.record()
    assert record is not None
    assert record.job_ends is not None


def test_it_moves_where_another_one_decides_and_loads_only_what_it_lacks(live: Callable[..., Life]) -> None:
    one = live(rebalance="none")
    until(lambda: one.serves(0, 4), "it to serve")
    leader = Registry(Storage(), one.folder, 8, "leader")
    assert leader.claim(lambda view: as_moves({"00000.1": range(2, 6)}, view)) is not None
    until(lambda: one.serves(2, 6), "it to move")
    assert one.host.calls[-3:] == [("unload", range(2)), ("load", range(4, 5)), ("load", range(5, 6))]
    record = one.record()
    assert record is not None
    assert (record.moves, record.blocks_loaded) == (1, 6)
    assert leader.claim(lambda view: as_moves({"00000.1": range(4)}, view)) is not None
    until(lambda: one.serves(0, 4), "it to move back")
    assert one.host.calls[-3:] == [("unload", range(4, 6)), ("load", range(1, 2)), ("load", range(1))]


def test_while_it_loads_it_serves_what_it_has_and_its_heart_beats(live: Callable[..., Life], tmp_path: Path) -> None:
    one = live(rebalance="none")
    until(lambda: one.serves(0, 4), "it to serve")
    one.host.flag = str(tmp_path / "flag")
    one.host.script["load"] = "wait"
    Registry(Storage(), one.folder, 8, "leader").claim(lambda view: as_moves({"00000.1": range(2, 6)}, view))

    def moving() -> ServerRecord | None:
        record = one.record()
        return record if record is not None and record.serving == (2, 4) else None

    record = until(moving, "it to drop what it leaves")
    assert (record.state, record.start, record.end) == (ServerState.JOINING, 2, 6)
    until(lambda: one.beats() > record.sequence + 2, "heartbeats")
    assert moving()
    Path(one.host.flag).touch()
    until(lambda: one.serves(2, 6), "it to be there")


@pytest.mark.parametrize("rebalance", ["planner", "own_gain", "full"])
def test_nobody_relies_on_a_server_that_is_to_leave_and_has_not_heard_of_it(tmp_path: Path, rebalance: str) -> None:
    """On the first half are a fast server, a slow one that is to leave it, and one that loads and serves nothing."""
    one = Life(tmp_path, rebalance=rebalance, lease=3600)
    for name, state, throughput in (
        ("00000.1", ServerState.ONLINE, 1.0),
        ("00001.1", ServerState.ONLINE, 0.1),
        ("00002.1", ServerState.JOINING, 1.0),
    ):
        serving = (0, 4) if state == ServerState.ONLINE else None
        record = ServerRecord(name, "node", None, state, 0, 4, serving, throughput, claim=0)
        one.server.registry.announce(record)
        one.server.record = one.server.record or record
    assert one.server.wanted_moves(one.reader.refresh()) == {"00000.1": range(4, 8)}
    leader = Registry(Storage(), one.folder, 8, "leader")
    assert leader.claim(lambda view: as_moves({"00001.1": range(4, 8)}, view)) is not None
    assert one.server.wanted_moves(one.reader.refresh()) == {}


@pytest.mark.parametrize("rebalance", ["planner", "own_gain", "full"])
def test_the_rules_move_servers_to_where_they_are_needed(live: Callable[..., Life], rebalance: str) -> None:
    """Two servers on the first half and none on the second; then both are where they are needed."""
    one = live(rebalance=rebalance)
    live("00001.1", rebalance=rebalance)

    def served() -> list[tuple[int, int]]:
        return sorted((span.start, span.end) for span in one.reader.refresh().online())

    until(lambda: served() == [(0, 4), (4, 8)], "both to serve")
    leader = Registry(Storage(), one.folder, 8, "leader")
    claim = leader.claim(lambda view: as_moves({"00000.1": range(4), "00001.1": range(4)}, view))
    assert claim is not None
    until(lambda: leader.refresh().claim > claim.number and served() == [(0, 4), (4, 8)], "one of them to move")


def test_a_server_that_was_taken_for_gone_says_that_it_is_there(live: Callable[..., Life]) -> None:
    one = live()
    until(lambda: one.serves(0, 4), "it to serve")
    Path(one.folder, "server.00000.1.json").unlink()
    until(lambda: one.serves(0, 4), "it to say so again")


def test_its_job_beginning_again_ends_what_it_was_before(live: Callable[..., Life]) -> None:
    one = live()
    until(lambda: one.serves(0, 4), "it to serve")
    one.end()
    dead = one.record()
    assert dead is not None
    Path(one.folder, "server.00000.1.json").write_bytes(
        ServerRecord.encode(
            ServerRecord(**{**vars(dead), "state": ServerState.ONLINE, "serving": (0, 4), "reason": ""})
        )
    )
    again = live("00000.1r1")
    until(lambda: again.serves(0, 4), "the blocks to be free for it")
    assert again.reader.refresh().gone["00000.1"].reason == "its job began again, as 00000.1r1"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ({"room": "fail"}, "counting what fits failed: RuntimeError: cannot room"),
        ({"measure": "fail"}, "measuring failed: RuntimeError: cannot measure"),
        ({"load": "fail"}, "loading block 0 failed: RuntimeError: cannot load"),
        ({"serve": "fail"}, "serving failed: RuntimeError: cannot serve"),
    ],
)
def test_a_failing_host_takes_its_blocks_out_of_the_registry_and_says_why(
    live: Callable[..., Life], script: dict[str, str], message: str
) -> None:
    one = live(host={"script": script})
    one.thread.join(20)
    assert isinstance(one.ended, StaggerError)
    assert str(one.ended) == message
    assert one.reader.refresh().members == {}
    if "load" in script or "serve" in script:
        record = one.record()
        assert record is not None
        assert record.reason == f"failed: {message}"


def test_a_host_that_hangs_keeps_no_one_from_leaving(live: Callable[..., Life]) -> None:
    one = live(host={"script": {"load": "hang"}})
    until(lambda: one.beats() > 3, "its heart to beat while it hangs")
    assert isinstance(one.end(), Interrupted)
    two = live("00001.1", host={"script": {"drain": "hang"}}, drain=0.2)
    until(lambda: two.serves(0, 4), "it to serve")
    assert two.end("SIGUSR2") == "its job's time is up"
    three = live("00002.1", host={"script": {"measure": "hang"}}, measure_timeout=0.3)
    three.thread.join(20)
    assert str(three.ended) == "measuring has taken more than 0.3 s."


def test_more_blocks_than_fit_are_refused(live: Callable[..., Life]) -> None:
    one = live(num_blocks=5)
    one.thread.join(20)
    assert str(one.ended) == "4 blocks fit on this host, not 5 (blocks.num_blocks)."
    two = live("00001.1", num_blocks=3)
    until(lambda: two.serves(0, 3), "it to serve")


def test_a_registry_that_cannot_be_written_for_a_while_costs_nobody_its_blocks(
    live: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = live()
    until(lambda: one.serves(0, 4), "it to serve")
    with monkeypatch.context() as patch:
        failed = threading.Event()

        def fail(*_: Any, **__: Any) -> None:
            failed.set()
            raise OSError(28, "No space left on device")

        patch.setattr(one.server.registry.storage, "write", fail)
        assert failed.wait(10)
    before = one.beats()
    until(lambda: one.beats() > before, "it to go on")
    assert one.serves(0, 4)


# ---- Measuring ----


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    return Path(cache_folder())


def test_a_host_is_measured_once_per_workload(cache: Path) -> None:
    calls: list[str] = []

    def measure(name: str, rps: float = 5.0) -> Speed:
        def once() -> Speed:
            calls.append(name)
            return Speed(rps, 7.0)

        return measured(name, once, 1.0)

    assert measure("a") == measure("a") == Speed(5.0, 7.0)
    assert measure("b", 6.0) == Speed(6.0, 7.0)
    assert calls == ["a", "b"]
    for file in cache.glob("*.json"):
        file.write_bytes(b'{"workload": "a"')
    assert measure("a") == Speed(5.0, 7.0)
    assert calls == ["a", "b", "a"]
    with pytest.raises(StaggerError, match="both must be more than 0"):
        measure("c", 0.0)
    with pytest.raises(StaggerError, match="both must be more than 0"):
        measure("c", float("nan"))


def test_servers_of_a_machine_measure_one_after_another_and_wait_no_longer_than_told(cache: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(cache)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    path = holder.stdout.readline().strip()
    with pytest.raises(StaggerError, match=r"has been measuring for 0\.2 s"):
        measured("held", lambda: Speed(1.0, 1.0), 0.2)
    holder.kill()  # The kernel lets the lock go.
    holder.wait()
    assert measured("held", lambda: Speed(1.0, 1.0), 5.0) == Speed(1.0, 1.0)
    assert Path(path).exists()


HOLD = """
import hashlib, sys, time
from stagger.blocks.measuring import locked
path = f"{sys.argv[1]}/{hashlib.sha256(b'held').hexdigest()[:24]}.json.lock"
with locked(path, 1, time.sleep):
    print(path, flush=True)
    sys.stdin.read()
"""


def test_a_cache_that_others_can_write_is_refused(cache: Path) -> None:
    cache.chmod(0o777)
    with pytest.raises(StaggerError, match="others may write there: remove it"):
        measured("a", lambda: Speed(1.0, 1.0), 1.0)


# ---- Whole runs ----


@pytest.fixture
def swarm(tmp_path: Path) -> Callable[..., Path]:
    """A pipeline file of a swarm."""

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


#: However long it takes to see that all servers are there, none fails before that, and none leaves.
HELD = '''
import os
from stagger.blocks.simulated import SimulatedHost

class Held(SimulatedHost):
    """Its time to fail begins when the file `flag` is there. Its process's number is in the file `flag`-<rank>."""

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
    """Servers of two kinds; one fails, and the others take over; then the time of all is up."""
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
    assert failure["error"] == ("serving failed: StaggerError: the simulated host fails after 0.1 s, as it was told to")
    record = json.loads((run / "completions" / "00000.json").read_text())
    assert record["notes"]["server"] == "00000.1"
    assert list((run / "registry").iterdir()) == []
    gone = cli("blocks", "status", run, check=1).out
    assert "none there" in gone
    assert "blocks without a server: 0-23" in gone


def test_ctrl_c_ends_a_rehearsal_and_leaves_nothing(cli: Cli, swarm: Callable[..., Path], tmp_path: Path) -> None:
    run = tmp_path / "swarm"
    launched = cli.start("launch", swarm(servers=2))
    until(lambda: len(list((run / "registry").glob("server.*"))) == 2, "the servers to be there")
    launched.send_signal(2)
    assert launched.wait(timeout=60) == 130
    assert counts(status(cli, run))[0] == 0
    log = (run / "logs" / "00000" / "1.log").read_text()
    assert "leaves: told to stop" in log


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
        (["blocks.total=null"], "blocks: say how many blocks there are: `total`, or the `model`"),
        (["blocks.servers=0"], "blocks.servers: input should be greater than 0"),
        (["blocks.num_blocks=25"], "num_blocks is 25, but the model has 24 blocks"),
        (["blocks.lease=1"], "it must be more than two heartbeats"),
        (["blocks.hots=simulated"], "blocks.hots: unknown key; did you mean 'host'?"),
        (["blocks.host=nonsense"], "blocks.host: "),
        (["blocks.host=no_such:Host"], "no_such"),
        (["blocks.host=tests.block_hosts:Half"], "is no host for blocks: it has no measure, load, unload, serve"),
        (["blocks.host_options.rom=3"], "blocks.host_options: simulated does not take them"),
        (["tasks=4"], "tasks: not for a stage with `blocks`: the number of servers is blocks.servers"),
        (["pipeline=[{read_jsonl: {path: x}}]"], "pipeline: not for a stage with `blocks`"),
        (["executor={type: local, workers: 2}"], "all 4 servers run at once here"),
        (["executor={type: slurm, ranks_per_job: 2}"], "each server is a job of its own on one node"),
        (["blocks.model=nowhere"], "nowhere/config.json cannot be read"),
        (["blocks.rebalance=petals"], "blocks.rebalance: input should be 'planner', 'own_gain', 'full' or 'none'"),
        (["blocks.balance_quality=0"], "blocks.balance_quality: input should be greater than 0"),
    ],
)
def test_each_mistake_is_one_sentence(cli: Cli, swarm: Callable[..., Path], wrong: list[str], message: str) -> None:
    root = str(Path(__file__).parent.parent)
    ran = cli("launch", swarm(), *(f"--set={change}" for change in wrong), check=2, PYTHONPATH=root)
    assert message in ran.err
    assert "Traceback" not in ran.err
    assert len(ran.err.splitlines()) == 1, ran.err


def test_commands_for_blocks_refuse_what_has_none(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    file = pipeline_file()
    assert "it has no stage with the key `blocks`" in cli("blocks", "launch", file, check=2).err
    cli("launch", file, check=0)
    assert "hosts no blocks; see where it stands with" in cli("blocks", "status", tmp_path / "run", check=2).err


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
