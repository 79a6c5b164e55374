"""Reading and writing Parquet: compared with pyarrow, and every document reads back as it was written."""

from __future__ import annotations

import datetime
import decimal
import gc
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagger import BadInput, Document, ReadParquet, Shard, StaggerError, WriteParquet
from stagger.pipeline.task_context import TaskContext
from stagger.storage.storage import Storage
from tests.kit.commits import commit

UTC = datetime.timezone.utc


def bound(folder: Path, **options: Any) -> tuple[ReadParquet, TaskContext]:
    step = ReadParquet(str(folder), **options)
    task = TaskContext(Storage(), 0, 1, step.find_shards(Storage()), "tag")
    step.bind(task)
    return step, task


def read(folder: Path, **options: Any) -> list[Document]:
    return list(bound(folder, **options)[0](None, 0, 1))


def write(folder: Path, documents: list[Document], **options: Any) -> list[Path]:
    """The files that a rank writes for these documents."""
    step = WriteParquet(str(folder), **options)
    task = TaskContext(Storage(), 0, 1, [], "tag")
    step.bind(task)
    try:
        assert list(step(documents, 0, 1)) == documents
        commit(task)
    except BaseException:
        task.abort()
        raise
    assert sum(file.records for file in task.outputs) == len(documents)
    return sorted(folder.iterdir())


def table(path: Path, columns: dict[str, Any], **options: Any) -> None:
    pq.write_table(pa.table(columns), path, **options)


def words(seed: int, count: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {"text": " ".join(rng.choices(["ein", "Wort", "größer", "nichts"], k=rng.randrange(60))), "id": f"d{i}", "n": i}
        for i in range(count)
    ]


def test_the_same_as_pyarrow(tmp_path: Path) -> None:
    rows = words(1, 5000)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=700)
    theirs = [Document(row["text"], row["id"], [], {"n": row["n"]}) for row in rows]
    assert read(tmp_path) == theirs
    assert read(tmp_path, batch_size=1) == theirs
    assert read(tmp_path, limit=777) == theirs[:777]


def test_columns_by_their_names(tmp_path: Path) -> None:
    columns = {
        "content": ["x", "y"],
        "key": [7, None],
        "metadata": [{"url": "u", "n": 2}, None],
        "n": [2, 3],
        "media": [[{"url": "m"}], None],
    }
    table(tmp_path / "a.parquet", columns)
    assert read(tmp_path, text_key="content", id_key="key") == [
        Document("x", "7", [{"url": "m"}], {"url": "u", "n": 2}),
        Document("y", "a.parquet/1", [], {"n": 3}),
    ]
    (first, _) = read(tmp_path, text_key="content", add_source=True, metadata_keys=["n"])
    assert first.metadata == {"n": 2, "shard": str(tmp_path / "a.parquet"), "position": 0}
    table(tmp_path / "a.parquet", {**columns, "n": [1, 3]})
    with pytest.raises(BadInput, match="a column and 'metadata' hold different values for the same name"):
        read(tmp_path, text_key="content")


def test_only_the_columns_that_are_asked_for_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = {
        "text": ["x" * 100] * 100,
        "id": ["i"] * 100,
        "a": ["a"] * 100,
        "big": [str(i) * 999 for i in range(100)],
    }
    table(path, columns, compression="none", use_dictionary=False, write_page_checksum=True)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(3)
    data = bytearray(path.read_bytes())
    start = chunk.data_page_offset + chunk.total_compressed_size // 2
    data[start : start + 10] = b"damaged..."
    path.write_bytes(data)
    assert read(tmp_path, metadata_keys=["a"])[0] == Document("x" * 100, "i", [], {"a": "a"})
    assert read(tmp_path, metadata_keys=[])[0] == Document("x" * 100, "i")
    with pytest.raises(BadInput, match=r"a\.parquet, record 1: the file is damaged \(.*"):
        read(tmp_path)


def test_values_become_what_json_has(tmp_path: Path) -> None:
    time = datetime.datetime(2024, 5, 6, 7, 8, 9, 123456)
    nanoseconds = pa.array([1_714_979_289_123_456_789], pa.timestamp("ns"))
    columns = {
        "text": pa.array([b"gr\xc3\xbcn"], pa.binary()),
        "id": pa.array(["i"]).dictionary_encode(),
        "us": pa.array([time], pa.timestamp("us")),
        "zone": pa.array([time.replace(tzinfo=UTC)], pa.timestamp("us", "UTC")),
        "ns": nanoseconds,
        "in_list": pa.ListArray.from_arrays([0, 1], nanoseconds),
        "date": pa.array([time.date()]),
        "time": pa.array([time.time()]),
        "duration": pa.array([datetime.timedelta(seconds=1.5)]),
        "decimal": pa.array([decimal.Decimal("1.10")]),
        "bytes": pa.array([b"abc"]),
        "map": pa.array([[("k", b"v")]], pa.map_(pa.string(), pa.binary())),
        "struct": pa.array([{"a": time.date(), "b": [1, None]}]),
        "half": pa.array([1.5], pa.float32()).cast(pa.float16()),
        "null": pa.array([None], pa.null()),
        "large": pa.array(["l"], pa.large_string()),
    }
    table(tmp_path / "a.parquet", columns)
    (document,) = read(tmp_path)
    assert (document.text, document.id) == ("grün", "i")
    assert document.metadata == {
        "us": "2024-05-06T07:08:09.123456",
        "zone": "2024-05-06T07:08:09.123456+00:00",
        "ns": "2024-05-06T07:08:09.123456",
        "in_list": ["2024-05-06T07:08:09.123456"],
        "date": "2024-05-06",
        "time": "07:08:09.123456",
        "duration": 1.5,
        "decimal": "1.10",
        "bytes": "abc",
        "map": {"k": "v"},
        "struct": {"a": "2024-05-06", "b": [1, None]},
        "half": 1.5,
        "null": None,
        "large": "l",
    }


@pytest.mark.parametrize(
    ("columns", "kind", "message"),
    [
        ({"text": ["x", None, "z"]}, "text", "record 2: 'text' is null"),
        (
            {"text": pa.array([b"x", b"\xff", b"z"])},
            "utf-8",
            "record 2: 'text' is not UTF-8: byte 0xff at position 0 of the value",
        ),
        (
            {"text": ["x", "y", "z"], "b": pa.array([b"x", b"y\xfe", b"z"]).view(pa.string())},
            "utf-8",
            "record 2: 'b' is not UTF-8: byte 0xfe at position 1 of the value; metadata_keys",
        ),
        ({"text": ["x", "y", "z"], "id": [None, 1.5, None]}, "id", "record 2: the id 1.5 is neither a string nor"),
    ],
)
def test_a_bad_record_is_named_or_skipped(tmp_path: Path, columns: dict[str, Any], kind: str, message: str) -> None:
    table(tmp_path / "a.parquet", columns)
    with pytest.raises(BadInput, match=rf"a\.parquet, {message}"):
        read(tmp_path)
    step, task = bound(tmp_path, on_bad_record="skip")
    assert [(document.text, document.id) for document in step(None, 0, 1)] == [
        ("x", "a.parquet/0"),
        ("z", "a.parquet/2"),
    ]
    assert task.bad_records == {kind: 1}
    assert task.bad_examples[0]["record"] == 2


@pytest.mark.parametrize("year", [1, 1000, 1677, 1969, 2024, 2263, 9999])
def test_old_spark_timestamps_keep_their_dates_in_every_column(tmp_path: Path, year: int) -> None:
    time = datetime.datetime(year, 12, 31, 1, 2, 3, 456789)
    int96 = pa.array([time, None], pa.timestamp("us"))
    table(tmp_path / "a.parquet", {"text": ["x", "y"], **nested(int96)}, use_deprecated_int96_timestamps=True)
    assert [document.metadata for document in read(tmp_path)] == [as_json(time.isoformat()), as_json(None)]


@pytest.mark.parametrize("year", [290_000, -4713])
def test_an_int96_beyond_pythons_years_is_a_bad_record(tmp_path: Path, year: int) -> None:
    microseconds = round((year - 1970) * 365.2425) * 86_400_000_000
    column = pa.array([0, microseconds], pa.int64()).cast(pa.timestamp("us"))
    columns = {"text": ["x", "y"], "t": column}
    table(tmp_path / "a.parquet", columns, use_deprecated_int96_timestamps=True)
    assert "int96" in str(pq.ParquetFile(tmp_path / "a.parquet").schema)
    with pytest.raises(BadInput, match=r"record 2: 't' cannot be read: .*metadata_keys"):
        read(tmp_path)
    assert [document.text for document in read(tmp_path, on_bad_record="skip")] == ["x"]


@pytest.mark.parametrize("nanoseconds", [1_577_836_800_123_456_789, -1, -876_543_211, -999, -1000, 0])
def test_nanoseconds_are_cut_to_microseconds_at_any_depth(tmp_path: Path, nanoseconds: int) -> None:
    array = pa.array([nanoseconds, None], pa.int64()).cast(pa.timestamp("ns"))
    table(tmp_path / "a.parquet", {"text": ["x", "y"], **nested(array)})
    time = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=nanoseconds // 1000)
    for batch_size in (None, 1):
        documents = read(tmp_path, batch_size=batch_size)
        assert [document.metadata for document in documents] == [as_json(time.isoformat()), as_json(None)]


#: pyarrow 26, of which there is none for Python 3.10, is the first to read lists of a fixed size that are null.
READS_FIXED = int(pa.__version__.partition(".")[0]) >= 26


def test_a_null_list_of_a_fixed_size_is_read_or_said(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", {"text": ["x", "y"], "fixed": pa.array([[1, 2], None], pa.list_(pa.int32(), 2))})
    if READS_FIXED:
        assert [document.metadata for document in read(tmp_path)] == [{"fixed": [1, 2]}, {"fixed": None}]
        return
    with pytest.raises(BadInput, match=r"pyarrow before 26 cannot read .*: leave the column out \(metadata_keys\)"):
        read(tmp_path)
    assert [document.text for document in read(tmp_path, metadata_keys=[])] == ["x", "y"]


def nested(leaves: pa.Array) -> dict[str, pa.Array]:
    """Columns of two rows, which hold the two leaves at several depths; the second row's lists and structs are null."""
    value, offsets = leaves.type, pa.array([0, None, 2], pa.int32())
    first = leaves.slice(0, 1)
    both = pa.concat_arrays([leaves, pa.nulls(2, value)])
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 2], pa.int32()), leaves)
    return {
        "flat": leaves,
        "list": pa.ListArray.from_arrays(offsets, leaves),
        "large": pa.LargeListArray.from_arrays(offsets.cast(pa.int64()), leaves),
        "fixed": pa.FixedSizeListArray.from_arrays(both, 2, mask=pa.array([False, True])) if READS_FIXED else leaves,
        "map": pa.MapArray.from_arrays(pa.array([0, None, 1], pa.int32()), ["k"], first),
        "struct": pa.StructArray.from_arrays([leaves], names=["t"], mask=pa.array([False, True])),
        "deep": pa.ListArray.from_arrays(
            pa.array([0, None, 1], pa.int32()), pa.StructArray.from_arrays([lists.slice(0, 1)], names=["l"])
        ),
    }


def as_json(time: str | None) -> dict[str, Any]:
    if time is None:
        return dict.fromkeys(("flat", "list", "large", "fixed", "map", "struct", "deep"))
    pair = [time, None]
    whole = {"flat": time, "list": pair, "large": pair, "fixed": pair if READS_FIXED else time}
    return {**whole, "map": {"k": time}, "struct": {"t": time}, "deep": [{"l": pair}]}


def test_binary_values_that_nobody_asked_for_become_null_and_are_counted(tmp_path: Path) -> None:
    png = b"\x89PNG\xff"
    columns = {
        "text": ["x", "y"],
        "image": pa.array([{"bytes": png, "path": "x.png"}, None]),
        "flat": pa.array([png, b"utf-8"]),
        "fixed": pa.array([png, b"ascii"], pa.binary(5)),
        "list": pa.array([[png, b"utf-8"], []], pa.list_(pa.large_binary())),
        "map": pa.array([[(png, "lost"), (b"k", "kept")], None], pa.map_(pa.binary(), pa.string())),
    }
    table(tmp_path / "a.parquet", columns)
    step, task = bound(tmp_path)
    assert [document.metadata for document in step(None, 0, 1)] == [
        {
            "image": {"bytes": None, "path": "x.png"},
            "flat": None,
            "fixed": None,
            "list": [None, "utf-8"],
            "map": {"k": "kept"},
        },
        {"image": None, "flat": "utf-8", "fixed": "ascii", "list": [], "map": None},
    ]
    assert task.notes == {"binary_values_left_out": {"image": 1, "flat": 1, "fixed": 1, "list": 1, "map": 1}}
    for name in ("image", "flat", "fixed", "list", "map"):
        with pytest.raises(BadInput, match=rf"record 1: '{name}' is not UTF-8: byte \w+ at position 0 of the value$"):
            read(tmp_path, metadata_keys=[name])


def test_strings_that_are_not_utf8_are_noticed(tmp_path: Path) -> None:
    broken = pa.array([b"x", b"\xff"]).view(pa.string())
    table(tmp_path / "a.parquet", {"text": broken})
    with pytest.raises(BadInput, match="record 2: 'text' is not UTF-8"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_key": "body"}, "there is no column 'body'; the columns are 'text', 'id', 'n'"),
        ({"metadata_keys": ["n", "lang"]}, "there is no column 'lang'; the columns are 'text', 'id', 'n'"),
        ({"text_key": "n"}, "the column 'n' holds int64, not strings; set text_key"),
    ],
)
def test_a_column_that_is_not_there_is_an_error_of_the_file(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    table(tmp_path / "a.parquet", {"text": ["x"], "id": ["i"], "n": [1]})
    with pytest.raises(BadInput, match=rf"a\.parquet, record 1: {message}"):
        read(tmp_path, on_bad_record="skip", **options)


def test_a_file_that_was_cut_anywhere_is_noticed(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [Document(f"text {i}", str(i)) for i in range(200)], row_group_bytes=2000)
    data = path.read_bytes()
    for length in [*range(1, 12), *range(12, len(data), 97), *range(len(data) - 12, len(data))]:
        path.write_bytes(data[:length])
        with pytest.raises(
            BadInput, match=r"00000\.parquet, record 1: (the file is truncated: it has no|not a Parquet)"
        ):
            read(tmp_path)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_flipped_bit_in_the_pages_is_never_another_document(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("parquet")
    documents = [Document(f"text {i} {'x' * i}", str(i), [], {"n": i}) for i in range(50)]
    (path,) = write(folder, documents, row_group_bytes=3000)
    packed = bytearray(path.read_bytes())
    pages = len(packed) - 8 - int.from_bytes(packed[-8:-4], "little")
    packed[data.draw(st.integers(4, pages - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(packed)
    try:
        found = read(folder)
    except BadInput:
        return
    assert found == documents  # The bit is in statistics or the like.


def test_a_file_that_changed_after_the_plan_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table(path, {"text": ["x"] * 10})
    step, _ = bound(tmp_path)
    table(path, {"text": ["x", "y"] * 10})
    with pytest.raises(BadInput, match=r"a\.parquet has changed: [\d,]+ bytes now, [\d,]+ when the plan was made"):
        list(step(None, 0, 1))


def test_a_file_replaced_by_one_of_the_same_size_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table(path, {"text": ["x"]})
    step, _ = bound(tmp_path)
    size = path.stat().st_size
    path.unlink()
    table(path, {"text": ["y"]})
    assert path.stat().st_size == size
    with pytest.raises(BadInput, match=r"a\.parquet, record 1: the file has been replaced or modified since the plan"):
        list(step(None, 0, 1))


def test_what_is_no_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b'{"text": "x"}\n' * 10)
    with pytest.raises(BadInput, match=r"a\.parquet, record 1: not a Parquet file"):
        read(tmp_path)


def test_a_row_group_is_not_read_into_memory_at_once(tmp_path: Path) -> None:
    schema = pa.schema([("text", pa.string()), ("id", pa.int64())])
    text = "".join(random.Random(1).choices("abcdefghijklmnop", k=4000))
    with pq.ParquetWriter(tmp_path / "a.parquet", schema, compression="none", use_dictionary=False) as writer:
        texts = [text[i % 3999 :] + text[: i % 3999] for i in range(50_000)]
        writer.write_table(pa.table({"text": texts, "id": list(range(len(texts)))}, schema), row_group_size=10**9)
    assert (tmp_path / "a.parquet").stat().st_size > 190e6
    code = (
        "import sys; from stagger import ReadParquet; from stagger.storage.storage import Storage\n"
        "from stagger.pipeline.task_context import TaskContext; import pyarrow.parquet\n"
        "def peak():\n"
        "    return next(int(l.split()[1]) // 1024 for l in open('/proc/self/status') if l.startswith('VmHWM'))\n"
        "before = peak(); step = ReadParquet(sys.argv[1])\n"
        "step.bind(TaskContext(Storage(), 0, 1, step.find_shards(Storage()), 'tag'))\n"
        "print(sum(1 for _ in step(None, 0, 1)), peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    count, grown = map(int, done.stdout.split())
    assert count == 50_000
    assert grown < 130


SCALARS = st.one_of(st.text(), st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(allow_nan=False))
JSON = st.recursive(
    st.one_of(st.none(), st.text(), st.integers(-(2**53), 2**53), st.booleans(), st.floats(-1e9, 1e9)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


@given(
    st.lists(
        st.tuples(
            st.text(), st.text(min_size=1), st.lists(JSON, max_size=2), st.dictionaries(st.text(), JSON, max_size=3)
        ),
        max_size=8,
    )
)
@settings(max_examples=100, deadline=None)
def test_json_metadata_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[str, str, list[Any], dict[str, Any]]]
) -> None:
    documents = [Document(*part) for part in parts]
    folder = tmp_path_factory.mktemp("parquet")
    if not documents or not write(folder, documents, metadata="json", row_group_bytes=300):
        return
    assert read(folder) == documents


OF_ONE_TYPE = st.fixed_dictionaries(
    {},
    optional={
        "s": st.text(),
        "i": st.integers(-(2**63), 2**63 - 1),
        "f": st.floats(allow_nan=False),
        "b": st.booleans(),
        "list": st.lists(st.text(), min_size=1),
        "object": st.dictionaries(st.text(), JSON),
        "nested": st.lists(st.dictionaries(st.text(), JSON), min_size=1),
        "none": st.none(),
    },
)


@given(st.lists(st.tuples(st.text(), st.text(min_size=1), OF_ONE_TYPE), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_columns_read_back_equal_and_what_lacks_is_none(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[str, str, dict[str, Any]]]
) -> None:
    documents = [Document(text, id_, [], metadata) for text, id_, metadata in parts]
    folder = tmp_path_factory.mktemp("parquet")
    (path,) = write(folder, documents)
    keys = dict.fromkeys(key for document in documents for key in document.metadata)
    expected = [Document(d.text, d.id, [], {key: d.metadata.get(key) for key in keys}) for d in documents]
    assert read(folder) == expected
    theirs = pq.read_table(path).to_pylist()
    assert [(row["text"], row["id"], row.get("s"), row.get("i")) for row in theirs] == [
        (d.text, d.id, d.metadata.get("s"), d.metadata.get("i")) for d in documents
    ]


def test_media_read_back_equal(tmp_path: Path) -> None:
    documents = [Document("x", "1", [{"url": "u"}, "s"]), Document("y", "2", [], {})]
    write(tmp_path, documents)
    assert read(tmp_path) == documents


@pytest.mark.parametrize(
    ("first", "later", "message"),
    [
        (
            {},
            {"new": "x"},
            r"doc-5 has 'new' \(str\), which is not a column of this file: .* as new: string, or use metadata",
        ),
        ({"a": 1}, {"a": "x"}, "The column 'a' holds int64, but the metadata of doc-5 has str there; .* a: json"),
        ({"a": 1}, {"a": 1.5}, "The column 'a' holds int64, but the metadata of doc-5 has float there"),
        ({"a": 1}, {"a": True}, "The column 'a' holds int64, but the metadata of doc-5 has bool there"),
        ({"a": "x"}, {"a": 1}, "The column 'a' holds string, but the metadata of doc-5 has int there"),
        ({"a": "x"}, {"a": {"b": 1}}, "The column 'a' holds string, but the metadata of doc-5 has an object or a list"),
        ({"a": None}, {"a": 1}, "The column 'a' holds string, but the metadata of doc-5 has int there"),
        (
            {"a": [1]},
            {"a": ["x"]},
            r"The column 'a' holds list<.*int64>, but the metadata of doc-5 has list there \(an",
        ),
        ({"a": 1}, {"a": 2**63}, "The column 'a' holds int64, but the metadata of doc-5 has int there"),
        ({"a": 1.5}, {"a": 2**60 + 1}, "The column 'a' holds double, but the metadata of doc-5 has int there"),
    ],
)
@pytest.mark.parametrize("row_group_bytes", [1, 10**9])
def test_what_does_not_fit_is_never_dropped(
    tmp_path: Path, first: dict[str, Any], later: dict[str, Any], message: str, row_group_bytes: int
) -> None:
    documents = [Document("x", f"doc-{i}", [], dict(later if i == 5 else first)) for i in range(8)]
    if row_group_bytes > 1 and (not first or first == {"a": None} or first == {"a": [1]} or "double" in message):
        return  # Then the first row group decides for both.
    if row_group_bytes > 1:
        message = message.replace("int64", "int").replace("string", "str")
    if row_group_bytes > 1 and later in ({"a": 1.5}, {"a": 2**63}):
        return
    with pytest.raises(StaggerError, match=message):
        write(tmp_path, documents, row_group_bytes=row_group_bytes)
    assert list(tmp_path.iterdir()) == []
    write(tmp_path, documents, row_group_bytes=row_group_bytes, metadata="json")
    assert read(tmp_path) == documents


def test_columns_with_given_types(tmp_path: Path) -> None:
    columns = {
        "n": "float64",
        "when": "timestamp",
        "day": "date32",
        "any": "json",
        "naive": "timestamp[ms]",
        "gone": "int8",
    }
    metadata: dict[str, Any] = {"n": 1, "when": "2024-05-06T07:08:09Z", "day": "2024-05-06", "any": "x"}
    later = {"n": 1.5, "when": datetime.datetime(2024, 5, 6), "any": [1, {"a": None}], "naive": "2024-05-06 07:08:09"}
    documents = [Document("x", "1", [], metadata), Document("y", "2", [], later)]
    (path,) = write(tmp_path, documents, columns=columns, row_group_bytes=1)
    schema = pq.read_schema(path)
    assert [str(type_) for type_ in schema.types] == [
        "string", "string", "double", "timestamp[us, tz=UTC]", "date32[day]", "string", "timestamp[ms]", "int8"
    ]  # fmt: skip
    assert [document.metadata for document in read(tmp_path)] == [
        {
            "n": 1.0,
            "when": "2024-05-06T07:08:09+00:00",
            "day": "2024-05-06",
            "any": "x",
            "naive": None,
            "gone": None,
        },
        {
            "n": 1.5,
            "when": "2024-05-06T00:00:00+00:00",
            "day": None,
            "any": [1, {"a": None}],
            "naive": "2024-05-06T07:08:09",
            "gone": None,
        },
    ]
    with pytest.raises(StaggerError, match=r"holds date32\[day\], but the metadata of 1 has str there \(Invalid"):
        write(tmp_path / "b", [Document("x", "1", [], {"day": "yesterday"})], columns=columns)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"a": "strin"}}, "columns: there is no type 'strin' for 'a'; valid are string, int64"),
        ({"columns": {"text": "string"}}, "columns contains 'text', which is the column of the text or the id"),
        ({"columns": {"a": "string"}, "metadata": "json"}, "metadata: json writes none"),
        ({"row_group_bytes": 0}, "row_group_bytes is 0"),
        (
            {"level": 3, "compression": "snappy"},
            "compression snappy has no level 3 in Parquet; valid levels: zstd 1 to 22",
        ),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(StaggerError, match=message):
        WriteParquet(str(tmp_path), **options)


@pytest.mark.parametrize("key", ["text", "id"])
def test_a_metadata_key_that_is_a_column_of_its_own(tmp_path: Path, key: str) -> None:
    with pytest.raises(StaggerError, match=f"The metadata of 1 has the key '{key}', which is a column of its own"):
        write(tmp_path, [Document("x", "1", [], {key: "y"})])
    with pytest.raises(StaggerError, match="The column 'text' cannot hold the value of document 2"):
        write(tmp_path, [Document("x", "1"), Document("\ud800", "2")])


@pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip", None])
def test_compression_and_checksums(tmp_path: Path, compression: Any) -> None:
    documents = [Document(row["text"], row["id"], [], {"n": row["n"]}) for row in words(2, 3000)]
    (path,) = write(tmp_path / "a", documents, compression=compression, row_group_bytes=50_000)
    (again,) = write(tmp_path / "b", documents, compression=compression, row_group_bytes=50_000)
    assert path.read_bytes() == again.read_bytes()
    metadata = pq.ParquetFile(path).metadata
    assert metadata.row_group(0).column(0).compression == (compression or "uncompressed").upper()
    assert metadata.num_row_groups > 5
    sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups - 1)]
    assert all(25_000 < size < 100_000 for size in sizes) or compression
    assert pq.read_table(path, page_checksum_verification=True).num_rows == 3000
    assert read(tmp_path / "a") == documents


def test_files_are_divided_by_size(tmp_path: Path) -> None:
    documents = [Document(row["text"], row["id"], [], {"n": row["n"]}) for row in words(3, 3000)]
    files = write(tmp_path, documents, max_bytes=30_000, compression=None)
    assert len(files) > 5
    assert [path.name for path in files][:2] == ["00000-00000.parquet", "00000-00001.parquet"]
    assert all(path.stat().st_size < 70_000 for path in files)
    assert read(tmp_path) == documents


def test_a_file_of_the_rank_stays_open_while_shards_end(tmp_path: Path) -> None:
    """Another writer makes the steps run once per shard; the file named after the rank stays open."""
    shards = [Shard("x/a.jsonl", 1), Shard("x/b.jsonl", 1)]
    task = TaskContext(Storage(), 4, 9, shards, "tag")
    whole = WriteParquet(str(tmp_path / "whole"))
    each = WriteParquet(str(tmp_path / "each"), "{stem}.parquet")
    for step in (whole, each):
        step.bind(task)
    documents = {shard.name: [Document(shard.name, f"{shard.name}/{i}") for i in range(3)] for shard in shards}
    for shard in task.shard_by_shard():
        each.begin_shard(shard)
        list(each(whole(documents[shard.name], 4, 9), 4, 9))
        for step in (whole, each):
            step.end_shard()
    assert not list((tmp_path / "whole").glob("[!.]*"))
    commit(task)
    assert [path.name for path in (tmp_path / "whole").iterdir()] == ["00004.parquet"]
    assert read(tmp_path / "whole") == [document for shard in shards for document in documents[shard.name]]
    for shard in shards:
        assert read(tmp_path / "each" / shard.name.replace(".jsonl", ".parquet")) == documents[shard.name]


def test_what_changes_after_it_was_written_is_written_as_it_was(tmp_path: Path) -> None:
    step = WriteParquet(str(tmp_path))
    task = TaskContext(Storage(), 0, 1, [], "tag")
    step.bind(task)
    for document in step([Document("x", "1", [{"a": 1}], {"k": 1, "l": ["a"], "o": {"b": 1}})], 0, 1):
        document.text = "changed"
        document.media[0]["a"] = document.metadata["k"] = 2
        document.metadata["l"].append("b")
        document.metadata["o"].clear()
    commit(task)
    assert read(tmp_path) == [Document("x", "1", [{"a": 1}], {"k": 1, "l": ["a"], "o": {"b": 1}})]


def test_a_failed_rank_leaves_nothing_and_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complaints: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    step = WriteParquet(str(tmp_path), row_group_bytes=1)
    task = TaskContext(Storage(), 0, 1, [], "tag")
    step.bind(task)
    assert next(step([Document("x", "1"), Document("y", "2")], 0, 1)).id == "1"
    task.abort()
    del step, task
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    assert not complaints


def test_pyarrow_is_asked_for_at_once_and_imported_late(tmp_path: Path) -> None:
    code = (
        "import sys; from stagger import ReadParquet, WriteParquet\n"
        "step = ReadParquet(sys.argv[1]); WriteParquet(sys.argv[1]); assert 'pyarrow' not in sys.modules\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'pyarrow' else find(name, *more)\n"
        "ReadParquet(sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "StaggerError: pyarrow is not installed here" in done.stderr
    assert "pip install 'stagger-slurm[parquet]'" in done.stderr


def test_a_row_that_is_larger_than_max_record_bytes_is_a_bad_record(tmp_path: Path) -> None:
    texts = ["small", "x" * 5000, "after it"]
    table(tmp_path / "a.parquet", {"text": texts, "kind": pa.array(["a", "b", "a"]).dictionary_encode()})
    step, task = bound(tmp_path, max_record_bytes=4000, on_bad_record="skip")
    assert [document.text for document in step(None, 0, 1)] == ["small", "after it"]
    assert task.bad_records == {"size": 1}
    with pytest.raises(BadInput, match=r"record 2: the row has 5,0\d\d bytes, more than max_record_bytes \(4000\)"):
        read(tmp_path, max_record_bytes=4000)


def test_integers_of_any_size_come_back_exactly_from_a_json_column(tmp_path: Path) -> None:
    big = 2**200 + 1
    write(tmp_path, [Document("a", "1", [], {"n": [big, {"m": -big}]})], columns={"n": "json"})
    (document,) = read(tmp_path)
    assert document.metadata == {"n": [big, {"m": -big}]}
