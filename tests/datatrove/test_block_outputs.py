"""A launch knows where datatrove's blocks write, and refuses what would lose data."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datatrove")

from datatrove.io import DataFolder
from datatrove.pipeline.dedup import MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.bloom_filter import BloomFilterConfig, SingleBloomFilter
from datatrove.pipeline.filters import C4BadWordsFilter, GopherQualityFilter, LambdaFilter, RegexFilter, SamplerFilter
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.stats import DocStats
from datatrove.pipeline.writers import JsonlWriter, ParquetWriter

from stagger import stateless
from stagger.datatrove.block_outputs import outputs_of, stagger_template, uncommitted_of
from stagger.datatrove.shape import is_block
from stagger.datatrove.state import repeatable
from stagger.errors import StaggerError
from stagger.rundir.output_names import OutputNames
from stagger.steps.jsonl import ReadJsonl, WriteJsonl
from tests.conftest import Cli, PipelineFiles, contents, output_ids, read_jsonl
from tests.kit.runs import EVERYTHING, completions, status

WRITER = "datatrove.pipeline.writers:JsonlWriter"

STEPS = """
from datatrove.pipeline.filters import LambdaFilter
from datatrove.pipeline.stats import DocStats
from datatrove.pipeline.writers import JsonlWriter

def blocks(data, rank, world_size, output, removed="${rank}.jsonl"):
    writer = JsonlWriter(f"{output}/removed", output_filename=removed, compression=None)
    even = LambdaFilter(lambda document: int(document.id[4:]) % 2 == 0, exclusion_writer=writer)
    stats = DocStats(f"{output}/stats", groups_to_compute=["summary"])
    return stats.run(even.run(data, rank, world_size), rank, world_size)
"""


def test_a_block_is_known_by_its_shape() -> None:
    assert [is_block(one) for one in (RegexFilter("x"), RegexFilter, ReadJsonl("in"), len, WriteJsonl)] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_where_blocks_write_and_what_their_files_are_called(tmp_path: Path) -> None:
    def found(block: Any) -> list[tuple[str, list[str]]]:
        return [(one.output_folder.removeprefix(f"{tmp_path}/"), one.output_names) for one in outputs_of(block)]

    folder = str(tmp_path / "out")
    assert found(JsonlWriter(folder)) == [("out", ["{rank}.jsonl.gz"])]
    assert found(ParquetWriter(folder, "${dump}/$rank.parquet")) == [("out", ["{stem}/{number}_{rank}.parquet"])]
    assert found(RegexFilter("x", exclusion_writer=JsonlWriter(DataFolder(folder)))) == [("out", ["{rank}.jsonl.gz"])]
    assert found(DocStats(folder, groups_to_compute=["summary"])) == [("out", ["summary/{stem}/{rank}.json"])]
    assert found(MinhashDedupSignature(folder)) == [("out", ["bucket_{number}/{rank}.minhash.sig"])]
    assert found(partial(print, sinks=[JsonlWriter(folder)])) == [("out", ["{rank}.jsonl.gz"])]
    assert found(JsonlReader(folder)) == found(RegexFilter("x")) == []
    assert stagger_template("$$a-${b}$c.x") == "$a-{stem}{stem}.x"
    names = OutputNames(folder, ["bucket_{number}/{rank}.minhash.sig"])
    assert [names.fits(name) for name in ("bucket_003/00001.minhash.sig", "00001.minhash.sig")] == [True, False]


def test_which_steps_may_be_called_once_per_shard(tmp_path: Path) -> None:
    writer = JsonlWriter(str(tmp_path))
    yes = [
        ReadJsonl("in"),
        WriteJsonl("out"),
        RegexFilter("x"),
        GopherQualityFilter(),
        stateless(LambdaFilter(len)),
        LambdaFilter(stateless(lambda document: True)),
    ]
    no = [
        len,
        LambdaFilter(len),
        SamplerFilter(0.5),
        C4BadWordsFilter(),
        PIIFormatter(),
        MinhashDedupFilter(str(tmp_path)),
        RegexFilter("x", exclusion_writer=writer),
        stateless(JsonlWriter(str(tmp_path))),
        stateless(partial(print, sink=[writer])),
        type("Mine", (RegexFilter,), {})("x"),
    ]
    assert [step for step in yes if not repeatable(step)] == []
    assert [step for step in no if repeatable(step)] == []
    assert repeatable(len, declared=True)
    assert not repeatable(writer, declared=True)


def test_what_cannot_be_committed_is_known(tmp_path: Path) -> None:
    own = {"endpoint_url": "http://127.0.0.1:1"}
    assert uncommitted_of(JsonlWriter(str(tmp_path)), {}) == []
    assert uncommitted_of(JsonlWriter(("memory://there", {})), {}) == ["JsonlWriter writes to /there"]
    assert uncommitted_of(JsonlWriter(("s3://b/there", own)), own) == []
    assert [one.output_names for one in outputs_of(JsonlWriter(("s3://b/there", own)))] == [[]]
    assert [one.output_names for one in outputs_of(JsonlWriter("s3://b/there"))] == [["{rank}.jsonl.gz"]]
    assert uncommitted_of(JsonlWriter(("s3://b/there", own)), {}) == ["JsonlWriter writes to b/there"]
    assert uncommitted_of(RegexFilter("x", exclusion_writer=JsonlWriter("memory://x")), {})


def test_one_file_for_several_ranks_is_refused(tmp_path: Path) -> None:
    (output,) = outputs_of(JsonlWriter(str(tmp_path), "${language}.jsonl"))
    output.check_tasks(1)
    with pytest.raises(StaggerError, match=r"is the same for all 2 ranks.*\$\$\{rank\}"):
        output.check_tasks(2)
    for name in ("${rank}.jsonl", "$rank.jsonl", "${id}.jsonl"):
        outputs_of(JsonlWriter(str(tmp_path), name))[0].check_tasks(2)
    config = BloomFilterConfig(m_bytes=8, k=1)
    (bloom,) = outputs_of(SingleBloomFilter(str(tmp_path), config, save_bloom_filter=True))
    with pytest.raises(StaggerError, match=r"bloom_filter.bloom .* the same file for all 2 ranks.*tasks: 1"):
        bloom.check_tasks(2)


def test_a_launch_refuses_what_it_can_see(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    out = str(tmp_path / "dt")
    step: dict[str, Any] = {WRITER: {"output_folder": out, "output_filename": "all.jsonl.gz"}}
    for options in ((), ("--dry-run",)):
        ran = cli("launch", pipeline_file(steps=(step,)), *options, check=2)
        assert f"pipeline[1] ({WRITER}): output_filename 'all.jsonl.gz' is the same for all 4 ranks" in ran.err
    step = {
        WRITER: {
            "output_folder": str(tmp_path / "run-output"),
            "output_filename": "$${rank}.jsonl.zst",
            "compression": "zstd",
        }
    }
    ran = cli("launch", pipeline_file(steps=(step,)), check=2)
    assert "Rank 0 by a datatrove writer and rank 0 would both be written to" in ran.err
    writer = {"filename": "{stem}.jsonl"}
    ran = cli(
        "launch", pipeline_file(steps=({WRITER: {"output_folder": out}},), commit="shard", writer=writer), check=2
    )
    assert f"pipeline[1] ({WRITER}): with commit: shard a rank that resumes" in ran.err
    assert ran.err.rstrip().endswith("is gone: leave out commit: shard.")
    ran = cli("launch", pipeline_file(steps=("my_steps:swallow",), commit="shard", writer=writer), "--dry-run", check=2)
    assert "or declare that it keeps nothing from one call to the next: `stateless: true` beside the step" in ran.err
    step = {"my_steps:swallow": {}, "stateless": True}
    cli("launch", pipeline_file(steps=(step,), commit="shard", writer=writer), "--dry-run", check=0)
    (tmp_path / "dt").mkdir()
    (tmp_path / "dt" / "00007.jsonl.gz").touch()
    ran = cli("launch", pipeline_file(steps=({WRITER: {"output_folder": out}},)), check=2)
    assert f"1 file in {out}, such as 00007.jsonl.gz: not written by this run" in ran.err


def test_blocks_in_a_function_after_a_kill_and_with_an_output_for_each_shard(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    """A launch does not see these blocks."""
    (tmp_path / "team_steps.py").write_text(STEPS)
    out, flag = tmp_path / "dt", tmp_path / "flag"
    step = {"team_steps:blocks": {"output": str(out), "removed": "all.jsonl"}}
    ran = cli("launch", pipeline_file("shared", steps=(step,)), check=1)
    assert "output_filename 'all.jsonl' is the same for all 4 ranks" in ran.err
    assert not list(out.rglob("*.jsonl"))
    step = {"team_steps:blocks": {"output": str(out)}}
    kill = {"my_steps:kill_on": {"ranks": [0, 2], "flag": str(flag)}}
    file = pipeline_file(steps=(step, kill), writer={"filename": "{stem}.jsonl"})
    cli("launch", file, check=1)
    assert sorted(path.name for path in (out / "removed").glob("[!.]*")) == ["00001.jsonl", "00003.jsonl"]
    flag.touch()
    cli("retry", tmp_path / "run", check=0)
    assert output_ids(tmp_path / "run-output") == sorted(name for name in EVERYTHING if int(name[4:]) % 2 == 0)
    assert len(contents(tmp_path / "run-output")) == 12
    removed = [record for path in (out / "removed").glob("[!.]*") for record in read_jsonl(path)]
    assert sorted(record["id"] for record in removed) == [name for name in EVERYTHING if int(name[4:]) % 2]
    stats = [json.loads(path.read_text())["summary"]["n"] for path in (out / "stats/summary/length").glob("[!.]*")]
    assert stats == [75] * 4
    for record in completions(tmp_path / "run"):
        assert record["records_out"] == 75
        assert {str(out / "removed"), str(tmp_path / "run-output")} < {
            str(Path(output["path"]).parent) for output in record["outputs"]
        }
    assert str(out / "removed") in status(cli, tmp_path / "run")["removed_folders"]
