"""Reading shards: the documents of a good shard, and the errors for a bad one."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagger import BadInput, Document, ReadJsonl, ReadText, Shard, StaggerError, WriteJsonl
from stagger.pipeline.compression import Codec
from stagger.pipeline.task_context import TaskContext
from stagger.storage.storage import Storage
from tests.conftest import read_jsonl
from tests.kit.commits import commit


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
        with pytest.raises(StaggerError, match=r"b\.jsonl links to a missing file"):
            read(ReadJsonl(str(tmp_path), recursive=recursive))


def test_the_same_id_wherever_a_single_file_lies(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", {"text": "x"})
    assert [document.id for document in read(ReadJsonl(str(path)))] == ["a.jsonl/0"]
    assert [document.id for document in read(ReadJsonl(str(tmp_path)))] == ["a.jsonl/0"]


def test_input_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(StaggerError, match=r"Nothing in .* matches '\*\.jsonl' \(set recursive: true to search"):
            ReadJsonl(str(path), glob="*.jsonl").find_shards(Storage())


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"text": "x"}, b'{"text": "y'], r"a\.jsonl, record 2, byte 14: not JSON: .*"),
        ([{"text": "x"}, b'{"text": "\xff"}'], r"record 2, byte 14: not UTF-8: byte 0xff at position 10 of the record"),
        ([{"test": "x"}], r"record 1, byte 0: there is no key 'text'; set text_key"),
        ([{"text": "x"}, b"", [1, 2]], r"record 3, byte 15: not a JSON object"),
        ([{"text": 5}], r"record 1, byte 0: 'text' holds int, not a string"),
        ([{"text": None}], r"'text' holds NoneType"),
        ([b'{"text": "x", "id": 1.5}'], r"'id' is neither a string nor an integer"),
        ([{"text": "x", "metadata": 5}], r"'metadata' holds int, not an object"),
        ([{"text": "x", "metadata": [["a", 1]]}], r"'metadata' holds list, not an object"),
    ],
)
def test_a_bad_record_is_named(tmp_path: Path, lines: list[Any], message: str) -> None:
    write(tmp_path, "a.jsonl", *lines)
    with pytest.raises(BadInput, match=message):
        read(ReadJsonl(str(tmp_path)))


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_shard_that_was_cut_before_the_plan_is_noticed(tmp_path: Path, suffix: str) -> None:
    from stagger.pipeline.compression import codec_of, compressor

    name = f"a.jsonl{suffix}"
    data = b"".join(b'{"text": "document %d"}\n' % i for i in range(5000))
    codec = codec_of(name)
    if codec == "gzip" or codec == "zstd":
        stream = compressor(codec)
        data = stream.compress(data) + stream.flush()
    (tmp_path / name).write_bytes(data[: len(data) - 7])
    with pytest.raises(BadInput, match=r"a\.jsonl.*, record \d+, byte \d+: .*truncated"):
        read(ReadJsonl(str(tmp_path)))


def test_a_plain_shard_that_was_cut_between_lines_after_the_plan_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", *({"text": str(i)} for i in range(100)))
    step = ReadJsonl(str(tmp_path))
    shards = step.find_shards(Storage())
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:50]))
    step.bind(TaskContext(Storage(), 0, 1, shards, "tag"))
    with pytest.raises(BadInput, match=r"a\.jsonl has changed: [\d,]+ bytes now, [\d,]+ when the plan was made"):
        list(step(None, 0, 1))


def test_text_by_line_and_by_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("one\r\n\ntwo é\n".encode())
    assert read(ReadText(str(tmp_path))) == [Document("one", "a.txt/0"), Document("two é", "a.txt/2")]
    assert read(ReadText(str(tmp_path), document="file")) == [Document("one\r\n\ntwo é\n", "a.txt")]
    (tmp_path / "b.txt").write_bytes(b"good\nbad \xff\n")
    with pytest.raises(BadInput, match=r"b\.txt, record 2, byte 5: not UTF-8: byte 0xff at position 4 of the record"):
        read(ReadText(str(tmp_path)))


def test_what_is_written_can_be_read_again(tmp_path: Path) -> None:
    documents = [Document("x\n\u2028é", "1", [], {"a": [1, None]}), Document("", "2", [{"url": "u"}])]
    compressions: list[Codec | None] = ["zstd", "gzip", None]
    for compression in compressions:
        folder = tmp_path / str(compression)
        step = WriteJsonl(str(folder), compression=compression)
        task = TaskContext(Storage(), 3, 5, [], "tag")
        step.bind(task)
        assert list(step(documents, 3, 5)) == documents
        assert not list(folder.glob("[!.]*"))
        commit(task)
        assert [path.name for path in folder.iterdir()] == [
            "00003.jsonl" + {"zstd": ".zst", "gzip": ".gz"}.get(compression or "", "")
        ]
        assert read(ReadJsonl(str(folder))) == documents
        (output,) = task.outputs
        assert (output.records, output.output.size) == (2, next(folder.iterdir()).stat().st_size)


def test_a_shard_is_its_name_size_and_time_of_modification(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", {"text": "x"})
    version = f"mtime:{(tmp_path / 'a.jsonl').stat().st_mtime_ns}"
    assert list(ReadJsonl(str(tmp_path)).find_shards(Storage())) == [Shard("a.jsonl", 14, version)]


def texts(folder: Path, **options: Any) -> list[str]:
    return [document.text for document in read(ReadJsonl(str(folder), **options))]


def test_a_file_can_list_the_input(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "sub/c.jsonl"):
        write(tmp_path / "in", name, {"text": name})
    outside = write(tmp_path, "d.jsonl", {"text": "d.jsonl"})
    paths = tmp_path / "paths.txt"
    paths.write_text(f"sub/c.jsonl\n\na.jsonl\n{outside}\n")
    assert texts(tmp_path / "in", paths_file=str(paths)) == ["sub/c.jsonl", "a.jsonl", "d.jsonl"]
    paths.write_bytes(b"\xef\xbb\xbf./sub/../a.jsonl\r\n")
    assert texts(tmp_path / "in", paths_file=str(paths)) == ["a.jsonl"]
    for lines, message in (
        (f"a.jsonl\n{tmp_path}/in/a.jsonl\n", r"lists .*a\.jsonl twice"),
        ("sub/c.jsonl\n./sub/c.jsonl\n", r"lists .*c\.jsonl twice"),
        ("a.jsonl\nnone.jsonl\n", r"in/none\.jsonl, listed in .*paths\.txt, does not exist"),
        ("a.jsonl\nb.jsonl\na.jsonl\n", r"lists .*a\.jsonl twice"),
        ("\n", r"paths\.txt is empty"),
    ):
        paths.write_text(lines)
        with pytest.raises(StaggerError, match=message):
            texts(tmp_path / "in", paths_file=str(paths))
    with pytest.raises(StaggerError, match=r"none\.txt cannot be read"):
        texts(tmp_path / "in", paths_file=str(tmp_path / "none.txt"))


def test_a_limit_is_for_the_whole_rank(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        write(tmp_path, name, *({"text": f"{name}{index}"} for index in range(3)))
    assert texts(tmp_path, limit=5) == ["a.jsonl0", "a.jsonl1", "a.jsonl2", "b.jsonl0", "b.jsonl1"]
    assert texts(tmp_path, limit=0) == []
    assert len(texts(tmp_path, limit=100)) == 9
    with pytest.raises(StaggerError, match="limit is -1"):
        texts(tmp_path, limit=-1)


def test_documents_can_say_where_they_come_from(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", {"text": "x", "metadata": {"k": 1}}, b"", {"text": "y"})
    found = [document.metadata for document in read(ReadJsonl(str(tmp_path), add_source=True))]
    assert found == [{"k": 1, "shard": str(path), "position": 0}, {"shard": str(path), "position": 2}]


def test_a_codec_that_the_name_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(gzip.compress(b'{"text": "x"}\n'))
    (tmp_path / "b").write_bytes(gzip.compress(b'{"text": "y"}\n'))
    assert texts(tmp_path, compression="gzip") == ["x", "y"]
    (tmp_path / "a").unlink()
    (tmp_path / "b").unlink()
    write(tmp_path, "plain.jsonl.gz", {"text": "z"})
    (tmp_path / "plain.jsonl.gz").write_bytes(b'{"text": "z"}\n')
    assert texts(tmp_path, compression=None) == ["z"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b'{"text": "x"}\n')
    assert texts(tmp_path) == ["x"]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbfone\ntwo\n")
    assert [document.text for document in read(ReadText(str(tmp_path)))] == ["one", "two"]
    assert [document.text for document in read(ReadText(str(tmp_path), document="file"))] == ["one\ntwo\n"]


@pytest.mark.parametrize("step", [ReadJsonl, ReadText])
def test_compressed_content_under_a_plain_name_is_said(tmp_path: Path, step: Any) -> None:
    (tmp_path / "a.txt").write_bytes(gzip.compress(b'{"text": "x"}\n'))
    with pytest.raises(BadInput, match="the file is not text in UTF-8, but gzip: set compression: gzip"):
        read(step(str(tmp_path)))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_where_a_file_breaks_off_is_where_its_last_record_begins(tmp_path: Path, name: str) -> None:
    letters = random.Random(0)
    lines = [json.dumps({"text": letters.randbytes(size).hex()}).encode() + b"\n" for size in (50, 7, 900_000, 3)]
    for whole in range(4):
        data = b"".join(lines[:whole]) + lines[whole][: len(lines[whole]) // 2]
        packed = gzip.compress(data + b"x" * 10)[:-12] if name.endswith("gz") else data
        (tmp_path / name).write_bytes(packed)
        with pytest.raises(BadInput, match="truncated") as caught:
            read(ReadJsonl(str(tmp_path)))
        number, byte = map(int, re.findall(r"record (\d+), byte (\d+): ", str(caught.value))[0])
        assert byte == sum(map(len, lines[: number - 1]))
        assert number == whole + 1 or name.endswith("gz")  # gzip holds back what it has not decoded yet.


def test_what_is_not_media_is_metadata_and_two_values_are_none(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", {"text": "x", "media": "BBC"}, {"text": "y", "metadata": {"a": 1}, "a": 1})
    assert [document.metadata for document in read(ReadJsonl(str(tmp_path)))] == [{"media": "BBC"}, {"a": 1}]
    for line, message in (
        ({"text": "x", "metadata": {"url": 1}, "url": 2}, "'url' has one value in the record and another in its"),
        ({"text": "x", "metadata": ""}, "'metadata' holds str, not an object"),
        ({"text": "x", "metadata": [], "a": 1}, "'metadata' holds list, not an object"),
        ({"text": "x", "id": True}, "'id' is neither a string nor an integer"),
    ):
        write(tmp_path, "a.jsonl", line)
        with pytest.raises(BadInput, match=message):
            read(ReadJsonl(str(tmp_path)))


def test_other_keys_of_metadata(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", {"text": "x", "meta": {"a": 1}, "metadata": "kept"})
    (document,) = read(ReadJsonl(str(tmp_path), metadata_key="meta"))
    assert document.metadata == {"a": 1, "metadata": "kept"}


@given(
    st.lists(
        st.builds(
            Document,
            st.text(),
            st.text(min_size=1),
            st.just([]),
            st.dictionaries(
                st.text(), st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), max_size=4
            ),
        ),
        min_size=1,
        max_size=20,
    ),
    st.sampled_from(["zstd", "gzip", None]),
)
def test_any_documents_survive_and_others_read_the_same(documents: list[Document], codec: Codec | None) -> None:
    documents = [document for document in documents if _encodable(document)]
    with tempfile.TemporaryDirectory() as folder:
        step = WriteJsonl(folder, compression=codec)
        task = TaskContext(Storage(), 0, 1, [], "tag")
        step.bind(task)
        assert list(step(documents, 0, 1)) == documents
        commit(task)
        paths = list(Path(folder).iterdir())
        assert len(paths) == bool(documents)
        if documents:
            assert read(ReadJsonl(folder)) == documents
            assert [(r["text"], r["id"], r["metadata"]) for r in read_jsonl(paths[0])] == [
                (document.text, document.id, document.metadata) for document in documents
            ]


def _encodable(document: Document) -> bool:
    try:
        json.dumps([document.text, document.id, document.metadata], ensure_ascii=False).encode()
    except UnicodeEncodeError:  # A lone surrogate cannot be encoded.
        return False
    return True


def test_what_takes_the_place_of_a_shard_does_not_stop_the_task(tmp_path: Path) -> None:
    for kind, message in (
        ("folder", r"a\.jsonl, record 1, byte 0: IsADirectoryError: Is a directory"),
        ("pipe", r"a\.jsonl has changed: 0 bytes now, 14 when the plan was made"),
        ("nothing", r"a\.jsonl is gone: it was there when the plan was made"),
    ):
        path = write(tmp_path, "a.jsonl", {"text": "x"})
        step = ReadJsonl(path.parent)  # type: ignore[arg-type] # A Path does as well.
        step.bind(TaskContext(Storage(), 0, 1, step.find_shards(Storage()), "tag"))
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        with pytest.raises(BadInput, match=message):
            list(step(None, 0, 1))
        if kind == "folder":
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
