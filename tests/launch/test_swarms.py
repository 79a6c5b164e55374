"""Decisions about swarms on plain values: when they start, when nothing more comes of their users, who is replaced."""

from __future__ import annotations

import io
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from stagger.blocks.server.tending import LATER, NEVER
from stagger.errors import StaggerError
from stagger.launch import tend
from stagger.launch.retry_policy import decide
from stagger.launch.stages import Standing, Start, Waiting, next_start, with_swarms
from stagger.launch.swarms import LEFT_S, beside, left_to_commands, replacement_policy, settled
from stagger.rundir.end_record import EndRecord, write_end
from stagger.rundir.launch_records import EndJobRecord, Group, SlurmLaunch
from stagger.rundir.lock import InUse
from stagger.rundir.run_folder import RunFolder
from stagger.rundir.stage_folder import StageFolder
from stagger.spec.blocks import HOST_STEP
from stagger.spec.models import RunSpec, StageSpec
from stagger.status.failed import Failed
from stagger.storage.storage import Storage
from stagger.terminal import logger

SLURM = {"type": "slurm"}


def stage(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "pipeline": [{"read_jsonl": {"path": "in"}}], "executor": SLURM, **more}


def servers(name: str, **more: Any) -> dict[str, Any]:
    blocks = {"total": 8, "servers": 2}
    return {"name": name, "pipeline": [HOST_STEP], "blocks": blocks, "tasks": 2, "executor": SLURM, **more}


#: prepare -> score; convert -> swarm; score and embed use the swarm; report reads what score writes.
SPEC = RunSpec.model_validate(
    {
        "name": "run",
        "run_dir": "/run",
        "cwd": "/",
        "stages": [
            stage("prepare"),
            stage("convert"),
            servers("swarm", depends=["convert"]),
            stage("score", uses=["swarm"], depends=["prepare"]),
            stage("embed", uses=["swarm"]),
            stage("report", depends=["score"]),
        ],
    }
)

ONE, NONE = frozenset({0}), frozenset[int]()


def standings(*done: str, active: frozenset[int] = NONE) -> dict[str, Standing]:
    found = {}
    for one in SPEC.stages:
        users = tuple(user.name for user in SPEC.users_of(one.name))
        ranks = frozenset(range(one.tasks)) if one.name in done else NONE
        working = active if one.name == "swarm" else NONE
        found[one.name] = Standing(one.tasks, one.depends, ranks, working, one.uses, users)
    return found


@pytest.mark.parametrize(
    ("done", "swarm", "score"),
    [
        ([], Waiting(["prepare", "convert"]), Waiting(["prepare", "convert"])),
        (["prepare"], Waiting(["convert"]), Waiting(["convert"])),
        (["convert"], Start([0, 1]), Waiting(["prepare"])),  # For embed, which waits for nothing else.
        (["convert", "embed"], Waiting(["prepare"]), Waiting(["prepare"])),
        (["convert", "embed", "prepare"], Start([0, 1]), Start([0])),
        (["convert", "embed", "prepare", "swarm"], Start([0, 1]), Start([0])),  # Once more, for score.
        (["convert", "embed", "prepare", "score"], Start([]), Start([])),
    ],
)
def test_a_swarm_starts_with_the_first_user_that_can(
    done: list[str], swarm: Start | Waiting, score: Start | Waiting
) -> None:
    assert next_start("swarm", standings(*done), [], range(2)) == swarm
    assert next_start("score", standings(*done), [], range(1)) == score


def test_servers_that_run_are_not_started_twice() -> None:
    assert next_start("swarm", standings("convert", active=ONE), [], range(2)) == Start([1])


class Ended:
    """What `left_to_commands` reads of a look: its launches and its folder."""

    def __init__(self, folder: StageFolder, launches: list[SlurmLaunch]) -> None:
        self.launches = launches
        self.stage = SimpleNamespace(folder=folder)


def test_a_swarm_waits_some_time_for_commands_that_may_launch_what_jobs_may_not(tmp_path: Path) -> None:
    folder = StageFolder(Storage(), str(tmp_path))
    launch = SlurmLaunch(1, 1.0, "0", "uniform", 0, "{}", 1, {}, "", (), EndJobRecord("13", "end"))
    look: Any = Ended(folder, [launch])
    assert not left_to_commands(look), "it has not ended"
    for record, left in (
        (EndRecord("end job 13", 1.0, time.time(), said=("done",)), False),
        (EndRecord("end job 13", 1.0, time.time(), left=("retries of rank 1",)), True),
        (EndRecord("end job 13", 1.0, time.time(), error="sbatch: error"), True),
        (EndRecord("end job 13", 1.0, time.time() - 2 * LEFT_S, left=("retries of rank 1",)), False),
    ):
        write_end(folder, 1, record)
        assert left_to_commands(look) == left


def test_nothing_more_comes_of_a_stage_when_neither_it_nor_a_stage_ahead_works() -> None:
    assert settled(SPEC, "score", done={"score"}, working={"score"})
    assert not settled(SPEC, "score", done=[], working={"score"})
    assert not settled(SPEC, "score", done=[], working={"prepare"})
    assert not settled(SPEC, "score", done=[], working={"convert"}), "the swarm itself waits for it"
    assert settled(SPEC, "score", done=[], working={"report", "embed", "swarm"})


def test_stages_start_with_what_runs_beside_them() -> None:
    assert beside(SPEC, ["score"]) == ["swarm", "score"]
    assert beside(SPEC, ["swarm"]) == ["swarm", "score", "embed"]
    assert beside(SPEC, ["report"]) == ["report"]
    assert with_swarms(SPEC, [one.name for one in SPEC.stages]) == [
        "prepare",
        "convert",
        "swarm",
        "score",
        "embed",
        "report",
    ]
    assert with_swarms(SPEC, ["embed"]) == ["swarm", "embed"]


def lost(end: str, tries: int = 0) -> Failed:
    return Failed(1, Group([1], tries), end, None)


def test_lost_servers_are_replaced_as_often_as_their_jobs_may_be_requeued() -> None:
    retries = replacement_policy(StageSpec.model_validate(servers("swarm")))
    assert retries is not None
    for end in ("FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT", "CANCELLED"):
        (again,) = decide(retries, [lost(end)]).again
        assert (again.ranks, again.tries, again.memory_scale, again.time_scale) == ([1], 1, 1.0, 1.0)
    assert decide(retries, [lost("FAILED", tries=5)]).given_up == {1: "FAILED after 5 retries (retries.max)"}
    assert replacement_policy(StageSpec.model_validate(servers("swarm", executor={**SLURM, "max_requeues": 0}))) is None


def test_retries_decide_about_lost_servers_where_they_are_given() -> None:
    given = servers("swarm", retries={"max": 1, "on": ["OUT_OF_MEMORY"]}, executor={**SLURM, "max_requeues": 0})
    retries = replacement_policy(StageSpec.model_validate(given))
    assert retries is not None
    (again,) = decide(retries, [lost("OUT_OF_MEMORY")]).again
    assert again.memory_scale == 2.0
    assert decide(retries, [lost("FAILED")]).again == []
    assert decide(retries, [lost("CANCELLED")]).again != []
    assert decide(retries, [lost("OUT_OF_MEMORY", tries=1)]).again == []


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (InUse("/run is in use by process 7"), LATER, "not replaced yet"),
        (StaggerError("sbatch: error: Access/permission denied"), NEVER, "executor.nodes_submit: false"),
        (StaggerError("There is no sbatch on this node."), NEVER, "at once by launch --wait"),
        (StaggerError("sbatch: error: Invalid qos"), LATER, "Invalid qos"),
        (OSError(5, "Input/output error"), LATER, "Input/output error"),
    ],
)
def test_what_keeps_a_server_from_replacing_others_is_said_and_tried_again_if_that_may_help(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, error: Exception, status: int, said: str
) -> None:
    order = {"run_dir": "/run", "stage": "swarm", "storage_options": {}, "by": "00000.1", "gone": [], "silent": {}}

    class Input:
        buffer = io.BytesIO(orjson.dumps(order))

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    lines: list[str] = []
    monkeypatch.setattr("sys.stdin", Input)
    monkeypatch.setattr(RunFolder, "open", fail)
    monkeypatch.setattr(logger, "warning", lines.append)
    monkeypatch.setattr(logger, "error", lines.append)
    assert tend.main() == status
    assert said in " ".join(lines)
