"""Outputs are compared with the checksums that their records keep, on demand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from stagger.launch.leftovers import lost_outputs
from stagger.rundir.run_folder import RunFolder
from stagger.status.look import look_at_run
from tests.conftest import Bucket, Cli, PipelineFiles, contents
from tests.kit.buckets import objects, on_s3
from tests.kit.runs import completions


def flip(data: bytes, place: int = -30) -> bytes:
    """The content with one byte changed."""
    changed = bytearray(data)
    changed[place] ^= 1
    return bytes(changed)


@pytest.mark.parametrize(
    ("writer", "compression"),
    [("write_jsonl", None), ("write_parquet", "zstd")],
)
def test_content_that_changed_at_equal_size_is_found_and_made_again(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, writer: str, compression: str | None
) -> None:
    """Also if it is a valid file, and has its old time."""
    file = pipeline_file(compression=compression)
    content = json.loads(file.read_text())
    content["pipeline"][1] = {writer: content["pipeline"][1]["write_jsonl"]}
    file.write_text(json.dumps(content))
    cli("launch", file, check=0)
    out, run = tmp_path / "run-output", tmp_path / "run"
    whole = contents(out)
    path = min(out.iterdir())
    info = path.stat()
    path.write_bytes(flip(path.read_bytes()))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    cli("status", run, "--verify", check=0)
    cli("retry", run, "--lost", check=0)
    said = cli("status", run, "--checksum", check=1).out
    assert f"lost: 1 output file (1 of another content) of rank 0, such as {path}" in said
    assert f"make them again with: stagger retry {run} --lost --checksum" in said
    cli("retry", run, "--lost", "--checksum", check=0)
    assert contents(out) == whole
    cli("status", run, "--verify", "--checksum", check=0)


def test_checksum_belongs_to_lost(cli: Cli, tmp_path: Path) -> None:
    assert "Add --lost." in cli("retry", tmp_path, "--checksum", check=2).err


def test_one_stage_alone_is_repaired(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    cli("launch", pipeline_file(compression=None), check=0)
    path = tmp_path / "run-output" / "00002.jsonl"
    path.write_bytes(flip(whole := path.read_bytes()))
    cli("retry", tmp_path / "run", "--stage", "run", "--lost", "--checksum", "--rank", 2, check=0)
    assert path.read_bytes() == whole
    assert [one["attempt"] for one in completions(tmp_path / "run")] == ["1", "1", "2", "1"]


def test_a_resumed_rank_keeps_the_checksums_of_its_earlier_shards(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    (tmp_path / "late.py").write_text(
        "import os, stagger\n"
        "@stagger.stateless\n"
        "def fails(data, rank, world_size, flag):\n"
        "    for document in data:\n"
        "        if document.id == 'doc-599' and not os.path.exists(flag):\n"
        "            raise ValueError('late')\n"
        "        yield document\n"
    )
    step = {"late:fails": {"flag": str(tmp_path / "flag")}}
    file = pipeline_file(steps=(step,), writer={"filename": "{stem}.jsonl"}, commit="shard", tasks=1)
    cli("launch", file, check=1)
    (tmp_path / "flag").touch()
    cli("launch", file, check=0)
    assert len(completions(tmp_path / "run")[0]["outputs"]) == 12
    cli("status", tmp_path / "run", "--checksum", check=0)


@pytest.mark.parametrize("engine", ["s3fs", "obstore"])
def test_on_s3(
    cli: Cli, loaded: Bucket, pipeline_file: PipelineFiles, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ETag shows the checksum: no object is read, also if it was uploaded in parts."""
    cli.env |= loaded.env
    for name, value in loaded.env.items():
        monkeypatch.setenv(name, value)
    options: dict[str, Any] = {"storage_options": {"s3": {"engine": engine}}, "compression": None, "tasks": 2}
    cli("launch", on_s3(pipeline_file, loaded, **options), check=0)
    run, record = RunFolder.open(f"{loaded.url}/run", options["storage_options"])
    look = look_at_run(run, record)["run"]
    monkeypatch.setattr("stagger.storage.content.digest_of", None)
    assert lost_outputs(look, checksums=True) == {}
    monkeypatch.undo()
    loaded.files.pipe(f"{loaded.name}/output/00001.jsonl", flip(objects(loaded, "output")["00001.jsonl"]))
    assert "1 of another content" in cli("status", f"{loaded.url}/run", "--checksum", check=1).out
    cli("retry", f"{loaded.url}/run", "--lost", "--checksum", check=0)
    cli("status", f"{loaded.url}/run", "--checksum", check=0)
