"""Writers name outputs, split them by size, and remove those of earlier attempts."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from stagger import Document, Shard, StaggerError, WriteJsonl
from stagger.pipeline.task_context import TaskContext
from stagger.steps.writer import stem_of
from stagger.storage.storage import Storage
from tests.conftest import Cli, PipelineFiles, contents, output_ids, read_jsonl
from tests.kit.commits import commit


def write(step: Any, documents: list[Document], *, shards: list[Shard] | None = None) -> TaskContext:
    """Run a writer as the only step of rank 3: once per shard if the writer requires that, else once."""
    task = TaskContext(Storage(), 3, 8, shards or [], "tag")
    step.bind(task)
    for shard in task.shard_by_shard() if step.shard_by_shard else [None]:
        if shard is not None:
            step.begin_shard(shard)
        assert list(step(iter(documents), 3, 8)) == documents
        step.end_shard()
    commit(task)
    return task


def some(count: int, size: int = 80) -> list[Document]:
    return [Document("x" * size, f"{index}") for index in range(count)]


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_full_file_is_followed_by_another(tmp_path: Path) -> None:
    task = write(WriteJsonl(str(tmp_path), compression=None, max_bytes=1000), some(50))
    assert names(tmp_path) == [f"00003-{part:05d}.jsonl" for part in range(7)]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert [record["id"] for name in names(tmp_path) for record in read_jsonl(tmp_path / name)] == [
        str(index) for index in range(50)
    ]
    assert sum(file.records for file in task.outputs) == 50


def test_a_document_larger_than_a_file_may_be_is_alone_in_one(tmp_path: Path) -> None:
    write(WriteJsonl(str(tmp_path), compression=None, max_bytes=100), some(3, 500))
    assert len(names(tmp_path)) == 3


def test_compressed_files_are_divided_by_their_compressed_size(tmp_path: Path) -> None:
    letters = random.Random(0)
    documents = [Document(letters.randbytes(200).hex(), f"{index}") for index in range(4000)]
    write(WriteJsonl(str(tmp_path), max_bytes=50_000), documents)
    sizes = [path.stat().st_size for path in sorted(tmp_path.iterdir())]
    assert len(sizes) > 2
    assert all(50_000 <= size < 400_000 for size in sizes[:-1])
    assert output_ids(tmp_path) == sorted(document.id for document in documents)


def test_a_rank_without_documents_writes_no_file(tmp_path: Path) -> None:
    assert write(WriteJsonl(str(tmp_path / "out")), []).outputs == []
    assert not (tmp_path / "out").exists()


def test_one_output_for_each_input(tmp_path: Path) -> None:
    shards = [Shard("a.jsonl.gz", 1), Shard("sub/b.warc.gz", 1), Shard("c.txt", 1)]
    write(WriteJsonl(str(tmp_path), "{stem}.jsonl", compression=None), some(2), shards=shards)
    assert names(tmp_path) == ["a.jsonl", "c.jsonl", "sub/b.jsonl"]
    parts = WriteJsonl(str(tmp_path / "parts"), "{stem}-{part}-of-{rank}.jsonl", compression=None, max_bytes=120)
    write(parts, some(2), shards=shards[:2])
    assert names(tmp_path / "parts") == [
        "a-00000-of-00003.jsonl",
        "a-00001-of-00003.jsonl",
        "sub/b-00000-of-00003.jsonl",
        "sub/b-00001-of-00003.jsonl",
    ]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document("t", "i", [], {"a": b"bytes"}), "The document 'i' cannot be written as JSON: Type is not JSON"),
        (Document("t", "i", [], {1: 2}), "The document 'i' cannot be written as JSON: Dict key must be str"),  # type: ignore[dict-item]
        (Document(None, "i"), "The text of the document 'i' is not a string, but NoneType"),  # type: ignore[arg-type]
        (Document("t", 7.5), "The id of the document 7.5 is not a string, but float"),  # type: ignore[arg-type]
    ],
)
def test_what_json_cannot_hold_is_named(tmp_path: Path, document: Document, message: str) -> None:
    with pytest.raises(StaggerError, match=message):
        write(WriteJsonl(str(tmp_path)), [document])


def test_media_do_not_replace_metadata(tmp_path: Path) -> None:
    step = WriteJsonl(str(tmp_path), compression=None, metadata_key=None)
    write(step, [Document("t", "i", [], {"media": "BBC"})])
    assert read_jsonl(tmp_path / "00003.jsonl") == [{"text": "t", "id": "i", "media": "BBC"}]
    with pytest.raises(StaggerError, match="has the key 'media', which the record uses already"):
        write(WriteJsonl(str(tmp_path), metadata_key=None), [Document("t", "i", [1], {"media": "BBC"})])


def test_keys_of_the_output(tmp_path: Path) -> None:
    document = Document("t", "i", [], {"url": "u"})
    write(WriteJsonl(str(tmp_path), compression=None, text_key="content", id_key="key", metadata_key=None), [document])
    assert read_jsonl(tmp_path / "00003.jsonl") == [{"content": "t", "key": "i", "url": "u"}]
    with pytest.raises(StaggerError, match="metadata of i has the key 'url', which the record uses already"):
        write(WriteJsonl(str(tmp_path), text_key="url", metadata_key=None), [document])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filename": "{ranks}.jsonl"}, r"there is no \{ranks\}; did you mean \{rank\}\?"),
        ({"filename": "{}.jsonl"}, r"there is no \{\}; name a key of the metadata"),
        ({"filename": "{a}{b}.jsonl"}, "put a character between two fields"),
        ({"filename": "{a}/_{rank}.jsonl"}, "no leading '.' or '_', which readers pass over"),
        ({"filename": "{a}//{rank}.jsonl"}, "each part of the path needs 1 to 150 characters"),
        ({"filename": "{rank}.jsonl.gz"}, r"ends like a file of gzip, but compression is zstd"),
        ({"filename": "{a}/{rank}.jsonl", "max_open_files": 0}, "max_open_files is 0"),
        ({"filename": ""}, "is not a valid file name"),
        ({"filename": ".{rank}.jsonl"}, "no leading '.'"),
        ({"filename": "{rank.jsonl"}, "no braces except those"),
        ({"filename": "{rank}" + "x" * 200}, "1 to 150 characters"),
        ({"filename": "a/{rank}.jsonl"}, "contains a '/'; set the folder in `path`"),
        ({"filename": "{rank}-{part}.jsonl"}, "max_bytes is not set"),
        ({"max_bytes": 0}, "max_bytes is 0"),
        ({"filename": "{stem}{part}.jsonl", "max_bytes": 5}, "put a letter or a hyphen between"),
        ({"filename": "{rank}-1{part}.jsonl", "max_bytes": 5}, "put a letter or a hyphen between"),
        ({"text_key": "id"}, "must differ"),
        ({"metadata_key": "text"}, "must differ"),
        ({"id_key": "media"}, "must differ from each other and from 'media'"),
        ({"level": 9, "compression": "gzip"}, "gzip has the levels 0 to 3, not 9"),
        ({"level": 3, "compression": None}, "level 3 needs a compression"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(StaggerError, match=message):
        WriteJsonl(str(tmp_path), **options)


@pytest.mark.parametrize(
    ("names", "writers", "message"),
    [
        (["a.jsonl", "b/a.jsonl"], [{"filename": "{stem}.jsonl"}], ""),
        (
            ["a.jsonl", "a.jsonl.gz"],
            [{"filename": "{stem}.jsonl"}],
            r"Shard a\.jsonl and shard a\.jsonl\.gz would both be written to .*/out/a\.jsonl\.zst",
        ),
        (["a.jsonl", "a.jsonl.gz"], [{"filename": "{stem}-{rank}.jsonl"}], ""),
        (
            ["00000.jsonl", "00001.jsonl"],
            [{"filename": "{stem}.jsonl"}, {}],
            r"Shard 00000\.jsonl and rank 0 would both be written to .*/out/00000\.jsonl\.zst",
        ),
        (["a.jsonl", "b.jsonl"], [{}, {"filename": "x-{rank}.jsonl"}], ""),
        (
            ["a/b.jsonl", "a.jsonl"],
            [{"filename": "{stem}", "compression": None}],
            r"out/a would be the output of shard a\.jsonl, and also the folder for the output of shard a/b\.jsonl",
        ),
        (["a.jsonl", "b.jsonl"], [{}, {}], r"Rank 0 and rank 0 would both be written to"),
        (
            ["a.jsonl"],
            [{"path": "in", "filename": "{stem}.jsonl", "compression": None}],
            r"The output of shard a\.jsonl would replace the input .*/in/a\.jsonl",
        ),
        (["a.jsonl"], [{"path": "in", "filename": "new-{stem}.jsonl"}], ""),
        ([], [{"filename": "{stem}.jsonl"}], "the first step reads no files"),
    ],
)
def test_outputs_that_would_replace_one_another_or_an_input_are_refused(
    cli: Cli, tmp_path: Path, names: list[str], writers: list[dict[str, Any]], message: str
) -> None:
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text('{"text": "x"}\n')
    source: dict[str, Any] = {"read_jsonl": {"path": "in", "recursive": True, "compression": None}}
    if not names:
        (tmp_path / "my_steps.py").write_text("def nothing(data=None, rank=0, world_size=1):\n    yield from ()\n")
        source = {"my_steps:nothing": {}}
    steps = [source, *({"write_jsonl": {"path": "out", **writer}} for writer in writers)]
    file = tmp_path / "p.yaml"
    file.write_text(json.dumps({"name": "x", "run_dir": "run", "tasks": 2, "pipeline": steps}))
    ran = cli("launch", file, "--dry-run", check=2 if message else 0)
    assert re.search(message, ran.err)
    assert "Traceback" not in ran.err


def test_a_later_step_that_stops_early_mixes_no_outputs(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    file = pipeline_file(tasks=1)
    content = json.loads(file.read_text())
    content["pipeline"][-1]["write_jsonl"] |= {"filename": "{stem}.jsonl", "compression": None}
    content["pipeline"].append({"my_steps:first": {"count": 3}})
    file.write_text(json.dumps(content))
    cli("launch", file, check=0)
    for index in range(12):
        written = read_jsonl(tmp_path / "run-output" / f"shard-{index:02d}.jsonl")
        assert [record["id"] for record in written[:3]] == [f"doc-{index * 50 + number}" for number in range(3)]
        assert len(written) <= 4


def test_stems() -> None:
    found = [
        stem_of(name) for name in ("a.jsonl.gz", "x/y.parquet", "/data/z.warc.gz", "s3://b/q.zst", "v1.2", "a.b.c")
    ]
    assert found == ["a", "x/y", "z", "q", "v1.2", "a.b.c"]


def test_a_rank_that_runs_again_replaces_all_of_its_files(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    """Even if the previous attempt was killed between its commit and its completion record, as simulated here."""
    file = pipeline_file(steps=("my_steps:shorter",), compression=None)
    content = json.loads(file.read_text())
    content["pipeline"][-1]["write_jsonl"]["max_bytes"] = 3000
    file.write_text(json.dumps(content))
    cli("launch", file, check=0)
    before = contents(tmp_path / "run-output")
    (tmp_path / "run" / "completions" / "00002.json").unlink()
    (tmp_path / "short").touch()
    cli("launch", file, check=0)
    after = contents(tmp_path / "run-output")
    gone = before.keys() - after.keys()
    assert gone
    assert all(name.startswith("00002-") for name in gone)
    assert {name: data for name, data in after.items() if not name.startswith("00002")} == {
        name: data for name, data in before.items() if not name.startswith("00002")
    }
    assert len(output_ids(tmp_path / "run-output")) == 450 + 30


def test_outputs_named_after_their_shards(cli: Cli, pipeline_file: PipelineFiles, shards: Path, tmp_path: Path) -> None:
    """The steps run once per shard, so steps that buffer or recreate documents cannot mix up the outputs."""
    file = pipeline_file(steps=("my_steps:backwards",))
    content = json.loads(file.read_text())
    content["pipeline"][-1]["write_jsonl"]["filename"] = "{stem}.jsonl"
    file.write_text(json.dumps(content))
    cli("launch", file, check=0)
    for path in shards.iterdir():
        written = read_jsonl(tmp_path / "run-output" / f"{path.name.partition('.')[0]}.jsonl.zst")
        assert [record["id"] for record in written] == [record["id"] for record in read_jsonl(path)][::-1]
    record = json.loads((tmp_path / "run" / "completions" / "00001.json").read_text())
    assert (record["records_in"], record["records_out"], len(record["outputs"])) == (150, 150, 3)
