"""Codecs in threads: what comes out is what comes out without them, byte for byte and error for error."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagger.errors import Interrupted
from stagger.pipeline import Document, Shard
from stagger.pipeline.codec_threads import CompressionThread, DecompressedAhead
from stagger.pipeline.compression import QUEUE_BYTES, THREAD_BYTES, Codec, Content, ReadCodec, compressor
from stagger.pipeline.decompression import decompressed
from stagger.pipeline.task_context import Circumstances, StopFlag, TaskContext
from stagger.steps.jsonl import ReadJsonl, WriteJsonl
from stagger.storage.storage import Storage
from tests.pipeline.test_compression import pack

LINES = b"".join(b"line %d of a text that compresses\n" % number for number in range(50_000))


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def blocks(content: Content) -> tuple[list[tuple[bytes, int]], str]:
    """The blocks of a content, with the bytes of the file taken for each, and the error that ended it."""
    found: list[tuple[bytes, int]] = []
    try:
        while block := content.block():
            found.append((block, content.taken))
    except Exception as error:
        return found, f"{type(error).__name__}: {error}"
    return found, f"end after {content.taken}"


@pytest.mark.parametrize("codec", ["gzip", "zstd", "bz2", "xz"])
@settings(max_examples=15)
@given(cut=st.integers(0, 400), flipped=st.integers(0, 400), size=st.integers(1000, 50_000))
def test_a_shard_decompressed_ahead_has_the_same_blocks_and_the_same_error(
    codec: ReadCodec, cut: int, flipped: int, size: int
) -> None:
    """Whole, cut off, or damaged somewhere."""
    packed = bytearray(PACKED[codec])
    del packed[len(packed) - min(cut, len(packed) // 2) :]
    packed[-1 - flipped % len(packed)] ^= flipped % 2
    data = bytes(packed)
    plain = blocks(decompressed(pieces(data, size), codec))
    assert blocks(DecompressedAhead(decompressed(pieces(data, size), codec), lambda: None)) == plain


PACKED = {codec: pack(LINES[:200_000], codec) for codec in ("gzip", "zstd", "bz2", "xz")}


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
@settings(max_examples=15)
@given(sizes=st.lists(st.integers(0, 300_000), max_size=20))
def test_an_output_compressed_behind_has_the_same_bytes(codec: Codec, sizes: list[int]) -> None:
    thread = CompressionThread()
    plain, first = compressor(codec), thread.compressor(compressor(codec))
    second = thread.compressor(compressor(codec))
    made = {name: bytearray() for name in ("plain", "first", "second")}
    for size in sizes:
        for name, one in (("plain", plain), ("first", first), ("second", second)):
            made[name] += one.compress(LINES[:size])
    for name, one in (("plain", plain), ("first", first), ("second", second)):
        made[name] += one.flush()
    thread.stop()
    assert made["plain"] == made["first"] == made["second"]


class Run:
    """A task that reads a folder of JSON Lines, and writes it to another."""

    def __init__(self, source: Path, target: Path, cpus: int, stop: StopFlag | None = None, **options: Any) -> None:
        target.mkdir(exist_ok=True)
        storage = Storage()
        reader, self.writer = ReadJsonl(str(source)), WriteJsonl(path=str(target), **options)
        shards = reader.find_shards(storage)
        where = Circumstances(stop=stop or StopFlag())
        self.task = TaskContext(storage, 0, 1, shards, "tag", cpus=cpus, circumstances=where)
        reader.bind(self.task)
        self.writer.bind(self.task)
        self.documents: Iterator[Document] = self.writer(reader(None, 0, 1), 0, 1)

    def to_its_end(self) -> dict[str, bytes]:
        for _ in self.documents:
            pass
        for output in self.task.finish():
            output.commit(lambda: None, None)
        self.task.committed()
        self.task.close()
        folder = Path(self.writer.path)
        return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard that is large enough for a thread, and a small one."""
    folder = tmp_path_factory.mktemp("large")
    line = b'{"text": "%s", "id": "%d"}\n'
    (folder / "a.jsonl.gz").write_bytes(
        pack(b"".join(line % (os.urandom(500).hex().encode(), n) for n in range(3000)), "gzip")
    )
    (folder / "b.jsonl.zst").write_bytes(pack(line % (b"small", 1), "zstd"))
    assert (folder / "a.jsonl.gz").stat().st_size > THREAD_BYTES
    return folder


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}, {"max_bytes": 700_000}, {"compression": None}])
def test_a_task_with_threads_writes_the_same_bytes(tmp_path: Path, large: Path, options: dict[str, Any]) -> None:
    plain = Run(large, tmp_path / "plain", 1, **options).to_its_end()
    assert Run(large, tmp_path / "threads", 2, **options).to_its_end() == plain
    assert (len(plain) > 1) == ("max_bytes" in options)


def test_threads_begin_with_the_first_large_shard_and_output_and_end_with_the_task(tmp_path: Path, large: Path) -> None:
    def threads() -> set[threading.Thread]:
        return set(threading.enumerate())

    before, interval = threads(), sys.getswitchinterval()
    single = Run(large, tmp_path / "single", 1)
    next(single.documents)
    assert threads() == before
    double = Run(large, tmp_path / "double", 2)
    next(double.documents)
    (decompresses,) = threads() - before
    double.to_its_end()
    decompresses.join(10)
    assert not decompresses.is_alive()
    for left in threads() - before:  # The one that compressed.
        left.join(10)
        assert not left.is_alive()
    assert sys.getswitchinterval() == interval


def test_a_reader_that_stops_early_ends_the_thread(large: Path, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    run = Run(large, tmp_path / "out", 2)
    next(run.documents)
    (thread,) = set(threading.enumerate()) - before
    run.documents.close()  # type: ignore[attr-defined]
    run.task.abort()
    run.task.close()
    del run
    thread.join(10)
    assert not thread.is_alive()
    assert not list((tmp_path / "out").iterdir())


def test_a_task_that_waits_for_input_stops_when_it_is_asked_to() -> None:
    stop, waiting = StopFlag(), threading.Event()
    go_on = threading.Event()

    def slow() -> Iterator[bytes]:
        waiting.set()
        go_on.wait(30)
        yield b""

    content = DecompressedAhead(Content(slow()), stop.check)
    assert waiting.wait(10)
    stop.signal = SIGTERM
    with pytest.raises(Interrupted):
        content.block()
    go_on.set()


def test_no_more_than_the_queue_waits_in_memory() -> None:
    """In either direction, whatever the other side does."""
    taken = [0]

    def endless() -> Iterator[bytes]:
        while True:
            taken[0] += 2**16
            yield bytes(2**16)

    content = DecompressedAhead(Content(endless()), lambda: None)
    content.block()
    for _ in range(200):
        seen = taken[0]
        time.sleep(0.005)
        if seen == taken[0]:
            break
    assert taken[0] <= QUEUE_BYTES + 3 * 2**16
    content.close()

    gate = threading.Event()

    class Slow:
        def compress(self, data: bytes, /) -> bytes:
            gate.wait(30)
            return b""

        def flush(self) -> bytes:
            return b""

    thread = CompressionThread()
    behind = thread.compressor(Slow())
    put = threading.Thread(target=lambda: [behind.compress(bytes(2**16)) for _ in range(100)], daemon=True)
    put.start()
    while behind.behind < QUEUE_BYTES:
        time.sleep(0.001)
    assert behind.held <= QUEUE_BYTES + 2**16
    gate.set()
    put.join(30)
    assert behind.flush() == b""
    thread.stop()


def test_an_error_of_the_codec_is_raised_in_the_writer() -> None:
    class Broken:
        def compress(self, data: bytes, /) -> bytes:
            raise MemoryError("no room")

        def flush(self) -> bytes:
            return b""

    thread = CompressionThread()
    behind = thread.compressor(Broken())
    with suppress(MemoryError):
        behind.compress(b"a")
    with pytest.raises(MemoryError, match="no room"):
        behind.flush()
    thread.stop()


def test_output_that_waits_for_its_codec_leaves_less_room_for_input(large: Path, tmp_path: Path) -> None:
    one, two = (Run(large, tmp_path / str(cpus), cpus).task for cpus in (1, 2))
    assert two.decompresses_ahead(Shard("a", THREAD_BYTES))
    assert one._read_ahead_limit() - two._read_ahead_limit() == QUEUE_BYTES
    assert not two.decompresses_ahead(Shard("a", THREAD_BYTES - 1))
    assert not one.decompresses_ahead(Shard("a", 2**30))
    assert one._read_ahead_limit() == two._read_ahead_limit()
