"""Records longer than max_record_bytes: bad records, passed over in bounded memory, while signals are heeded."""

from __future__ import annotations

import csv
import gzip
import io
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from stagger import BadInput, ReadCsv, ReadJsonl, ReadText, StaggerError
from stagger.errors import Interrupted
from stagger.pipeline.task_context import Circumstances, StopFlag, TaskContext
from stagger.steps.reader import ShardReader
from stagger.storage.storage import Storage


def bound(step: ShardReader, stop: StopFlag | None = None) -> TaskContext:
    circumstances = Circumstances(stop=stop or StopFlag())
    task = TaskContext(Storage(), 0, 1, step.find_shards(Storage()), "tag", circumstances=circumstances)
    step.bind(task)
    return task


def texts(step: ShardReader) -> list[str]:
    return [document.text for document in step(None, 0, 1)]


def places(task: TaskContext) -> list[tuple[int, int, str]]:
    return [(example["record"], example["byte"], example["kind"]) for example in task.bad_examples]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("length", [101, 5000, 1_000_000])
def test_a_line_that_is_too_long_is_one_bad_record(tmp_path: Path, suffix: str, length: int) -> None:
    data = b'{"text": "a"}\n' + b'{"text": "%s"}\n' % (b"x" * (length - 13)) + b'{"text": "b"}\n'
    packed = {"": data, ".gz": gzip.compress(data), ".zst": zstandard.compress(data)}[suffix]
    (tmp_path / f"a.jsonl{suffix}").write_bytes(packed)
    step = ReadJsonl(str(tmp_path), max_record_bytes=100)
    bound(step)
    with pytest.raises(BadInput, match=r"record 2, byte 14: the line is longer than max_record_bytes \(100\)"):
        texts(step)
    step = ReadJsonl(str(tmp_path), max_record_bytes=100, on_bad_record="skip")
    task = bound(step)
    assert texts(step) == ["a", "b"]
    assert places(task) == [(2, 14, "size")]


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(st.integers(0, 60), max_size=30), limit=st.integers(4, 50), end=st.sampled_from([b"", b"\n"]))
def test_the_limit_is_exact(tmp_path_factory: pytest.TempPathFactory, lines: list[int], limit: int, end: bytes) -> None:
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_bytes(b"\n".join(b"x" * length for length in lines) + end)
    step = ReadText(str(folder), max_record_bytes=limit, on_bad_record="skip", allow_empty=True)
    task = bound(step)
    sizes = [length + 1 for length in lines[:-1]] + [length + len(end) for length in lines[-1:]]
    assert [len(text) for text in texts(step)] == [
        length for length, size in zip(lines, sizes, strict=True) if size <= limit and length
    ]
    assert task.bad_records.get("size", 0) == sum(size > limit for size in sizes)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(st.text('a",\n', max_size=60), st.text("b\n", max_size=9)), max_size=12))
def test_a_csv_record_that_is_too_long_ends_where_its_quotes_do(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    def encoded(*rows: tuple[str, str]) -> bytes:
        out = io.StringIO(newline="")
        csv.writer(out, lineterminator="\n").writerows(rows)
        return out.getvalue().encode()

    folder = tmp_path_factory.mktemp("csv")
    (folder / "a.csv").write_bytes(encoded(("text", "n"), *rows))
    step = ReadCsv(str(folder), max_record_bytes=40, on_bad_record="skip")
    task = bound(step)
    assert texts(step) == [row[0] for row in rows if len(encoded(row)) <= 40]
    assert task.bad_records.get("size", 0) == sum(len(encoded(row)) > 40 for row in rows)


def test_a_csv_record_whose_quotes_never_end_fails_the_rank(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'text,n\na,1\n"b' + b"x\n" * 1000)
    step = ReadCsv(str(tmp_path), max_record_bytes=100, on_bad_record="skip")
    bound(step)
    with pytest.raises(BadInput, match=r"record 2, byte 11: .*quoted field is not closed"):
        texts(step)


def test_a_text_file_that_is_too_long_is_one_bad_record(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x\n" * 1000)
    (tmp_path / "b.txt").write_bytes(b"fits")
    step = ReadText(str(tmp_path), document="file", max_record_bytes=1999, on_bad_record="skip")
    task = bound(step)
    assert texts(step) == ["fits"]
    assert places(task) == [(1, 0, "size")]


def test_the_limit_is_a_size() -> None:
    with pytest.raises(StaggerError, match="max_record_bytes is 0; give a size in bytes, at least 1"):
        ReadJsonl("in", max_record_bytes=0)


LIMIT = 32 * 2**20


def zeros(blocks: int, before: bytes = b"") -> bytes:
    """A zstd frame of `before` in blocks as they are, and then of blocks of 128 KiB of `x` in 4 bytes each."""
    head = [before[start : start + 2**17] for start in range(0, len(before), 2**17)]
    plain = b"".join((len(part) << 3).to_bytes(3, "little") + part for part in head)
    repeated = b"".join((2**17 << 3 | 2 | (n == blocks - 1)).to_bytes(3, "little") + b"x" for n in range(blocks))
    return b"\x28\xb5\x2f\xfd\x00" + bytes([(20 - 10) << 3]) + plain + repeated


@pytest.mark.parametrize(
    ("name", "step"), [("a.jsonl", "ReadJsonl"), ("a.csv", "ReadCsv"), ("a.txt", "ReadText"), ("all.txt", "ReadText")]
)
def test_kilobytes_that_expand_to_gigabytes_take_bounded_memory(tmp_path: Path, name: str, step: str) -> None:
    """A task reads 2 GiB without a line end in 64 KB, after some that does not compress, in a process of its own."""
    noise = random.Random(1).randbytes(2**19).replace(b"\n", b"").replace(b'"', b"").hex().encode()
    (tmp_path / f"{name}.zst").write_bytes(zeros(2**14, before=b"text,n\n" + noise))
    options = {"document": "file"} if name == "all.txt" else {"columns": ["text", "n"]} if name == "a.csv" else {}
    code = (
        "import stagger, sys; from tests.steps.test_max_record_bytes import bound, texts\n"
        "from stagger.task.own_process import peak_rss_mb\n"
        f"step = stagger.{step}(sys.argv[1], max_record_bytes={LIMIT}, on_bad_record='skip', **{options})\n"
        "bound(step); before = peak_rss_mb(); found = texts(step); print(len(found), peak_rss_mb() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(done.stdout.split()[1]) < 150


STOPPED: dict[str, tuple[Any, bytes]] = {
    "empty lines": (ReadJsonl, b'{"text": "a"}\n' + b"\n" * 10**6),
    "bad records": (ReadJsonl, b'{"text": "a"}\n' + b"?\n" * 10**6),
    "a long line": (ReadJsonl, b'{"text": "a"}\n' + b"x" * 10**7 + b"\n"),
    "empty lines of text": (ReadText, b"a\n" + b"\n" * 10**6),
    "empty rows": (ReadCsv, b"text\na\n" + b"\n" * 10**6),
}


@pytest.mark.parametrize("case", STOPPED)
def test_a_signal_is_heeded_while_records_are_skipped(tmp_path: Path, case: str) -> None:
    reader, data = STOPPED[case]
    (tmp_path / "a").write_bytes(data)
    step = reader(str(tmp_path), max_record_bytes=10**6, on_bad_record="skip", max_bad_records=10**9)
    stop = StopFlag()
    bound(step, stop)
    documents = step(None, 0, 1)
    assert next(documents).text == "a"
    stop.signal = signal.SIGTERM
    with pytest.raises(Interrupted):
        next(documents)
