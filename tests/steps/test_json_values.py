"""JSON values that are unusual: what can be read can be written, and all else is one bad record with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagger import BadInput, Document, ReadJsonl, StaggerError, WriteJsonl
from stagger.pipeline.task_context import TaskContext
from stagger.steps.exact_json import encoded
from stagger.storage.storage import Storage


def read(folder: Path, *lines: bytes, end: bytes = b"\n", **options: Any) -> tuple[list[Document], dict[str, int]]:
    (folder / "a.jsonl").write_bytes(b"\n".join(lines) + end)
    step = ReadJsonl(str(folder), **options)
    task = TaskContext(Storage(), 0, 1, step.find_shards(Storage()), "tag")
    step.bind(task)
    return list(step(None, 0, 1)), task.bad_records


def written(document: Document) -> Any:
    return json.loads(WriteJsonl("out").encode(document))


INTEGERS = st.integers(2**62, 2**66).flatmap(lambda size: st.sampled_from([size, -size])) | st.integers()
VALUES = st.recursive(
    INTEGERS | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(codec="utf-8")) | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc"), inner, max_size=4),
)


@settings(max_examples=200, deadline=None)
@given(value=VALUES, media=st.lists(VALUES, max_size=2), id_=INTEGERS)
def test_values_are_read_and_written_exactly(
    tmp_path_factory: pytest.TempPathFactory, value: Any, media: list[Any], id_: int
) -> None:
    record = {"text": "x", "id": id_, "metadata": {"value": value}, "media": media}
    ((document,), _) = read(tmp_path_factory.mktemp("in"), json.dumps(record).encode())
    assert document == Document("x", str(id_), media, {"value": value})
    assert written(document) == {key: item for key, item in {**record, "id": str(id_)}.items() if item != []}


def test_an_integer_of_hundreds_of_digits_is_exact(tmp_path: Path) -> None:
    modulus = 3**1290
    ((document,), _) = read(tmp_path, b'{"text": "x", "key": {"n": [%d]}}' % modulus)
    assert document.metadata == written(document)["metadata"] == {"key": {"n": [modulus]}}


def test_vectors_of_numbers_stay_as_they_are(tmp_path: Path) -> None:
    vectors: list[list[Any]] = [
        [0.5] * 1000,
        [0.5, 2.0**64, -1e300],
        [0.5, 2**64, -(2**64)],
        [0.5, None, 2**70],
        [0.5, "x", -(2**63) - 1],
    ]
    lines = [json.dumps({"text": "x", "vector": vector}).encode() for vector in vectors]
    found = [document.metadata["vector"] for document in read(tmp_path, *lines)[0]]
    assert repr(found) == repr(vectors)


@pytest.mark.parametrize("depth", [250, 254, 255, 300, 800])
def test_what_is_nested_deep_is_read_and_written(tmp_path: Path, depth: int) -> None:
    line = b'{"text": "x", "a": ' + b'[{"k":' * (depth // 2) + b"1" + b"}]" * (depth // 2) + b"}"
    ((document,), _) = read(tmp_path, line)
    assert b'[{"k":' * (depth // 2) + b"1" in WriteJsonl("out").encode(document)


@pytest.mark.parametrize("depth", [1100, 100_000])
def test_what_is_nested_too_deep_is_one_bad_record(tmp_path: Path, depth: int) -> None:
    line = b'{"text": "x", "a": ' + b"[" * depth + b"]" * depth + b"}"
    with pytest.raises(BadInput, match=r"record 1, byte 0: nested "):
        read(tmp_path, line)
    documents, bad = read(tmp_path, line, b'{"text": "y"}', on_bad_record="skip")
    assert [document.text for document in documents] == ["y"]
    assert bad == {"json": 1}


def test_a_value_that_contains_itself_cannot_be_written() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(StaggerError, match="cannot be written as JSON: it is nested more than 1024 deep"):
        WriteJsonl("out").encode(Document("x", "1", [], {"a": endless}))


@settings(max_examples=200)
@given(VALUES)
def test_both_ways_of_writing_write_the_same(value: Any) -> None:
    assert json.loads(encoded(value)) == value


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        (b'{"text": "x", "n": NaN}', "nan", "NaN is not JSON: write null instead"),
        (b'{"text": "x", "n": [Infinity]}', "nan", "Infinity is not JSON"),
        (b'{"text": "x", "n": -Infinity}', "nan", "-Infinity is not JSON"),
        (b'{"text": "x", "n": 1e400}', "json", "the number 1e400 is beyond the range of 64-bit floats"),
        (b'{"text": "x", "n": ' + b"9" * 5000 + b"}", "json", "an integer has more than 4300 digits"),
        (b'{"text": "x\\ud800"}', "json", "not JSON: .*surrogate"),
        (b'{"text": "x"}\r{"text": "y"}', "json", r"not JSON: a carriage return \(CR\) stands within the line"),
        (b"<!DOCTYPE html>", "json", "not JSON, but HTML or XML, perhaps a server's error page"),
    ],
)
def test_what_is_not_json_is_named(tmp_path: Path, line: bytes, kind: str, message: str) -> None:
    with pytest.raises(BadInput, match=rf"record 2, byte 14: {message}"):
        read(tmp_path, b'{"text": "a"}', line)
    documents, bad = read(tmp_path, b'{"text": "a"}', line, b'{"text": "b"}', on_bad_record="skip")
    assert [document.text for document in documents] == ["a", "b"]
    assert bad == {kind: 1}


def test_a_bad_last_line_without_a_line_end_is_not_truncated(tmp_path: Path) -> None:
    for line in (b'{"text": "x", "n": NaN}', b'{"text": "x", "n": 1e400}', b'{"text": "x" "n": 1}'):
        documents, bad = read(tmp_path, b'{"text": "a"}', line, end=b"", on_bad_record="skip")
        assert len(documents) == sum(bad.values()) == 1


def test_a_last_line_that_was_cut_anywhere_is_truncated(tmp_path: Path) -> None:
    line = '{"text": "é\\u00e9\\ud83d\\ude00", "n": [-1.5e+3, true], "m": {"a": null}}'.encode()
    for length in range(1, len(line)):
        with pytest.raises(BadInput, match=r"record 2, byte 14: .*the file is truncated"):
            read(tmp_path, b'{"text": "a"}', line[:length], end=b"", on_bad_record="skip")


def test_zero_bytes_at_the_end_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the file has zero bytes instead of a record: it was not written to its end"):
        read(tmp_path, b'{"text": "a"}', bytes(100), end=b"", on_bad_record="skip")
