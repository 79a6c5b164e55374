"""The life of a block server from claim to leave, also with hosts that fail or hang."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import Signals
from typing import Any

import pytest

from stagger.blocks.host import HostContext
from stagger.blocks.placement.petals import MEAN_BLOCK_SELECTION_DELAY
from stagger.blocks.placement.spans import ServerState
from stagger.blocks.server.balance import RULES
from stagger.blocks.server.block_server import BlockServer, Identity
from stagger.blocks.server.lifetime import Lifetime
from stagger.blocks.server.records import Placed, ServerRecord
from stagger.blocks.server.registry import BEGAN, Registry, as_moves
from stagger.blocks.simulation.policies import POLICIES
from stagger.blocks.swarm_place import END
from stagger.errors import Interrupted, StaggerError
from stagger.executor.arrays import block_scripts
from stagger.pipeline.task_context import StopFlag
from stagger.spec.block_settings import BlockSettings
from stagger.spec.blocks import HOST_STEP, BlocksSpec
from stagger.spec.models import StageSpec
from stagger.storage.storage import Storage
from tests.blocks.conftest import QUICK
from tests.conftest import PATIENCE_S, until
from tests.kit.block_hosts import Recorder


class Life:
    """A server in its own thread, and a separate reader of its registry."""

    def __init__(
        self,
        folder: Path,
        name: str = "00000.1",
        host: dict[str, Any] | None = None,
        job_ends: float | None = None,
        has_users: bool = False,
        **settings: Any,
    ) -> None:
        self.settings = BlockSettings(**{**QUICK, **settings})
        self.stop = StopFlag()
        context = HostContext(
            8, None, int(name[:5]), lambda: self.server.is_told_to_stop(), view=lambda: self.server.registry.latest
        )
        self.host = Recorder(context, **(host or {}))
        self.folder = str(folder / "registry")
        registry = Registry(Storage(), self.folder, 8, name, lease_s=self.settings.lease)
        identity = Identity(name, "12_0", job_ends, has_users)
        self.server = BlockServer(self.settings, self.host, registry, identity, self.stop, seed=1)
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

    def end(self, signal: Signals = Signals.SIGTERM) -> Any:
        """Send the signal, and return the result or the error of the server."""
        self.stop.signal = signal
        self.thread.join(PATIENCE_S)
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
        life.stop.signal = Signals.SIGTERM


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
    assert (record.state, record.serving, record.reason) == (ServerState.OFFLINE, None, "stopped by SIGTERM")
    assert one.host.calls == ["measure", *(("load", range(b, b + 1)) for b in range(4)), "drained"]
    assert one.server.notes() == {"server": "00000.1", "moves": 0, "blocks_loaded": 4}


def test_a_server_whose_time_is_up_ends_well(live: Callable[..., Life]) -> None:
    one = live()
    until(lambda: one.serves(0, 4), "it to serve")
    assert one.end(Signals.SIGUSR2) == "its job's time is up"
    two = live("00001.1", serve_for=0.5)
    two.thread.join(PATIENCE_S)
    assert two.ended == "blocks.serve_for has elapsed"


def test_signals_that_come_while_it_drains_change_nothing(live: Callable[..., Life], tmp_path: Path) -> None:
    one = live(host={"script": {"drain": "wait"}, "flag": str(tmp_path / "flag")}, drain=20)
    until(lambda: one.serves(0, 4), "it to serve")
    one.stop.signal = Signals.SIGUSR2
    until(lambda: (record := one.record()) and record.reason, "it to leave")
    one.stop.signal = Signals.SIGUSR2
    (tmp_path / "flag").touch()
    one.thread.join(PATIENCE_S)
    assert one.ended == "its job's time is up"
    one.stop.check()  # The commit of the rank checks this.


@pytest.mark.parametrize("drain", [0, 30, 90, 110, 300])
def test_slurms_warning_however_early_is_the_end_of_a_servers_time(tmp_path: Path, drain: float) -> None:
    """The warning must not count as preemption, after which the job would be requeued."""
    stage = StageSpec.model_validate(
        {
            "name": "swarm",
            "blocks": {"total": 8, "servers": 1, "drain": drain},
            "pipeline": [HOST_STEP],
            "executor": {"type": "slurm", "time": "1-00:00:00"},
        }
    )
    warned_s = block_scripts(stage)["warning_s"] + 60
    assert Lifetime(0.0, 1000.0 + warned_s, drain).is_near_its_end(1000.0)
    assert not Lifetime(0.0, 1600.0 + warned_s, drain).is_near_its_end(1000.0)


def test_settings_are_the_keys_of_a_file_and_its_defaults_are_what_was_simulated() -> None:
    spec = BlocksSpec(total=8, servers=2)
    assert vars(BlockSettings(total=8, servers=2)) == spec.model_dump()
    simulated = POLICIES["recommended"]
    assert RULES[spec.rebalance](spec.balance_quality) is simulated.rule
    assert (spec.lease, simulated.lock, simulated.delta) == (simulated.lease_s, True, True)
    assert spec.mean_block_selection_delay == MEAN_BLOCK_SELECTION_DELAY


def test_a_server_leaves_before_its_job_ends_without_being_told(tmp_path: Path) -> None:
    one = Life(tmp_path, job_ends=time.time() + 8).start()
    one.thread.join(PATIENCE_S)
    assert one.ended == "its job's time is up"
    record = one.record()
    assert record is not None
    assert record.job_ends is not None


def test_a_swarm_with_users_comes_back_when_its_jobs_time_is_up(tmp_path: Path) -> None:
    """No rank of it is done then: the attempt ends as interrupted, and the job is requeued however often it was."""
    one = Life(tmp_path, job_ends=time.time() + 8, has_users=True).start()
    one.thread.join(PATIENCE_S)
    assert isinstance(one.ended, Interrupted)
    assert (one.ended.signal, one.stop.planned) == (Signals.SIGUSR2, True)
    assert one.record().reason == "its job's time is up; it comes back in a new one"  # type: ignore[union-attr]


def test_a_job_whose_time_does_not_suffice_to_load_a_block_is_not_requeued_for_ever(tmp_path: Path) -> None:
    """It leaves while it loads, too; that its job got nothing done keeps it from being requeued."""
    one = Life(tmp_path, host={"script": {"load": "hang"}}, job_ends=time.time() + 8, has_users=True).start()
    one.thread.join(PATIENCE_S)
    assert isinstance(one.ended, Interrupted)
    assert not one.stop.planned
    short = Life(tmp_path, "00001.1", job_ends=time.time() + 6, has_users=True).start()
    short.thread.join(PATIENCE_S)
    assert str(short.ended) == "The job's time leaves none to serve: draining takes 1 s (executor.time, blocks.drain)."


def test_slurms_warning_to_all_servers_at_once_does_not_end_those_that_come_back(live: Callable[..., Life]) -> None:
    one = live(job_ends=time.time() + 3600, has_users=True)
    until(lambda: one.serves(0, 4), "it to serve")
    one.stop.signal = Signals.SIGUSR2
    until(lambda: one.stop.signal is None, "the warning to be heard")
    before = one.beats()
    until(lambda: one.beats() > before, "it to go on")
    one.end()
    assert not one.stop.planned, "a preempted job is requeued by other rules"


def test_a_swarm_that_has_ended_is_left_and_not_joined(live: Callable[..., Life]) -> None:
    one = live(has_users=True, job_ends=time.time() + 3600)
    until(lambda: one.serves(0, 4), "it to serve")
    Path(one.folder, END).write_text("{}")
    one.thread.join(PATIENCE_S)
    assert one.ended == "the stages that use the swarm have ended"
    late = live("00001.1")
    late.thread.join(PATIENCE_S)
    assert late.ended == one.ended
    assert late.record() is None, "it has claimed nothing"


def test_serve_for_counts_from_the_first_servers_start(live: Callable[..., Life], tmp_path: Path) -> None:
    one = live(serve_for=3600.0)
    until(lambda: one.serves(0, 4), "it to serve")
    Path(one.folder, BEGAN).write_text(f'{{"time": {time.time() - 4000}}}')
    two = live("00001.1", serve_for=3600.0)
    two.thread.join(PATIENCE_S)
    assert two.ended == "blocks.serve_for has elapsed"
    assert one.thread.is_alive()


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
    """The first half has a fast server, a slow one that has to leave, and one that is loading and serves nothing."""
    one = Life(tmp_path, rebalance=rebalance, lease=3600)
    for name, state, throughput in (
        ("00000.1", ServerState.ONLINE, 1.0),
        ("00001.1", ServerState.ONLINE, 0.1),
        ("00002.1", ServerState.JOINING, 1.0),
    ):
        serving = (0, 4) if state == ServerState.ONLINE else None
        record = ServerRecord(name, "node", None, state, 0, 4, serving, throughput, claim=0)
        one.server.registry.announce(record)
        one.server.membership.record = one.server.membership.record or record
    assert one.server.balance.wanted_moves(one.reader.refresh(), 3.0) == {"00000.1": range(4, 8)}
    leader = Registry(Storage(), one.folder, 8, "leader")
    assert leader.claim(lambda view: as_moves({"00001.1": range(4, 8)}, view)) is not None
    assert one.server.balance.wanted_moves(one.reader.refresh(), 3.0) == {}


@pytest.mark.parametrize("rebalance", ["planner", "own_gain", "full"])
def test_the_rules_move_servers_to_where_they_are_needed(live: Callable[..., Life], rebalance: str) -> None:
    """Both servers are sent to the first half; then one of them moves back to the second."""
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


@pytest.mark.parametrize("again", [True, False])
def test_a_server_whose_folder_was_moved_away_ends_and_serves_nobody_in_a_new_one(
    live: Callable[..., Life], tmp_path: Path, again: bool
) -> None:
    """Also where a new run has begun in its place, and has made fewer claims."""
    one = live(lease=0.5)
    until(lambda: one.serves(0, 4), "it to serve")
    leader = Registry(Storage(), one.folder, 8, "leader")
    claim = leader.claim(lambda view: as_moves({"00000.1": range(4, 8)}, view))
    assert claim is not None
    until(lambda: one.serves(4, 8), "it to move")
    Path(one.folder).rename(tmp_path / "elsewhere")
    if again:
        later = Registry(Storage(), one.folder, 8, "00001.1")
        assert later.claim(lambda _: {"00001.1": Placed(0, 4, 1.0)}) is not None
    one.thread.join(PATIENCE_S)
    assert isinstance(one.ended, StaggerError)
    assert f"{one.folder} was moved or removed while this server ran: claim 2 is not" in str(one.ended)


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
    assert again.reader.refresh().gone["00000.1"].reason == "its job restarted as 00000.1r1"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ({"room": "fail"}, "counting the blocks that fit failed: RuntimeError: cannot room"),
        ({"measure": "fail"}, "measuring failed: RuntimeError: cannot measure"),
        ({"load": "fail"}, "loading block 0 failed: RuntimeError: cannot load"),
        ({"serve": "fail"}, "serving failed: RuntimeError: cannot serve"),
    ],
)
def test_a_failing_host_takes_its_blocks_out_of_the_registry_and_says_why(
    live: Callable[..., Life], script: dict[str, str], message: str
) -> None:
    one = live(host={"script": script})
    one.thread.join(PATIENCE_S)
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
    assert two.end(Signals.SIGUSR2) == "its job's time is up"
    three = live("00002.1", host={"script": {"measure": "hang"}}, measure_timeout=0.3)
    three.thread.join(PATIENCE_S)
    assert str(three.ended) == "measuring has taken more than 0.3 s."


def test_a_host_says_who_it_is_and_what_it_counts(live: Callable[..., Life]) -> None:
    one = live()
    until(lambda: one.serves(0, 4), "it to serve")
    record = one.record()
    assert record is not None
    assert record.about == {"address": "tcp://node:1", "dtype": "bfloat16"}
    assert one.host.planned == [[0, 1, 2, 3]], "the order of the loads is known before the first"
    assert (record.throughput, record.pass_throughput) == (400.0, 250.0)
    one.host.counted = {"queue": 7, "forward_rps": 990.0}  # Noise.
    until(lambda: one.record().counters.get("queue") == 7, "a heartbeat")  # type: ignore[union-attr]
    assert one.record().throughput == 400.0  # type: ignore[union-attr]
    one.host.counted = {"forward_rps": 500.0}
    until(lambda: one.record().throughput == 200.0, "the speed to be refined")  # type: ignore[union-attr]
    seen = one.host.context.view
    until(lambda: seen().members[one.name].record.throughput == 200.0, "the host to see it")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("counters", "message"),
    [([], "counters() of the host returned list, not a dict."), ({"a": {1}}, "what JSON cannot hold"), (9000, "9,0")],
)
def test_a_host_that_says_what_no_record_can_hold_fails(live: Callable[..., Life], counters: Any, message: str) -> None:
    one = live()
    until(lambda: one.serves(0, 4), "it to serve")
    one.host.counted = {"a": "b" * counters} if isinstance(counters, int) else counters
    one.thread.join(PATIENCE_S)
    assert message in str(one.ended)
    assert one.record().state == ServerState.OFFLINE  # type: ignore[union-attr]


def test_an_attempt_that_was_taken_for_dead_leaves_when_a_later_one_has_joined(live: Callable[..., Life]) -> None:
    one = live()
    until(lambda: one.serves(0, 4), "it to serve")
    two = live("00000.1r1")
    until(lambda: two.serves(0, 4), "the later one to take its place")
    one.thread.join(PATIENCE_S)
    assert str(one.ended) == "Its rank started again as 00000.1r1."


def test_more_blocks_than_fit_are_refused(live: Callable[..., Life]) -> None:
    one = live(num_blocks=5)
    one.thread.join(PATIENCE_S)
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
