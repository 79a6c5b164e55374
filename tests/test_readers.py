"""Reading shards: what documents come out, and what is said about a shard that is not right."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from stagger import BadInput, Document, ReadJsonl, ReadText, Shard, StaggerError, WriteJsonl
from stagger.storage import Storage
from stagger.task_context import TaskContext


def read(step: Any, storage: Storage | None = None) -> list[Document]:
    storage = storage or Storage()
    step.bind(TaskContext(storage, 0, 1, step.find_shards(storage), "tag"))
    return list(step(None, 0, 1))


def write(folder: Path, name: str, *lines: Any) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    data = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def test_documents_of_json_lines(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", {"text": "x", "id": 7, "url": "u", "metadata": {"date": "d"}}, b"", {"text": "é"})
    write(tmp_path, "b.jsonl.gz", {"text": "z", "id": "i", "media": [1]})
    assert read(ReadJsonl(str(tmp_path))) == [
        Document("x", "7", [], {"date": "d", "url": "u"}),
        Document("é", "a.jsonl/2"),
        Document("z", "i", [1]),
    ]


def test_other_keys(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", {"content": "x", "key": "k", "text": "kept"})
    (document,) = read(ReadJsonl(str(tmp_path), text_key="content", id_key="key"))
    assert document == Document("x", "k", [], {"text": "kept"})


def test_which_files_are_read(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", ".hidden.jsonl", "sub/c.jsonl", "sub/.d/e.jsonl", "f.txt"):
        write(tmp_path, name, {"text": name, "id": name})

    def names(**options: Any) -> list[str]:
        return [document.text for document in read(ReadJsonl(str(tmp_path), **options))]

    assert names(glob="*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert names(glob="*.jsonl", recursive=True) == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
    assert names(glob="sub/*.jsonl", recursive=True) == ["sub/c.jsonl"]
    assert [document.id for document in read(ReadJsonl(str(tmp_path / "sub" / "c.jsonl")))] == ["sub/c.jsonl"]


def test_globs_over_whole_paths(tmp_path: Path) -> None:
    for name in ("a.jsonl", "x/b.jsonl", "x/y/c.jsonl"):
        write(tmp_path, name, {"text": name})

    def names(glob: str) -> list[str]:
        return [document.text for document in read(ReadJsonl(str(tmp_path), glob=glob, recursive=True))]

    assert names("**/*.jsonl") == ["a.jsonl", "x/b.jsonl", "x/y/c.jsonl"]
    assert names("x/*.jsonl") == ["x/b.jsonl"]


def test_a_link_to_nothing_is_not_overlooked(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", {"text": "x"})
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone")
    (tmp_path / ".#lock.jsonl").symlink_to("nothing")
    for recursive in (False, True):
        with pytest.raises(StaggerError, match=r"b\.jsonl is a link to a file that is gone"):
            read(ReadJsonl(str(tmp_path), recursive=recursive))


def test_the_same_id_wherever_a_single_file_lies(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", {"text": "x"})
    assert [document.id for document in read(ReadJsonl(str(path)))] == ["a.jsonl/0"]
    assert [document.id for document in read(ReadJsonl(str(tmp_path)))] == ["a.jsonl/0"]


def test_input_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(StaggerError, match=r"Nothing in .* matches '\*\.jsonl' \(folders below it .*recursive"):
            ReadJsonl(str(path), glob="*.jsonl").find_shards(Storage())


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"text": "x"}, b'{"text": "y'], r"a\.jsonl, after 1 documents: line 2 is not JSON"),
        ([{"text": "x"}, b'{"text": "\xff"}'], r"line 2 is not JSON"),
        ([{"test": "x"}], r"line 1 has no 'text'; text_key says"),
        ([[1, 2]], r"line 1 is not a JSON object"),
        ([{"text": 5}], r"line 1: 'text' holds int, not a string"),
        ([{"text": None}], r"'text' holds NoneType"),
        ([b'{"text": "x", "id": 12345678901234567890123}'], r"line 1: 'id' is neither a string nor an integer of 64"),
        ([{"text": "x", "metadata": 5}], r"line 1 is not a JSON object \(or its metadata is none\)"),
    ],
)
def test_a_bad_record_is_named(tmp_path: Path, lines: list[Any], message: str) -> None:
    write(tmp_path, "a.jsonl", *lines)
    with pytest.raises(BadInput, match=message):
        read(ReadJsonl(str(tmp_path)))


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_shard_that_was_cut_before_the_plan_is_noticed(tmp_path: Path, suffix: str) -> None:
    from stagger.formats import codec_of, compressor

    name = f"a.jsonl{suffix}"
    data = b"".join(b'{"text": "document %d"}\n' % i for i in range(5000))
    codec = codec_of(name)
    if codec:
        stream = compressor(codec)
        data = stream.compress(data) + stream.flush()
    (tmp_path / name).write_bytes(data[: len(data) - 7])
    with pytest.raises(BadInput, match=r"truncated|not JSON"):
        read(ReadJsonl(str(tmp_path)))


def test_a_plain_shard_that_was_cut_between_lines_after_the_plan_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", *({"text": str(i)} for i in range(100)))
    step = ReadJsonl(str(tmp_path))
    shards = step.find_shards(Storage())
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:50]))
    step.bind(TaskContext(Storage(), 0, 1, shards, "tag"))
    with pytest.raises(BadInput, match=r"a\.jsonl has changed: \d+ bytes now, \d+ when the plan was made"):
        list(step(None, 0, 1))


def test_text_by_line_and_by_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("one\r\n\ntwo é\n".encode())
    assert read(ReadText(str(tmp_path))) == [Document("one", "a.txt/0"), Document("two é", "a.txt/2")]
    assert read(ReadText(str(tmp_path), document="file")) == [Document("one\r\n\ntwo é\n", "a.txt")]
    (tmp_path / "b.txt").write_bytes(b"good\nbad \xff\n")
    with pytest.raises(BadInput, match=r"b\.txt, after 1 documents: line 2 is not UTF-8: byte 0xff at its position 4"):
        read(ReadText(str(tmp_path)))


def test_what_is_written_can_be_read_again(tmp_path: Path) -> None:
    documents = [Document("x\n\u2028é", "1", [], {"a": [1, None]}), Document("", "2", [{"url": "u"}])]
    for compression in ("zstd", "gzip", None):
        folder = tmp_path / str(compression)
        step = WriteJsonl(str(folder), compression)
        task = TaskContext(Storage(), 3, 5, [], "tag")
        step.bind(task)
        assert list(step(documents, 3, 5)) == documents
        assert not list(folder.glob("[!.]*"))
        task.commit()
        assert [path.name for path in folder.iterdir()] == [
            "00003.jsonl" + {"zstd": ".zst", "gzip": ".gz"}.get(compression or "", "")
        ]
        assert read(ReadJsonl(str(folder))) == documents
        (output,) = task.outputs
        assert (output.records, output.output.size) == (2, next(folder.iterdir()).stat().st_size)


def test_a_shard_is_its_name_and_size(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", {"text": "x"})
    assert ReadJsonl(str(tmp_path)).find_shards(Storage()) == [Shard("a.jsonl", 14)]
