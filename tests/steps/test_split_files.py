"""Files named after values of the metadata: each value has its own, whatever it is, and memory stays bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from stagger import Document, ReadJsonl, Shard, StaggerError, WriteJsonl, WriteParquet
from stagger.launch.plans import Pipeline
from stagger.pipeline.task_context import TaskContext
from stagger.plan.stage_plan import make_plan
from stagger.rundir.output_names import OutputNames
from stagger.spec.load import load_file
from stagger.steps.file_names import fields_of
from stagger.steps.writer import FIELDS
from stagger.storage.storage import Storage
from tests.conftest import read_jsonl
from tests.kit.commits import commit


def write(step: Any, documents: list[Document], *, shards: list[Shard] | None = None) -> TaskContext:
    task = TaskContext(Storage(), 3, 8, shards or [], "tag")
    step.bind(task)
    for shard in task.all_shards if step.shard_by_shard else [None]:
        if shard is not None:
            step.begin_shard(shard)
        assert list(step(iter(documents), 3, 8)) == documents
        step.end_shard()
    commit(task)
    task.close()
    return task


def document(number: int, **metadata: Any) -> Document:
    return Document(f"text {number}", str(number), [], metadata)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_each_value_has_its_own_file(tmp_path: Path) -> None:
    documents = [document(n, language=("en", "fr", "zh")[n % 3]) for n in range(9)]
    task = write(WriteJsonl(str(tmp_path), "{language}/{rank}.jsonl.zst"), documents)
    assert names(tmp_path) == [f"{language}/00003.jsonl.zst" for language in ("en", "fr", "zh")]
    assert [record["id"] for record in read_jsonl(tmp_path / "fr" / "00003.jsonl.zst")] == ["1", "4", "7"]
    assert sum(file.records for file in task.outputs) == 9


def test_nested_keys_numbers_and_truths(tmp_path: Path) -> None:
    metadata = {"source": {"name": "cc"}, "year": 2024, "good": True}
    write(WriteJsonl(str(tmp_path), "{source.name}/{year}/{good}-{rank}", compression=None), [document(0, **metadata)])
    assert names(tmp_path) == ["cc/2024/true-00003"]
    write(
        WriteJsonl(str(tmp_path / "dots"), "{a.b}-{rank}.jsonl", compression=None, max_bytes=10**6),
        [document(0, **{"a.b": "whole"})],
    )
    assert names(tmp_path / "dots") == ["whole-00003-00000.jsonl"]


VALUES = [
    "",
    "/",
    "..",
    ".",
    "a/b",
    "a~2Fb",
    "_x",
    "é",
    "\x00",
    "\n",
    "x" * 400,
    "x" * 401,
    "~",
    "%2F",
    " ",
    "a-b",
]


def test_strange_values_have_safe_names_and_never_share_a_file(tmp_path: Path) -> None:
    documents = [document(number, key=value) for number, value in enumerate(VALUES)]
    write(WriteJsonl(str(tmp_path), "{key}/{rank}", compression=None, filename_default="none"), documents)
    found = names(tmp_path)
    assert len(found) == len(VALUES)
    for name in found:
        assert not name.startswith((".", "_"))
        assert len(name.split("/")) == 2
        assert len(name.encode()) < 255
    assert OutputNames(str(tmp_path), ["{*}/{rank}"]).fits(found[0])


PAIRS = st.tuples(st.text(min_size=1), st.text(min_size=1))


@settings(max_examples=300, deadline=None)
@given(
    one=st.tuples(st.text(min_size=1), st.text(min_size=1)), other=st.tuples(st.text(min_size=1), st.text(min_size=1))
)
def test_two_pairs_of_values_never_give_one_name(one: tuple[str, str], other: tuple[str, str]) -> None:
    first, second = fields_of("{a}-{b}.jsonl", FIELDS)

    def name(values: tuple[str, str]) -> str:
        return f"{first.in_path(values[0])}-{second.in_path(values[1])}.jsonl"

    assert (name(one) == name(other)) == (one == other)
    assert not set("/\0\n").intersection(name(one))


@pytest.mark.parametrize("metadata", [{}, {"language": None}, {"language": ""}])
def test_a_document_without_the_value_is_an_error_or_has_the_default(tmp_path: Path, metadata: dict[str, Any]) -> None:
    with pytest.raises(StaggerError, match=r"The document '0' has .* for 'language' .* set filename_default"):
        write(WriteJsonl(str(tmp_path / "a"), "{language}/{rank}.jsonl"), [document(0, **metadata)])
    write(WriteJsonl(str(tmp_path / "b"), "{language}/{rank}.jsonl", filename_default="und"), [document(0, **metadata)])
    assert names(tmp_path / "b") == ["und/00003.jsonl.zst"]


def test_a_value_that_names_no_file(tmp_path: Path) -> None:
    with pytest.raises(StaggerError, match="has list as 'tags', which names no file"):
        write(WriteJsonl(str(tmp_path), "{tags}/{rank}"), [document(0, tags=["a"])])


@pytest.mark.parametrize("compression", ["zstd", "gzip", None])
@pytest.mark.parametrize("waiting_bytes", [1, 2000, 10**9])
def test_more_values_than_open_files_are_written_whole(
    tmp_path: Path, compression: Any, waiting_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stagger.steps.split_files.WAITING_BYTES", waiting_bytes)
    documents = [document(n, key=f"v{n % 40}") for n in range(400)]
    step = WriteJsonl(str(tmp_path), "{key}/{rank}.jsonl", compression=compression, max_open_files=3)
    task = write(step, documents)
    assert len(task.outputs) == 40
    found, _ = zip(*[(one.id, 0) for one in read_all(tmp_path)], strict=True)
    assert sorted(found, key=int) == [one.id for one in documents]
    for number, one in enumerate(task.outputs):
        assert one.records == 10
        assert [record.id for record in read_all(Path(one.output.path))] == [str(number + 40 * n) for n in range(10)]


def read_all(path: Path) -> list[Document]:
    step = ReadJsonl(str(path), recursive=True)
    step.bind(TaskContext(Storage(), 0, 1, step.find_shards(Storage()), "tag"))
    return list(step(None, 0, 1))


def test_few_values_are_one_frame_each(tmp_path: Path) -> None:
    documents = [document(n, key=f"v{n % 3}", filler="x" * 3000) for n in range(300)]
    write(WriteJsonl(str(tmp_path), "{key}-{rank}.jsonl"), documents)
    data = (tmp_path / "v0-00003.jsonl.zst").read_bytes()
    assert len(zstandard.ZstdDecompressor().decompressobj().decompress(data).splitlines()) == 100


def test_descriptors_are_bounded(tmp_path: Path) -> None:
    step = WriteJsonl(str(tmp_path), "{key}.{rank}.jsonl", max_open_files=4)
    step.bind(TaskContext(Storage(), 0, 1, [], "tag"))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in step(iter([document(n, key=str(n)) for n in range(200)]), 0, 1):
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 6


def test_parts_of_each_value(tmp_path: Path) -> None:
    documents = [document(n, key="ab"[n % 2], filler="x" * 300) for n in range(20)]
    write(WriteJsonl(str(tmp_path), "{key}/{rank}.jsonl", compression=None, max_bytes=2000), documents)
    assert names(tmp_path) == [f"{key}/00003-0000{part}.jsonl" for key in "ab" for part in range(2)]


def test_values_and_shards(tmp_path: Path) -> None:
    shards = [Shard("x.jsonl", 1), Shard("sub/y.jsonl", 1)]
    write(WriteJsonl(str(tmp_path), "{key}/{stem}.jsonl", compression=None), [document(0, key="a")], shards=shards)
    assert names(tmp_path) == ["a/sub/y.jsonl", "a/x.jsonl"]


def test_parquet_by_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagger.steps.split_files.WAITING_BYTES", 3000)
    documents = [document(n, key=f"v{n % 20}", n=n) for n in range(400)]
    write(WriteParquet(str(tmp_path), "{key}/{rank}.parquet", max_open_files=2), documents)
    assert len(names(tmp_path)) == 20
    for number in range(20):
        table = parquet.read_table(tmp_path / f"v{number}" / "00003.parquet", partitioning=None)
        assert table["n"].to_pylist() == list(range(number, 400, 20))


# ---- At launch ----


def planned(tmp_path: Path, *stages: list[Any]) -> Pipeline:
    for name in ("in/a.jsonl", "out/fr/00000.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"text": "x"}\n')
    content = {
        "name": "x",
        "run_dir": str(tmp_path / "run"),
        "stages": [
            {"name": f"s{n}", "pipeline": [{"read_jsonl": {"path": path}}, *steps]}
            for n, (path, *steps) in enumerate(stages)
        ],
    }
    (tmp_path / "p.yaml").write_text(json.dumps(content))
    pipeline = Pipeline.create(load_file(str(tmp_path / "p.yaml")))
    for stage in pipeline.spec.stages:
        make_plan(Storage(), stage, pipeline.steps[stage.name])
    return pipeline


def to(path: Path, filename: str) -> dict[str, Any]:
    return {"write_jsonl": {"path": str(path), "filename": filename, "compression": None}}


def test_names_that_could_collide_are_refused_at_launch(tmp_path: Path) -> None:
    source, out = str(tmp_path / "in"), tmp_path / "out"
    planned(tmp_path, [source, to(out, "{language}/{rank}.jsonl"), to(tmp_path / "other", "{rank}.jsonl")])
    for one, other in (
        (to(out, "{language}/{rank}.jsonl"), to(out, "{lang}/{rank}.jsonl")),
        (to(out, "{language}/{rank}.jsonl"), to(out / "en", "{rank}.jsonl")),
        (to(out, "{language}.jsonl"), to(out, "en.jsonl")),
    ):
        with pytest.raises(StaggerError, match="Two writers of s0 would write the same files"):
            planned(tmp_path, [source, one, other])
        with pytest.raises(StaggerError, match="The stages s0 and s1 would write the same files"):
            planned(tmp_path, [source, one], [source, other])
    with pytest.raises(StaggerError, match=r"The input .*/out/fr/00000.jsonl has a name of the outputs"):
        planned(tmp_path, [str(out / "fr"), to(out, "{language}/{rank}.jsonl")])


def test_the_rank_belongs_into_the_name_of_several(tmp_path: Path) -> None:
    with pytest.raises(StaggerError, match="into it"):
        WriteJsonl(str(tmp_path), "{language}.jsonl").check_tasks(2)
    WriteJsonl(str(tmp_path), "{language}.jsonl").check_tasks(1)
