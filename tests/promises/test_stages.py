"""Each stage waits for those it depends on."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import Cli, PipelineFiles, output_ids
from tests.kit.runs import EVERYTHING


def test_stages_run_in_order_and_only_when_what_they_need_is_done(
    cli: Cli, tmp_path: Path, pipeline_file: PipelineFiles
) -> None:
    flag = tmp_path / "flag"
    source = {"read_jsonl": {"path": str(pipeline_file.shards)}}
    stages = [
        {
            "name": "first",
            "tasks": 3,
            "pipeline": [
                source,
                {"my_steps:fail_on": {"ranks": [1], "flag": str(flag)}},
                {"write_jsonl": {"path": str(tmp_path / "middle")}},
            ],
        },
        {
            "name": "second",
            "depends": ["first"],
            "tasks": 2,
            "pipeline": [
                {"read_jsonl": {"path": str(tmp_path / "middle")}},
                {"write_jsonl": {"path": str(tmp_path / "end")}},
            ],
        },
    ]
    file = tmp_path / "p.yaml"
    file.write_text(json.dumps({"name": "p", "run_dir": str(tmp_path / "run"), "stages": stages}))
    dry = cli("launch", file, "--dry-run", "--json", check=0).json
    assert [(stage["name"], stage["shards"]) for stage in dry["stages"]] == [("first", 12), ("second", None)]
    assert "second: starts when first is done" in cli("launch", file, check=1).err
    assert list((tmp_path / "end").iterdir()) == []
    flag.touch()
    cli("launch", file, check=0)
    assert output_ids(tmp_path / "end") == EVERYTHING
    document = cli("status", tmp_path / "run", "--json", check=0).json
    assert [(stage["name"], stage["done"]) for stage in document["stages"]] == [("first", 3), ("second", 2)]
    assert (tmp_path / "run" / "second" / "completions" / "00001.json").exists()
    (one,) = cli("status", tmp_path / "run", "--stage", "second", "--json", check=0).json["stages"]
    assert one == document["stages"][1]
    assert (
        "There is no stage 'secnod'; did you mean" in cli("status", tmp_path / "run", "--stage", "secnod", check=2).err
    )
    # The second stage has read the first one's outputs, so they may go; its own outputs are the result.
    (tmp_path / "middle" / "00001.jsonl.zst").unlink()
    cli("retry", tmp_path / "run", check=0)
    (tmp_path / "end" / "00001.jsonl.zst").unlink()
    assert "end/00001.jsonl.zst" in cli("retry", tmp_path / "run", check=1).err


def test_a_stage_does_not_read_what_is_incomplete(cli: Cli, tmp_path: Path, pipeline_file: PipelineFiles) -> None:
    flag = tmp_path / "flag"
    middle = tmp_path / "middle"
    failing = {"my_steps:fail_on": {"ranks": [0], "flag": str(flag)}}
    source = {"read_jsonl": {"path": str(pipeline_file.shards)}}
    stages = [
        {"name": "first", "tasks": 3, "pipeline": [source, {"write_jsonl": {"path": str(middle)}}]},
        {"name": "between", "tasks": 1, "pipeline": [source, failing]},
        {
            "name": "last",
            "depends": ["first", "between"],
            "pipeline": [{"read_jsonl": {"path": str(middle)}}, {"write_jsonl": {"path": str(tmp_path / "end")}}],
        },
    ]
    (tmp_path / "p.yaml").write_text(json.dumps({"name": "p", "run_dir": "run", "stages": stages}))
    cli("launch", "p.yaml", check=1)
    flag.touch()
    kept = (middle / "00002.jsonl.zst").read_bytes()
    (middle / "00002.jsonl.zst").unlink()
    assert "middle/00002.jsonl.zst" in cli("retry", "run", check=1).err
    assert list((tmp_path / "end").iterdir()) == []
    (middle / "00002.jsonl.zst").write_bytes(kept)
    cli("retry", "run", check=0)
    assert output_ids(tmp_path / "end") == EVERYTHING
