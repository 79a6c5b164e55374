"""A swarm on the real cluster beside a stage that uses it: lost servers come back without a hand, all end together."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from stagger.blocks.coverage import missing_blocks
from stagger.blocks.server.records import rank_of
from stagger.blocks.server.registry import Registry
from stagger.blocks.swarm_place import END
from stagger.ranks import parse_ranks
from stagger.storage.storage import Storage
from tests.conftest import PATIENCE_S, Cli, PipelineFiles, until
from tests.kit.runs import launches
from tests.slurm.conftest import slurm
from tests.slurm.test_block_jobs import kill

TOTAL, SERVERS, LEASE_S = 8, 4, 3

SWARM: dict[str, Any] = {
    "name": "swarm",
    "blocks": {
        "total": TOTAL,
        "servers": SERVERS,
        "host_options": {"room": 4, "seconds_per_block": 0.05},
        "mean_block_selection_delay": 0.2,
        "mean_balance_check_period": 2,
        "heartbeat": 0.5,
        "lease": LEASE_S,
        "drain": 1,
    },
    "executor": {"type": "slurm", "partition": "gpu", "gpus_per_task": 1, "time": 10},
}


class Swarm:
    """A run of a swarm, and of a stage that uses it until the test lets it go on."""

    def __init__(self, cli: Cli, files: PipelineFiles, run: Path) -> None:
        self.cli = cli
        self.files = files
        self.run = run
        self.registry = Registry(Storage(), str(run / "swarm" / "registry"), TOTAL, lease_s=LEASE_S)

    def launch(self, *steps: dict[str, Any], servers: int = SERVERS, time_limit: int = 10) -> None:
        user = {
            "name": "score",
            "uses": ["swarm"],
            "tasks": 2,
            "pipeline": [
                {"read_jsonl": {"path": str(self.files.shards)}},
                *steps,
                {"write_jsonl": {"path": str(self.run.parent / "out")}},
            ],
            "executor": {"type": "slurm", "partition": "cpu", "time": 10},
        }
        stages = [
            user,
            {
                **SWARM,
                "blocks": {**SWARM["blocks"], "servers": servers},
                "executor": {**SWARM["executor"], "time": time_limit},
            },
        ]
        content = {"name": "swarm", "run_dir": str(self.run), "randomize_start_duration": 0, "stages": stages}
        file = self.run.parent / "swarm.yaml"
        file.write_text(json.dumps(content))
        self.cli("launch", file, check=0)

    def online(self) -> dict[int, str]:
        """Rank -> its server, of those that serve all of their blocks."""
        members = self.registry.refresh().members
        return {rank_of(name): name for name, one in members.items() if one.serving == one.target[:2]}

    def beats(self) -> dict[str, int]:
        """The number of announcements of each server."""
        members = self.registry.refresh().members
        return {name: one.record.sequence for name, one in members.items() if one.record is not None}

    def tends(self) -> set[int]:
        """The rank of the server that has looked after the others last."""
        found: set[int] = set()
        for path in (self.run / "swarm" / "registry").glob("tend.*.json"):
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                found.add(rank_of(json.loads(path.read_text())["by"]))
        return found

    def stages(self) -> dict[str, dict[str, Any]]:
        return {stage["name"]: stage for stage in self.cli("status", self.run, "--json").json["stages"]}

    def ended(self) -> bool:
        """Whether no job of the run is queued or running."""
        ids = {job["job_id"] for one in ("swarm", "score") for at in launches(self.run / one) for job in jobs(at)}
        return not set(slurm(self.cli, "squeue", "--noheader", "--format=%F").split()) & ids


def ranks(array: dict[str, Any]) -> list[int]:
    return parse_ranks(array["ranks"])


def jobs(launch: dict[str, Any]) -> list[dict[str, Any]]:
    return [*launch["arrays"], launch["finalize"]]


@pytest.fixture
def swarm(slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> Swarm:
    return Swarm(slurm_cli, pipeline_file, tmp_path / "run")


def test_lost_servers_are_replaced_and_the_swarm_ends_with_its_user(swarm: Swarm, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    swarm.launch({"my_steps:hold": {"flag": str(flag)}})
    until(lambda: len(swarm.online()) == SERVERS, "all to serve")
    first = swarm.online()
    (array,) = launches(swarm.run / "swarm")[0]["arrays"]

    # One is killed, one is cancelled past stagger: both come back as other jobs, while the user goes on.
    killed_at = time.time()
    kill(array["job_id"], 1)
    subprocess.run(["scancel", f"{array['job_id']}_2"], env=swarm.cli.env, check=True)
    until(lambda: len(swarm.online()) == SERVERS and not {first[1], first[2]} & set(swarm.online().values()), "both")
    print(f"replaced {time.time() - killed_at:.1f} s after the loss; lease {LEASE_S} s")
    assert {rank: name for rank, name in swarm.online().items() if rank in (0, 3)} == {0: first[0], 3: first[3]}
    launched = launches(swarm.run / "swarm")
    again = sorted(array["ranks"] for one in launched[1:] for array in one["arrays"])
    assert again in (["1-2"], ["1", "2"]), "each was replaced once"
    text = swarm.cli("status", swarm.run).out
    assert "replaced" in text
    assert swarm.stages()["swarm"]["running"] == SERVERS

    # The last user is done: the swarm ends, and leaves neither jobs nor records of servers.
    flag.touch()
    until(lambda: swarm.ended(), "all jobs to end")
    stages = swarm.stages()
    assert {name: stage["done"] for name, stage in stages.items()} == {"swarm": SERVERS, "score": 2}
    assert [path.name for path in (swarm.run / "swarm" / "registry").iterdir()] == [END]
    log = next((swarm.run / "swarm" / "logs" / "00000").glob("*.log")).read_text()
    assert "leaves: the stages that use the swarm have ended" in log
    swarm.cli("retry", swarm.run, check=0)
    assert swarm.ended(), "there is nothing to do again"


def test_servers_of_an_array_leave_at_different_times_hand_over_and_come_back(swarm: Swarm, tmp_path: Path) -> None:
    """Each of eight blocks is on three of six servers, and each server's time limit is a minute."""
    flag, servers, spare = tmp_path / "flag", 6, 2
    swarm.launch({"my_steps:hold": {"flag": str(flag)}}, servers=servers, time_limit=1)
    until(lambda: len(swarm.online()) == servers, "all to serve")
    first = set(swarm.online().values())
    gone: dict[str, float] = {}

    def all_are_others() -> bool:
        view = swarm.registry.refresh()
        for name in first - view.members.keys() - gone.keys():
            gone[name] = time.monotonic()
        if len(view.online()) >= servers - spare:
            assert not missing_blocks(view, TOTAL), "others have the blocks of those that leave"
        return len(gone) == servers == len(swarm.online())

    until(all_are_others, "each to leave, and to come back", 2 * PATIENCE_S)
    assert {name.replace(".1r1", ".1") for name in swarm.online().values()} == first, (
        "none came twice, or as another job"
    )
    assert len(launches(swarm.run / "swarm")) == 1
    spread = max(gone.values()) - min(gone.values())
    print(f"left within {spread:.1f} s, by design 18 s")
    assert spread > 2, "without chance, all would be gone at once"
    for name in first:
        rank, _, attempt = name.partition(".")
        log = (swarm.run / "swarm" / "logs" / rank / f"{attempt}.log").read_text()
        assert "leaves: its job's time is up; it comes back in a new one" in log
    flag.touch()
    until(swarm.ended, "all jobs to end")
    assert {name: stage["done"] for name, stage in swarm.stages().items()} == {"swarm": servers, "score": 2}


def test_servers_that_die_while_they_replace_others_lose_nothing_and_double_nothing(
    swarm: Swarm, tmp_path: Path
) -> None:
    """Each of them is killed, with the process that it has started, as soon as it has claimed to replace another."""
    flag = tmp_path / "flag"
    swarm.launch({"my_steps:hold": {"flag": str(flag)}})
    until(lambda: len(swarm.online()) == SERVERS, "all to serve")
    first = swarm.online()
    (array,) = launches(swarm.run / "swarm")[0]["arrays"]
    kill(array["job_id"], 0)
    victims = {0}
    for _ in range(2):
        by = until(lambda: swarm.tends() - victims, "another server to look after the lost ones").pop()
        kill(array["job_id"], by, also="stagger.launch.tend")
        victims.add(by)
    until(
        lambda: (
            {rank for rank, name in swarm.online().items() if name != first[rank]} == victims
            and len(swarm.online()) == SERVERS
        ),
        "all to be replaced",
    )
    before = swarm.beats()
    until(lambda: all(count > before[name] + 12 for name, count in swarm.beats().items()), "two leases to pass")
    again = [rank for one in launches(swarm.run / "swarm")[1:] for array in one["arrays"] for rank in ranks(array)]
    assert sorted(again) == sorted(victims)
    flag.touch()
    until(lambda: swarm.ended(), "all jobs to end")


def test_a_swarm_ends_when_its_user_has_failed_for_good_and_begins_again_with_it(swarm: Swarm, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    swarm.launch({"my_steps:fail_on": {"ranks": [1], "flag": str(flag)}})
    until(lambda: swarm.stages()["score"]["failed"] == 1, "the user to fail")
    until(lambda: swarm.ended(), "the swarm to end")
    assert (swarm.run / "swarm" / "registry" / END).exists()
    assert swarm.stages()["swarm"]["done"] == SERVERS

    flag.touch()
    swarm.cli("retry", swarm.run, "--stage", "score", check=0)
    until(lambda: swarm.stages()["score"]["done"] == 2, "the user to be done")
    until(lambda: swarm.ended(), "the swarm to end again")
    assert len(launches(swarm.run / "swarm")) == 2
    assert swarm.stages()["swarm"]["done"] == SERVERS


def test_a_swarm_that_is_cancelled_alone_begins_again_beside_its_user(swarm: Swarm, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    swarm.launch({"my_steps:hold": {"flag": str(flag)}})
    until(lambda: len(swarm.online()) == SERVERS, "all to serve")
    until(Path(f"{flag}-1").exists, "the user to be at work")
    said = swarm.cli("cancel", swarm.run, "--stage", "swarm", check=0).out
    assert f"score waits for servers of swarm: start these again with: stagger retry {swarm.run};" in said
    swarm.cli("retry", swarm.run, check=0)
    until(lambda: len(swarm.online()) == SERVERS, "all to serve again")
    flag.touch()
    until(swarm.ended, "all jobs to end")
    assert {name: stage["done"] for name, stage in swarm.stages().items()} == {"swarm": SERVERS, "score": 2}
