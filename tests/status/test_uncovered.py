"""The status of a stage that waits for blocks of its swarm says which ones, and what the servers do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stagger.blocks.placement.spans import ServerState
from stagger.blocks.server.records import ServerRecord
from stagger.blocks.server.registry import Registry
from stagger.storage.storage import Storage
from tests.conftest import Cli, PipelineFiles
from tests.kit.runs import SLURM, launches
from tests.kit.slurm_front import front


def serving(rank: int, start: int, end: int) -> ServerRecord:
    return ServerRecord(f"{rank:05d}.1", "n1", None, ServerState.ONLINE, start, end, (start, end), 1.0, claim=0)


def test_a_stage_names_the_blocks_that_it_waits_for(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    queue, run = tmp_path / "queue", tmp_path / "run"
    queue.touch()
    front(cli, tmp_path, squeue=f"cat {queue}")
    steps = [{"read_jsonl": {"path": str(pipeline_file.shards)}}, {"write_jsonl": {"path": str(tmp_path / "out")}}]
    hosts = {"total": 8, "servers": 3}
    stages = [
        {"name": "swarm", "blocks": hosts, "executor": {**SLURM, "gpus_per_task": 1}},
        {"name": "score", "uses": ["swarm"], "tasks": 1, "pipeline": steps, "executor": SLURM},
    ]
    file = tmp_path / "swarm.yaml"
    file.write_text(json.dumps({"name": "swarm", "run_dir": str(run), "stages": stages}))
    cli("launch", file, check=0)

    def lists(swarm: list[str], score: str) -> None:
        rows = []
        for stage, states in (("swarm", swarm), ("score", [score])):
            (array,) = launches(run / stage)[0]["arrays"]
            rows += [
                f"{array['job_id']}|{index}|{state}|9:59|N/A|None|{array['name']}|\n"
                for index, state in enumerate(states)
            ]
        queue.write_text("".join(rows))

    def waits() -> list[str]:
        swarm, score = cli("status", run, "--json").json["stages"]
        assert swarm["waits_for"] == []
        found: list[str] = score["waits_for"]
        return found

    lists(["PENDING", "PENDING", "PENDING"], "PENDING")
    assert waits() == [], "it does not run yet"
    lists(["PENDING", "PENDING", "PENDING"], "RUNNING")
    assert waits() == ["blocks 0-7 of swarm, which no server serves; of its 3 servers 3 are queued"]
    registry = Registry(Storage(), str(run / "swarm" / "registry"), 8, "00000.1")
    registry.announce(serving(0, 0, 5))
    registry.announce(serving(1, 5, 8))
    lists(["RUNNING", "RUNNING", "PENDING"], "RUNNING")
    assert waits() == []
    lists(["RUNNING", "COMPLETED", "PENDING"], "RUNNING")
    waiting = "blocks 5-7 of swarm, which no server serves; of its 3 servers 1 runs and 1 is queued"
    assert waits() == [waiting]
    assert f"waits for {waiting}" in cli("status", run).out
    lists(["COMPLETED", "COMPLETED", "COMPLETED"], "RUNNING")
    assert waits() == ["blocks 0-7 of swarm, which no server serves; none of its servers runs"]


@pytest.mark.parametrize(("servers", "num_blocks", "refused"), [(2, 3, True), (3, 3, False), (1, "auto", False)])
def test_a_swarm_that_cannot_hold_the_model_is_refused(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, servers: int, num_blocks: int | str, refused: bool
) -> None:
    """Its users would wait for ever."""
    steps = [{"read_jsonl": {"path": str(pipeline_file.shards)}}, {"write_jsonl": {"path": str(tmp_path / "out")}}]
    hosts = {"total": 8, "servers": servers, "num_blocks": num_blocks}
    stages = [{"name": "swarm", "blocks": hosts}, {"name": "score", "uses": ["swarm"], "tasks": 1, "pipeline": steps}]
    file = tmp_path / "swarm.yaml"
    executor = {"type": "local", "workers": 4}
    content = {"name": "swarm", "run_dir": str(tmp_path / "run"), "executor": executor, "stages": stages}
    file.write_text(json.dumps(content))
    said = cli("launch", file, "--dry-run", check=2 if refused else 0).err
    assert ("never serve all 8 blocks of the model: raise servers to 3, or num_blocks" in said) == refused
