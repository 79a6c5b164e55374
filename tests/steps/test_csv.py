"""Reading CSV: files written by the standard library, and the errors for files that are malformed."""

from __future__ import annotations

import csv
import gzip
import io
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stagger import BadInput, Document, ReadCsv, StaggerError
from stagger.pipeline.task_context import TaskContext
from stagger.storage.storage import Storage


def bound(folder: Path, **options: Any) -> tuple[ReadCsv, TaskContext]:
    step = ReadCsv(str(folder), **options)
    task = TaskContext(Storage(), 0, 1, step.find_shards(Storage()), "tag")
    step.bind(task)
    return step, task


def read(folder: Path, data: str | bytes | None = None, name: str = "a.csv", **options: Any) -> list[Document]:
    if data is not None:
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return list(bound(folder, **options)[0](None, 0, 1))


FIELDS = st.text(st.one_of(st.sampled_from('",\t\r\n;\ufeff'), st.characters(exclude_characters="\x00", codec="utf-8")))


@given(
    rows=st.lists(st.tuples(FIELDS, FIELDS, FIELDS), max_size=8),
    end=st.sampled_from(["\n", "\r\n"]),
    delimiter=st.sampled_from([",", "\t", ";"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
@example(rows=[("", "", "\r\n"), ('"', "\n", "\r")], end="\r\n", delimiter=",", quoting=csv.QUOTE_MINIMAL)
@settings(max_examples=200, deadline=None)
def test_what_the_standard_library_writes(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]], end: str, delimiter: str, quoting: Any
) -> None:
    folder = tmp_path_factory.mktemp("csv")
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=quoting)
    if quoting == csv.QUOTE_MINIMAL and end == "\n":  # Then a lone carriage return is not quoted, and so ambiguous.
        rows = [(url.replace("\r", ""), text.replace("\r", ""), id_.replace("\r", "")) for url, text, id_ in rows]
    writer.writerows([("url", "text", "id"), *rows])
    data = out.getvalue().encode()
    expected = [Document(text, id_ or f"a.csv/{i}", [], {"url": url}) for i, (url, text, id_) in enumerate(rows)]
    assert read(folder, data, delimiter=delimiter) == expected
    assert read(folder, b"\xef\xbb\xbf" + data, delimiter=delimiter) == expected


def test_codecs_and_tabs(tmp_path: Path) -> None:
    data = b'id\ttext\n1\tx, y\n2\t"two\nlines"\n'
    for name, packed in (("a.tsv", data), ("a.tsv.gz", gzip.compress(data)), ("a.TSV.zst", zstandard.compress(data))):
        assert read(tmp_path, packed, name, glob=name) == [Document("x, y", "1"), Document("two\nlines", "2")]


def test_columns_by_their_names(tmp_path: Path) -> None:
    data = "key,body,lang,n\nk,t,en,1\n"
    names = {"text_key": "body", "id_key": "key"}
    assert read(tmp_path, data, **names) == [Document("t", "k", [], {"lang": "en", "n": "1"})]
    assert read(tmp_path, data, **names, metadata_keys=["n"]) == [Document("t", "k", [], {"n": "1"})]
    assert read(tmp_path, data, **names, metadata_keys=[]) == [Document("t", "k")]
    assert read(tmp_path, data, text_key="body", metadata_keys=["key"]) == [Document("t", "a.csv/0", [], {"key": "k"})]
    assert read(tmp_path, "t,1\r\n\r\nu,2", columns=["text", "id"]) == [Document("t", "1"), Document("u", "2")]


def test_each_document_knows_its_place(tmp_path: Path) -> None:
    documents = read(tmp_path, "text\na\n\nb\n", add_source=True)
    assert [(document.id, document.metadata["position"]) for document in documents] == [("a.csv/0", 0), ("a.csv/1", 1)]


def test_long_texts(tmp_path: Path) -> None:
    text = "long text\n" * 10**6
    assert read(tmp_path, f'text\n"{text}"\n')[0].text == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("body,id\nx,1\n", "record 1, byte 0: there is no column 'text'; the columns are 'body', 'id'"),
        ("text,id,text\n", "the column 'text' appears twice; the columns are 'text', 'id', 'text'"),
        ("\n\n", "there is no header line: the file is empty"),
        (b"text,\xff\nx,1\n", "record 1, byte 0: the header line cannot be read: not UTF-8"),
        ('text,id\nx,1\n"y,2\n', "record 2, byte 12: a quoted field is not closed: the file is truncated"),
        ('text,id\nx,1\ny,"2', "record 2, byte 12: a quoted field is not closed: the file is truncated"),
        ("text,id\nx,1\ny", "record 2, byte 12: the last line breaks off after 1 field: the file is truncated"),
    ],
)
def test_a_file_that_is_not_right_is_never_skipped(tmp_path: Path, data: str | bytes, message: str) -> None:
    with pytest.raises(BadInput, match=rf"a\.csv, .*{message}"):
        read(tmp_path, data, on_bad_record="skip")


@pytest.mark.parametrize(
    ("record", "kind", "message"),
    [
        (b"y\n", "columns", "1 field for 2 columns"),
        (b"y,2,z\r\n", "columns", "3 fields for 2 columns"),
        (b"y \xff,2\n", "utf-8", "not UTF-8: byte 0xff at position 2 of a line"),
        (b'"y\n\xc3",2\n', "utf-8", "not UTF-8: byte 0xc3 at position 0 of a line"),
        (b'"y" z,2\n', "csv", "not CSV: ',' expected after '\"'"),
        (b"y\rz,2\n", "csv", r"not CSV: a carriage return \(CR\) stands outside quotes"),
    ],
)
def test_a_bad_record_is_named_or_skipped(tmp_path: Path, record: bytes, kind: str, message: str) -> None:
    data = b'text,id\n"x\nx",1\n' + record + b"z,3\n"
    with pytest.raises(BadInput, match=rf"a\.csv, record 2, byte 16: {message}"):
        read(tmp_path, data)
    step, task = bound(tmp_path, on_bad_record="skip")
    assert [document.text for document in step(None, 0, 1)] == ["x\nx", "z"]
    assert task.bad_records == {kind: 1}
    assert (task.bad_examples[0]["record"], task.bad_examples[0]["byte"]) == (2, 16)


def test_a_field_that_swallows_the_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagger.steps.csv.FIELD_CHARS", 1000)
    before = csv.field_size_limit(1000)
    try:
        for policy in ("fail", "skip"):
            with pytest.raises(BadInput, match="record 2, byte 7: a field has more than 1000 characters"):
                read(tmp_path, 'text\nx\n"y\n' + "z\n" * 1000, on_bad_record=policy)
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_file_that_was_cut_is_noticed(tmp_path: Path, suffix: str) -> None:
    data = b"id,text\n" + b"".join(b'%d,"text %d\nsecond line"\n' % (i, i) for i in range(300))
    packed = {"": data, ".gz": gzip.compress(data), ".zst": zstandard.compress(data)}[suffix]
    for length in range(1, len(packed), 61 if suffix else 7):
        part = packed[:length]
        if not suffix and (
            part.endswith((b'"', b",")) or data[length - 1 : length + 1] in (b'"\n', b"\n1", b"\n2", b"\n3")
        ):
            continue  # Cut between records, or at the end of a field: this cannot be detected.
        try:
            documents = read(tmp_path, part, f"a.csv{suffix}", on_bad_record="skip")
        except BadInput as error:
            assert "truncated" in str(error) or "no column" in str(error)  # noqa: PT017
        else:
            assert not suffix
            assert len(documents) == part.count(b'"\n')
            assert part.endswith(b"\n")


def test_a_file_that_was_cut_after_the_plan_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text\n" + b"x\n" * 100)
    step, _ = bound(tmp_path)
    path.write_bytes(b"text\n" + b"x\n" * 50)
    with pytest.raises(BadInput, match=r"a\.csv has changed: 105 bytes now, 205 when the plan was made"):
        list(step(None, 0, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delimiter": ",,"}, "delimiter is ',,'; give one character"),
        ({"delimiter": '"'}, "give one character"),
        ({"columns": ["id"]}, "columns: there is no column 'text'; the columns are 'id'"),
        ({"columns": ["text", "text"]}, "columns: the column 'text' appears twice"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(StaggerError, match=message):
        ReadCsv(str(tmp_path), **options)


def test_the_module_does_not_hide_the_standard_librarys() -> None:
    import stagger.steps.csv

    assert sys.modules["csv"] is csv is not stagger.steps.csv
