"""Documents at the edge: media, ids, empty texts and metadata in the forms that other programs write."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pytest
from pyarrow import parquet

from stagger import (
    BadInput,
    Document,
    Media,
    ReadCsv,
    ReadJsonl,
    ReadParquet,
    ReadText,
    StaggerError,
    WriteJsonl,
    WriteParquet,
)
from stagger.pipeline.task_context import TaskContext
from stagger.storage.storage import Storage
from tests.conftest import read_jsonl
from tests.kit.commits import commit

IMAGE = {"id": "m", "type": 0, "url": "http://x/y.png", "alt": None, "metadata": {}}


def lines(folder: Path, *records: Any, name: str = "a.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return folder


def read(step: Any) -> tuple[list[Document], TaskContext]:
    task = TaskContext(Storage(), 0, 1, step.find_shards(Storage()), "tag")
    step.bind(task)
    return list(step(None, 0, 1)), task


def write(step: Any, *documents: Document) -> TaskContext:
    task = TaskContext(Storage(), 0, 1, [], "tag")
    step.bind(task)
    list(step(iter(documents), 0, 1))
    commit(task)
    return task


# ---- Media ----


def test_media_are_objects_with_the_fields_of_datatroves(tmp_path: Path) -> None:
    lines(tmp_path, {"text": "x", "media": [IMAGE, {"image": "other"}, 7, {**IMAGE, "more": 1}]})
    ((document,), _) = read(ReadJsonl(str(tmp_path)))
    assert document.media == [Media("m", 0, "http://x/y.png"), {"image": "other"}, 7, {**IMAGE, "more": 1}]


@pytest.mark.parametrize("medium", [Media("m", 0, "u", media_bytes=b"\x89PNG\xff"), {"media_bytes": b"\x89PNG\xff"}])
@pytest.mark.parametrize("writer", [WriteJsonl, WriteParquet])
def test_bytes_of_media_are_left_out_and_counted_or_written_on_request(
    tmp_path: Path, writer: Any, medium: Any
) -> None:
    from stagger.pipeline import COUNTS

    COUNTS.clear()
    document = Document("x", "1", [medium])
    write(writer(str(tmp_path / "without")), document)
    assert COUNTS == {"media_bytes_left_out": 1}
    write(writer(str(tmp_path / "with"), save_media_bytes=True), document)
    assert COUNTS == {"media_bytes_left_out": 1}
    reader = ReadJsonl if writer is WriteJsonl else ReadParquet

    def content(name: str) -> Any:
        (medium,) = read(reader(str(tmp_path / name)))[0][0].media
        return medium.media_bytes if isinstance(medium, Media) else medium["media_bytes"]

    assert content("without") is None
    assert content("with") in (b"\x89PNG\xff", base64.b64encode(b"\x89PNG\xff").decode())


def test_datatroves_reader_and_ours_agree_on_media(tmp_path: Path) -> None:
    datatrove = pytest.importorskip("datatrove.pipeline.readers")
    media = [Media("m", 0, "u", metadata={"big": 2**70}), Media("n", 1, "v", media_bytes=b"\xff\0")]
    write(WriteJsonl(str(tmp_path), compression=None, save_media_bytes=True), Document("x", "1", media[1:]))
    (theirs,) = datatrove.JsonlReader(str(tmp_path)).run()
    ((ours,), _) = read(ReadJsonl(str(tmp_path)))
    assert theirs.media[0].media_bytes == ours.media[0].media_bytes == b"\xff\0"
    write(WriteJsonl(str(tmp_path / "big"), compression=None), Document("x", "1", media[:1]))
    assert read(ReadJsonl(str(tmp_path / "big")))[0][0].media == media[:1]


def test_datatroves_parquet_with_media(tmp_path: Path) -> None:
    writers = pytest.importorskip("datatrove.pipeline.writers")
    data = pytest.importorskip("datatrove.data")
    document = data.Document("x", "1", [data.Media("m", 0, "u", media_bytes=b"\xff\0", metadata={"w": 1})], {"k": 1})
    list(writers.ParquetWriter(str(tmp_path), save_media_bytes=True).run([document]))
    ((found,), _) = read(ReadParquet(str(tmp_path)))
    assert (found.media[0].media_bytes, found.metadata) == (b"\xff\0", {"k": 1})


def test_bytes_that_are_no_base64_are_a_bad_record(tmp_path: Path) -> None:
    lines(tmp_path, {"text": "x", "media": [{**IMAGE, "media_bytes": "no base64!"}]})
    with pytest.raises(BadInput, match="'media_bytes' of the medium 'm' is not base64"):
        read(ReadJsonl(str(tmp_path)))


# ---- Ids ----


@pytest.mark.parametrize("writer", [WriteJsonl, WriteParquet])
def test_an_integer_id_is_written_as_its_digits_and_any_other_is_blamed_on_its_maker(
    tmp_path: Path, writer: Any
) -> None:
    number: Any = 5
    write(writer(str(tmp_path / "out")), Document("x", number))
    assert read((ReadJsonl if writer is WriteJsonl else ReadParquet)(str(tmp_path / "out")))[0][0].id == "5"
    for document, said in (
        (Document("x", 1.5), "The id of the document 1.5 is not a string, but float; correct the reader"),  # type: ignore[arg-type]
        (Document("x", True), "The id of the document True is not a string, but bool"),  # type: ignore[arg-type]
        (Document(None, "1"), "The text of the document '1' is not a string, but NoneType"),  # type: ignore[arg-type]
    ):
        with pytest.raises(StaggerError, match=re.escape(said)):
            write(writer(str(tmp_path / "bad")), document)


# ---- Empty texts ----


def test_an_empty_text_as_datatrove_writes_it_is_read(tmp_path: Path) -> None:
    lines(tmp_path, {"id": "1", "metadata": {"k": 1}}, {"id": "2"}, {"text": "x", "id": "3"}, {"text": "", "id": "4"})
    documents, task = read(ReadJsonl(str(tmp_path)))
    assert [(one.text, one.id) for one in documents] == [("", "1"), ("", "2"), ("x", "3"), ("", "4")]
    assert not task.left_out
    documents, task = read(ReadJsonl(str(tmp_path), skip_empty_text=True))
    assert [one.id for one in documents] == ["3"]
    assert task.left_out == {"empty text": 3}


def test_a_record_with_other_keys_and_no_text_is_wrong_unless_asked_for(tmp_path: Path) -> None:
    lines(tmp_path, {"id": "1", "content": "x"})
    with pytest.raises(BadInput, match="set text_key to the key that holds the text, or missing_text: empty"):
        read(ReadJsonl(str(tmp_path)))
    ((document,), _) = read(ReadJsonl(str(tmp_path), missing_text="empty"))
    assert (document.text, document.metadata) == ("", {"content": "x"})


def test_every_reader_leaves_out_empty_texts_on_request(tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "a.csv").write_text("text,id\n,1\nx,2\n")
    (tmp_path / "parquet").mkdir()
    parquet.write_table(pyarrow.table({"text": ["", None, "x"]}), tmp_path / "parquet" / "a.parquet")
    lines(tmp_path / "jsonl", {"text": None}, {"text": "x"})
    for reader, name in ((ReadCsv, "csv"), (ReadParquet, "parquet"), (ReadJsonl, "jsonl")):
        documents, task = read(reader(str(tmp_path / name), skip_empty_text=True))
        assert [one.text for one in documents] == ["x"]
        assert sum(task.left_out.values()) == (2 if name == "parquet" else 1)
    with pytest.raises(BadInput, match="'text' is null; with skip_empty_text: true, it is left out"):
        read(ReadParquet(str(tmp_path / "parquet")))


# ---- Metadata ----


def test_metadata_as_a_string_of_json(tmp_path: Path) -> None:
    text = '{"a": 1, "big": 18446744073709551617}'
    lines(tmp_path / "jsonl", {"text": "x", "metadata": text, "url": "u"})
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "a.csv").write_text('text,metadata,url\nx,"{""a"": 1, ""big"": 18446744073709551617}",u\n')
    (tmp_path / "parquet").mkdir()
    parquet.write_table(
        pyarrow.table({"text": ["x"], "metadata": [text], "url": ["u"]}), tmp_path / "parquet" / "a.parquet"
    )
    for reader, name in ((ReadJsonl, "jsonl"), (ReadCsv, "csv"), (ReadParquet, "parquet")):
        ((document,), _) = read(reader(str(tmp_path / name)))
        assert document.metadata == {"a": 1, "big": 2**64 + 1, "url": "u"}


def test_metadata_that_is_no_object(tmp_path: Path) -> None:
    lines(tmp_path, {"text": "x", "metadata": "a note"})
    with pytest.raises(BadInput, match="'metadata' holds str, not an object; metadata_key: null keeps it as any other"):
        read(ReadJsonl(str(tmp_path)))
    assert read(ReadJsonl(str(tmp_path), metadata_key=None))[0][0].metadata == {"metadata": "a note"}


def test_default_metadata_gives_way_and_is_no_ones_elses(tmp_path: Path) -> None:
    lines(tmp_path, {"text": "x", "metadata": {"dump": "own"}}, {"text": "y"})
    documents, _ = read(ReadJsonl(str(tmp_path), default_metadata={"dump": "D", "tags": []}))
    assert [one.metadata["dump"] for one in documents] == ["own", "D"]
    documents[0].metadata["tags"].append("mine")
    assert documents[1].metadata["tags"] == []


# ---- Which documents ----


def test_skip_and_limit_count_documents_with_text_over_all_shards(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        lines(tmp_path, *({"text": "x" * (n % 2), "id": f"{name}-{n}"} for n in range(6)), name=name)
    documents, task = read(ReadJsonl(str(tmp_path), skip=2, limit=3, skip_empty_text=True))
    assert [one.id for one in documents] == ["a.jsonl-5", "b.jsonl-1", "b.jsonl-3"]
    assert task.left_out["skip"] == 2


def test_a_rank_that_resumes_skips_no_further_documents(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        lines(tmp_path, *({"text": "x", "id": f"{name}-{n}"} for n in range(3)), name=name)
    step = ReadJsonl(str(tmp_path), skip=1, limit=4)
    task = TaskContext(Storage(), 0, 1, step.find_shards(Storage())[1:], "tag")
    task.notes["documents"] = {"skipped": 1, "read": 2}
    step.bind(task)
    assert [one.id for one in step(None, 0, 1)] == ["b.jsonl-0", "b.jsonl-1"]


def test_a_seed_shuffles_the_shards_always_alike(tmp_path: Path) -> None:
    for number in range(20):
        lines(tmp_path, {"text": "x"}, name=f"{number:02d}.jsonl")

    def names(seed: int | None) -> list[str]:
        return [shard.name for shard in ReadJsonl(str(tmp_path), shuffle_seed=seed).find_shards(Storage())]

    assert names(None) == sorted(names(1)) != names(1)
    assert names(1) == names(1) != names(2)


# ---- Adapters ----


def adapt(reader: Any, data: dict[str, Any], path: str, id_in_file: int | str) -> dict[str, Any] | None:
    if data.get("drop") or data.get("text") == "drop":
        return None
    if "bad" in data:
        return {"text": data["bad"]}
    return {"text": data.get("title") or data[reader.text_key], "id": f"{path}#{id_in_file}", "metadata": data}


def test_an_adapter_makes_the_documents_of_every_reader(tmp_path: Path) -> None:
    lines(tmp_path / "jsonl", {"title": "x"}, {"title": "y", "drop": 1}, {"bad": 5}, {"none": 1})
    documents, task = read(ReadJsonl(str(tmp_path / "jsonl"), adapter=adapt, on_bad_record="skip"))
    assert documents == [Document("x", "a.jsonl#0", [], {"title": "x"})]
    assert (task.left_out, task.bad_records) == ({"adapter": 1}, {"adapter": 2})
    assert "KeyError: 'text' (test_edges.py:" in task.bad_examples[1]["reason"]
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "a.csv").write_text("title\nx\n")
    (tmp_path / "parquet").mkdir()
    parquet.write_table(pyarrow.table({"title": ["x"]}), tmp_path / "parquet" / "a.parquet")
    for reader, name in ((ReadCsv, "csv"), (ReadParquet, "parquet")):
        ((document,), _) = read(reader(str(tmp_path / name), adapter=adapt))
        assert (document.text, document.metadata) == ("x", {"title": "x"})
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("x\ndrop\n")
    ((document,), task) = read(ReadText(str(tmp_path / "text"), adapter="tests.steps.test_edges:text_adapter"))
    assert (document.text, task.left_out) == ("X", {"adapter": 1})


def text_adapter(reader: Any, data: dict[str, Any], path: str, number: int | str) -> dict[str, Any] | None:
    return None if data["text"] == "drop" else {"text": data["text"].upper(), "id": data["id"]}


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ("adapt", "adapter is 'adapt'; give a function, written module:name"),
        (
            "tests.steps.test_edges:adopt",
            "adapter: 'tests.steps.test_edges:adopt' cannot be imported: .* 'adapt'?",
        ),
        (5, "adapter is 5, which cannot be called"),
    ],
)
def test_an_adapter_that_is_no_function_is_refused(tmp_path: Path, adapter: Any, said: str) -> None:
    for step in (ReadJsonl, WriteJsonl):
        with pytest.raises(StaggerError, match=said):
            step(str(tmp_path), adapter=adapter)


def to_record(writer: Any, document: Document) -> dict[str, Any]:
    return {"text": document.text.upper(), "id": document.id, "n": len(document.text)}


def test_an_adapter_makes_the_records_of_writers(tmp_path: Path) -> None:
    write(WriteJsonl(str(tmp_path / "jsonl"), compression=None, adapter=to_record), Document("x", "1"))
    assert read_jsonl(tmp_path / "jsonl" / "00000.jsonl") == [{"text": "X", "id": "1", "n": 1}]
    write(WriteParquet(str(tmp_path / "parquet"), adapter=to_record), Document("x", "1"))
    assert parquet.read_table(tmp_path / "parquet" / "00000.parquet").to_pylist() == [{"text": "X", "id": "1", "n": 1}]
    with pytest.raises(StaggerError, match="The adapter's record of '1' lacks the key 'id'"):
        write(WriteParquet(str(tmp_path / "bad"), adapter=lambda writer, document: {"text": "x"}), Document("x", "1"))
    with pytest.raises(
        StaggerError, match="The adapter returned str for the document '1'; return the record as a dict"
    ):
        write(WriteJsonl(str(tmp_path / "bad"), adapter=lambda writer, document: "x"), Document("x", "1"))


def test_numbers_of_numpy_and_times_are_written_as_datatrove_does(tmp_path: Path) -> None:
    values = {
        "f": numpy.float32(0.5),
        "i": numpy.int64(7),
        "b": numpy.bool_(True),
        "nan": numpy.float64("nan"),
        "at": numpy.datetime64("2024-05-01T12:00"),
        "big": 2**70,
    }
    write(WriteJsonl(str(tmp_path / "jsonl"), compression=None), Document("x", "1", [], values))
    (record,) = read_jsonl(tmp_path / "jsonl" / "00000.jsonl")
    assert record["metadata"] == {"f": 0.5, "i": 7, "b": True, "nan": None, "at": "2024-05-01T12:00", "big": 2**70}
    write(
        WriteParquet(str(tmp_path / "parquet")), Document("x", "1", [], {"f": numpy.float32(0.5), "i": numpy.int64(7)})
    )
    assert read(ReadParquet(str(tmp_path / "parquet")))[0][0].metadata == {"f": 0.5, "i": 7}
    with pytest.raises(StaggerError, match="cannot be written as JSON"):
        write(WriteJsonl(str(tmp_path / "bad")), Document("x", "1", [], {"a": numpy.array([object()])}))


def arrays() -> dict[str, Any]:
    table = numpy.arange(6, dtype="float32").reshape(2, 3) / 10
    return {
        "vector": table[1],
        "column": table[:, 1],
        "table": table,
        "whole": numpy.array([1, 2], "int32"),
        "big": 2**70,
    }


def test_arrays_of_numpy_become_lists_of_their_own_type(tmp_path: Path) -> None:
    values = arrays()
    write(WriteJsonl(str(tmp_path / "jsonl"), compression=None), Document("x", "1", [], values))
    assert b'"vector":[0.3,0.4,0.5],"column":[0.1,0.4],' in (tmp_path / "jsonl" / "00000.jsonl").read_bytes()
    document = Document("x", "1", [], {**values, "big": None})
    empty = Document("y", "2", [], dict.fromkeys(values))
    write(WriteParquet(str(tmp_path / "parquet")), document, empty)
    table = parquet.read_table(tmp_path / "parquet" / "00000.parquet")
    types = {field.name: str(field.type).replace("element: ", "") for field in table.schema}
    assert types["vector"] == types["column"] == "list<float>"
    assert (types["table"], types["whole"]) == ("list<list<float>>", "list<int32>")
    first, second = table.to_pylist()
    assert numpy.array(first["table"], "float32").tolist() == arrays()["table"].tolist()
    assert first["whole"] == [1, 2]
    assert second["vector"] is second["table"] is None


def test_columns_of_lists_can_be_named(tmp_path: Path) -> None:
    writer = WriteParquet(str(tmp_path / "out"), columns={"e": "list<float32>"})
    write(writer, Document("x", "1", [], {"e": None}), Document("y", "2", [], {"e": numpy.ones(2, "float32")}))
    assert parquet.read_table(tmp_path / "out")["e"].to_pylist() == [None, [1.0, 1.0]]
    wrong = WriteParquet(str(tmp_path / "wrong"), columns={"e": "list<float32>"})
    with pytest.raises(StaggerError, match=r"but the metadata of 1 has an array \(list<float64>\) there"):
        write(wrong, Document("x", "1", [], {"e": numpy.ones(2)}))
    with pytest.raises(StaggerError, match="there is no type 'list<flot>' for 'e'"):
        WriteParquet(str(tmp_path / "wrong"), columns={"e": "list<flot>"})
