"""A swarm on this machine beside a stage that uses it: both run, and the swarm ends with its user."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stagger.blocks.server.records import rank_of
from stagger.blocks.server.registry import Registry
from stagger.blocks.swarm_place import END
from stagger.storage.storage import Storage
from tests.conftest import Cli, PipelineFiles, output_ids, until
from tests.kit.runs import EVERYTHING

SWARM: dict[str, Any] = {
    "name": "swarm",
    "blocks": {
        "total": 8,
        "servers": 2,
        "host_options": {"room": 4, "seconds_per_block": 0},
        "mean_block_selection_delay": 0,
        "heartbeat": 0.2,
        "lease": 2,
        "drain": 1,
    },
}


def file_of(files: PipelineFiles, folder: Path, *steps: dict[str, Any], **more: Any) -> Path:
    read, write = {"read_jsonl": {"path": str(files.shards)}}, {"write_jsonl": {"path": str(folder / "out")}}
    first = {"name": "first", "pipeline": [read, {"write_jsonl": {"path": str(folder / "between")}}]}
    user = {
        "name": "score",
        "uses": ["swarm"],
        "depends": ["first"],
        "tasks": 2,
        "pipeline": [{"read_jsonl": {"path": str(folder / "between")}}, *steps, write],
    }
    content = {"name": "both", "run_dir": str(folder / "run"), "stages": [SWARM, user, first], **more}
    path = folder / "both.yaml"
    path.write_text(json.dumps(content))
    return path


def online(run: Path) -> dict[int, tuple[str, str]]:
    """Rank -> its server and its job, of those that serve."""
    members = Registry(Storage(), str(run / "swarm" / "registry"), 8, lease_s=2).refresh().members
    return {rank_of(name): (name, one.record.job) for name, one in members.items() if one.record and one.serving}


def test_it_starts_with_its_user_restarts_what_dies_and_ends(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    """The swarm is the first stage of the file, and waits all the same until its user can start."""
    flag, run = tmp_path / "flag", tmp_path / "run"
    file = file_of(pipeline_file, tmp_path, {"my_steps:hold": {"flag": str(flag)}})
    command = [sys.executable, "-m", "stagger", "launch", str(file)]
    process = subprocess.Popen(command, cwd=tmp_path, env=cli.env, stderr=subprocess.PIPE, text=True)
    until(lambda: len(online(run)) == 2, "both servers")
    os.kill(int(online(run)[1][1].removeprefix("local-")), signal.SIGKILL)
    until(lambda: online(run).get(1, ("", ""))[0] == "00001.1r1", "it to be restarted")
    flag.touch()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert output_ids(tmp_path / "out") == EVERYTHING
    assert "server 1 died: restart 1 of 5" in err
    assert "swarm ends: score is done" in err
    assert [path.name for path in (run / "swarm" / "registry").iterdir()] == [END]
    stages = cli("status", run, "--json", check=0).json["stages"]
    assert {stage["name"]: (stage["done"], stage["failed"]) for stage in stages} == {
        "swarm": (2, 0),
        "score": (2, 0),
        "first": (1, 0),
    }
    cli("launch", file, check=0)
    assert len(list((run / "swarm" / "launches").iterdir())) == 1, "there is nothing left to do"


def test_it_ends_with_a_user_that_fails_and_begins_again_with_its_retry(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    flag, run = tmp_path / "flag", tmp_path / "run"
    file = file_of(pipeline_file, tmp_path, {"my_steps:fail_on": {"ranks": [0], "flag": str(flag)}})
    err = cli("launch", file, check=1).err
    assert "swarm ends: its users have ended" in err
    flag.touch()
    cli("retry", run, "--stage", "score", check=0)
    assert output_ids(tmp_path / "out") == EVERYTHING
    assert len(list((run / "swarm" / "launches").iterdir())) == 2


def test_ctrl_c_stops_both(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    flag, run = tmp_path / "flag", tmp_path / "run"
    file = file_of(pipeline_file, tmp_path, {"my_steps:hold": {"flag": str(flag)}})
    command = [sys.executable, "-m", "stagger", "launch", str(file)]
    process = subprocess.Popen(command, cwd=tmp_path, env=cli.env, stderr=subprocess.PIPE, text=True)
    until(lambda: len(online(run)) == 2 and Path(f"{flag}-0").exists(), "both stages to run")
    pids = [int(job.removeprefix("local-")) for _, job in online(run).values()]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the servers to end")
    assert not (run / "lock").exists()


WRONG: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"uses": ["swam"]}, {}, "there is no stage 'swam'; did you mean 'swarm'?"),
    ({"uses": ["score"]}, {}, "the stage 'score' uses itself"),
    ({"uses": ["first"]}, {}, "uses 'first', which has no `blocks`; to wait until a stage is done, write `depends`"),
    ({"depends": ["swarm"]}, {}, "uses 'swarm' and waits for its end, but 'swarm' ends after it"),
    ({"executor": {"type": "slurm"}}, {}, "one of them runs on Slurm and the other on this machine"),
    ({}, {"uses": ["first"]}, "servers of blocks use no other servers: leave `uses` out"),
    ({}, {"depends": ["score"]}, "these stages wait for each other"),
    ({}, {"blocks": {**SWARM["blocks"], "serve_for": 60}}, "leave blocks.serve_for of 'swarm' out"),
]


@pytest.mark.parametrize(("user", "swarm", "message"), WRONG)
def test_each_mistake_is_told_before_anything_starts(
    cli: Cli,
    pipeline_file: PipelineFiles,
    tmp_path: Path,
    user: dict[str, Any],
    swarm: dict[str, Any],
    message: str,
) -> None:
    file = file_of(pipeline_file, tmp_path)
    content = json.loads(file.read_text())
    content["stages"][1] |= user
    content["stages"][0] |= swarm
    file.write_text(json.dumps(content))
    done = cli("launch", file, "--dry-run", check=2)
    assert message in done.err
    assert not (tmp_path / "run").exists()
