"""`tasks: auto` and `bytes_per_task`: the input decides the number of ranks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagger import LocalExecutor, ReadJsonl, StaggerError, WriteJsonl
from stagger.pipeline import Shard
from stagger.pipeline.shard_table import ShardTable
from stagger.plan import stage_plan
from stagger.plan.sharding import assign, task_count
from stagger.rundir.run_folder import RunFolder
from stagger.spec.load import load_file
from stagger.spec.sizes import parse_bytes
from tests.conftest import Cli, PipelineFiles, documents, jsonl, output_ids
from tests.kit.runs import EVERYTHING, SLURM, status
from tests.kit.slurm_front import front


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=60), st.integers(1, 1000))
def test_each_rank_gets_about_the_bytes_or_one_larger_shard(sizes: list[int], size: int) -> None:
    count = task_count(sizes, size)
    ranks = assign(ShardTable(Shard(f"{i:03d}", one) for i, one in enumerate(sizes)), count, "bytes")
    assert all(ranks)
    for shards in ranks:
        assert len([shard for shard in shards if shard.size]) <= 1 or sum(shard.size for shard in shards) < 2 * size
    assert count <= sum(sizes) / size + sum(one >= size for one in sizes) + 1


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("2 gib", 2 * 2**30), ("1.5kB", 1500), ("7", 7), ("1TiB", 2**40), (9, 9)]
)
def test_sizes_have_units(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


def test_one_rank_a_shard_and_a_grown_input_is_another_plan(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    file = pipeline_file(tasks=None, bytes_per_task="9B")
    ran = cli("launch", file, check=0)
    stage = status(cli, tmp_path / "run")
    assert (stage["done"], stage["tasks"], stage["undecided"]) == (12, 12, "")
    assert "12 of 12 shards are larger than bytes_per_task. Each is a rank of its own" in ran.err
    assert output_ids(tmp_path / "run-output") == EVERYTHING
    cli("launch", pipeline_file(tasks=12, shard_by="bytes"), check=0)  # The same division, written as a number.
    cli("launch", pipeline_file(tasks=None, bytes_per_task="9B"), check=0)
    cli("retry", tmp_path / "run", "--again", "--rank", 3, check=0)
    (pipeline_file.shards / "new.jsonl").write_bytes(jsonl(documents(600, 50)))
    refused = cli("launch", file, check=2)
    assert "holds another run of stage run: tasks: 12 before, 13 now; input: new.jsonl is new" in refused.err
    cli("retry", tmp_path / "run", "--again", check=0)  # All of it again: the number is decided anew.
    assert status(cli, tmp_path / "run")["done"] == 13


def test_a_dry_run_packs_the_decided_ranks_and_a_limit_counts_them(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    file = pipeline_file(tasks="auto", executor={**SLURM, "ranks_per_job": 5})
    front(cli, tmp_path)
    (stage,) = cli("launch", file, "--dry-run", "--json", check=0).json["stages"]
    assert (stage["tasks"], stage["ranks"], stage["jobs"], stage["start"]["window_s"]) == (12, 12, 3, 30)
    (plan,) = cli("plan", file, "--json", check=0).json["plans"]
    assert plan["jobs"] == 3
    (few,) = cli("launch", file, "--dry-run", "--json", "--limit", 3, check=0).json["stages"]
    assert (few["tasks"], few["ranks"], few["jobs"]) == (12, 3, 1)
    (fixed,) = cli("launch", file, "--dry-run", "--json", "--tasks", 4, check=0).json["stages"]
    assert fixed["tasks"] == 4


def stages(folder: Path, shards: Path, *, executor: dict[str, Any], **second: Any) -> Path:
    path = folder / "two.yaml"
    content = {
        "name": "two",
        "run_dir": str(folder / "run"),
        "randomize_start_duration": 0,
        "executor": executor,
        "stages": [
            {
                "name": "a",
                "tasks": 5,
                "pipeline": [{"read_jsonl": {"path": str(shards)}}, {"write_jsonl": {"path": str(folder / "a")}}],
            },
            {
                "name": "b",
                "depends": ["a"],
                "pipeline": [{"read_jsonl": {"path": str(folder / "a")}}, {"write_jsonl": {"path": str(folder / "b")}}],
                **second,
            },
        ],
    }
    path.write_text(json.dumps(content))
    return path


def test_a_stage_that_waits_gets_as_many_ranks_as_the_outputs_before_it(cli: Cli, shards: Path, tmp_path: Path) -> None:
    file = stages(tmp_path, shards, executor={"type": "local", "workers": 2}, tasks="auto")
    dry = cli("launch", file, "--dry-run", check=0)
    assert "ranks    one rank for each output file of a" in dry.out
    assert cli("launch", file, "--dry-run", "--json", check=0).json["stages"][1]["tasks"] is None
    planned = cli("plan", file, "--json", check=0)
    assert [one["stage"] for one in planned.json["plans"]] == ["a"]
    assert "b gets one rank for each output file of a: to plan its start, give a number with --tasks" in planned.err
    cli("launch", file, "--limit", 2, check=0)  # Not all of a, so b waits.
    found = cli("status", tmp_path / "run", check=3)
    assert "b  one rank for each output file of a, once the stage starts" in found.out
    assert "b has no ranks yet" in cli("retry", tmp_path / "run", "--stage", "b", "--rank", 0, check=2).err
    cli("launch", file, check=0)
    document = cli("status", tmp_path / "run", "--json", check=0).json["stages"]
    assert [(stage["done"], stage["tasks"]) for stage in document] == [(5, 5), (5, 5)]
    assert output_ids(tmp_path / "b") == EVERYTHING
    cli("launch", file, check=0)


def test_the_file_s_size_of_ranks_gives_way_to_a_stage_s_own(shards: Path, tmp_path: Path) -> None:
    path = stages(tmp_path, shards, executor={"type": "local"}, bytes_per_task="1MB")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "tasks": 7, "bytes_per_task": None}))
    spec = load_file(str(path))
    assert [(stage.tasks, stage.sizing) for stage in spec.stages] == [(5, "given"), (1, "undecided")]
    assert (spec.stages[1].bytes_per_task, spec.stages[1].shard_by) == (10**6, "bytes")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"tasks": 8, "bytes_per_task": "2GB"}, "bytes_per_task decides the number of ranks, and tasks is 8"),
        ({"tasks": None, "bytes_per_task": "2G"}, "2GB (2,000,000,000 bytes) or 2GiB"),
        ({"tasks": "auto", "sizing": "given"}, "sizing: unknown key"),
    ],
)
def test_contradictions_are_refused(pipeline_file: PipelineFiles, more: dict[str, Any], words: str) -> None:
    with pytest.raises(StaggerError, match=re.escape(words)):
        load_file(str(pipeline_file(**more)))


def generated(data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
    yield from ()


def test_python_takes_both_and_what_has_no_shards_is_refused(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = WriteJsonl(str(tmp_path / "out"))
    steps: list[Any] = [ReadJsonl(str(shards)), writer]
    run = LocalExecutor(steps, run_dir=str(tmp_path / "run"), bytes_per_task="1GB").run()
    assert (run.status().done, run.status().tasks) == (1, 1)
    (stage,) = RunFolder.open(str(tmp_path / "run"))[1].spec.stages
    assert (stage.tasks, stage.sizing, stage.bytes_per_task) == (1, "decided", 10**9)
    with pytest.raises(StaggerError, match="tasks: auto needs a reader, whose shards become ranks"):
        LocalExecutor([generated, writer], run_dir=str(tmp_path / "other"), tasks="auto").run()
    monkeypatch.setattr(stage_plan, "MOST_DECIDED", 11)
    with pytest.raises(StaggerError, match="its 12 shards would make 12 ranks, more than 11: set bytes_per_task"):
        LocalExecutor(steps, run_dir=str(tmp_path / "other"), tasks="auto").run()
    assert not (tmp_path / "other").exists()
