"""The Parquet files of an output folder have one schema, or the stage's end names the columns and ranks that differ."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pytest

from stagger.launch.ending import end_stage
from stagger.rundir.run_folder import RunFolder
from stagger.status.look import look_at_run
from tests.conftest import Cli
from tests.kit.runs import completions


def run_file(tmp_path: Path, values: list[list[Any]], **settings: Any) -> Path:
    """A pipeline file of a run with one rank for each list of values, which become the key `n`; ... leaves it out."""
    (tmp_path / "in").mkdir()
    writer = settings.pop("writer", {})
    for rank, items in enumerate(values):
        records = [{"text": "x", "id": f"{rank}-{i}", **({} if n is ... else {"n": n})} for i, n in enumerate(items)]
        (tmp_path / "in" / f"{rank:02d}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    steps = [
        {"read_jsonl": {"path": str(tmp_path / "in")}},
        {"write_parquet": {"path": str(tmp_path / "out"), **writer}},
    ]
    pipeline = {"name": "p", "run_dir": str(tmp_path / "run"), "tasks": len(values), "pipeline": steps, **settings}
    (tmp_path / "p.yaml").write_text(json.dumps(pipeline))
    return tmp_path / "p.yaml"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([[1], [1.5], [2]], "'n' is int64 in ranks 0,2, but float64 in rank 1; set its type in columns, as n: float64"),
        ([[[1]], [[1.5]]], "list<int64> in rank 0, but list<float64> in rank 1; .* as n: json"),
        ([[1], [{"a": 1}]], "json in rank 1, but int64 in rank 0; .* as n: json"),
        ([[1], [None]], "null in rank 1, but int64 in rank 0; .* as n: int64"),
        ([[1], [...]], "int64 in rank 0, but missing in rank 1; .* as n: int64"),
    ],
)
def test_ranks_that_differ_are_named_at_the_stages_end(
    cli: Cli, tmp_path: Path, values: list[list[Any]], said: str
) -> None:
    file = run_file(tmp_path, values)
    for command in (("launch", file), ("launch", file), ("retry", tmp_path / "run")):
        assert re.search(said, cli(*command, check=1).err)
    assert "files differ: " in cli("status", tmp_path / "run", check=1).out
    (stage,) = cli("status", tmp_path / "run", "--json", check=1).json["stages"]
    assert (stage["done"], stage["failed"], len(stage["schema_differences"])) == (len(values), 0, 1)
    assert (
        json.loads((tmp_path / "run" / "stats.json").read_text())["schema_differences"] == stage["schema_differences"]
    )
    folder, record = RunFolder.open(str(tmp_path / "run"), {})
    assert end_stage(folder, record, look_at_run(folder, record), "p").failed


@pytest.mark.parametrize("values", [[[1], [1.5]], [[1], [None]], [[1], [...]]])
def test_columns_make_one_schema(cli: Cli, tmp_path: Path, values: list[list[Any]]) -> None:
    cli("launch", run_file(tmp_path, values, writer={"columns": {"n": "float64"}}), check=0)
    table = pyarrow.dataset.dataset(tmp_path / "out").to_table()
    assert str(table.schema.field("n").type) == "double"
    assert table.num_rows == sum(map(len, values))
    cli("status", tmp_path / "run", check=0)
    folder, record = RunFolder.open(str(tmp_path / "run"), {})
    assert not end_stage(folder, record, look_at_run(folder, record), "p").failed


def test_files_may_differ_where_the_writer_allows_it(cli: Cli, tmp_path: Path) -> None:
    cli("launch", run_file(tmp_path, [[1], ["a"]], writer={"one_schema": False}), check=0)
    assert all("notes" not in record for record in completions(tmp_path / "run"))


def test_while_ranks_are_missing_a_difference_is_shown_and_is_no_failure(cli: Cli, tmp_path: Path) -> None:
    file = run_file(tmp_path, [[1], [1.5], [2]])
    cli("launch", file, "--limit", 2, check=0)
    assert "files differ: " in cli("status", tmp_path / "run", check=3).out
    cli("launch", file, check=1)


def test_the_next_files_of_a_rank_have_the_columns_of_its_first(cli: Cli, tmp_path: Path) -> None:
    cli("launch", run_file(tmp_path, [[1, ..., 2, None]], writer={"max_bytes": 1}), check=0)
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == 4
    assert {str(pyarrow.dataset.dataset(file).schema.field("n").type) for file in files} == {"int64"}


def test_a_resumed_rank_notes_the_columns_of_its_earlier_shards_too(cli: Cli, tmp_path: Path) -> None:
    file = run_file(tmp_path, [[1], [1.5], ["bad"]], tasks=1, commit="shard", writer={"filename": "{stem}.parquet"})
    last = tmp_path / "in" / "02.jsonl"
    whole = last.read_bytes()
    last.write_bytes(b"{" * len(whole))
    cli("launch", file, check=1)
    last.write_bytes(whole)
    assert "'n' is string in rank 0, but int64 in rank 0, but float64 in rank 0" in cli("launch", file, check=1).err
