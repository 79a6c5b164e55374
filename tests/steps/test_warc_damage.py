"""Damage in the middle of a compressed WARC file: passed over where the next record surely begins."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import fsspec
import pytest
import zstandard

from stagger import BadInput, ReadWarc
from stagger.pipeline.task_context import TaskContext
from stagger.storage.storage import Storage
from tests.steps.warc_files import PACKED, gzipped, ids, page, read

GOOD = [page(index, f"<p>page {index} {random.Random(index).random()}</p>".encode()) for index in range(8)]
SUFFIXES = list(PACKED)


def packed(suffix: str, *records: bytes) -> list[bytes]:
    return [PACKED[suffix](record) for record in records]


BAD_RECORDS = {
    "first line": GOOD[3].replace(b"WARC/1.0", b"ARC/1.0"),
    "beginning lost": GOOD[3][20:],
    "garbage": bytes(range(256)),
    "too small": page(3, b"<p>3", length=30),
    "too large": page(3, b"<p>3", length=200),
    "much too large": page(3, b"<p>3", length=2000),
    "beyond the file": page(3, b"<p>3", length=10**12),
    "no length": GOOD[3].replace(b"Content-Length", b"Content-Width"),
    "no number": GOOD[3].replace(b"Content-Length: ", b"Content-Length: x"),
    "header without end": GOOD[3][: GOOD[3].index(b"WARC-Date")],
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_bad_record_is_passed_over_if_each_record_is_compressed_by_itself(
    tmp_path: Path, name: str, suffix: str
) -> None:
    data = b"".join(packed(suffix, *GOOD[:3], BAD_RECORDS[name], *GOOD[4:]))
    documents, task = read(tmp_path, data, f"a{suffix}", on_bad_record="skip")
    assert ids(documents) == [0, 1, 2, 4, 5, 6, 7]
    assert task.bad_records == {"damaged": 1}
    assert task.bad_examples[0]["record"] == 4
    assert task.bad_examples[0]["byte"] == sum(map(len, GOOD[:3]))
    with pytest.raises(BadInput, match=r"record [45], byte"):
        read(tmp_path, data, f"a{suffix}")
    with pytest.raises(BadInput, match=r"more than max_bad_records \(0\)"):
        read(tmp_path, data, f"a{suffix}", on_bad_record="skip", max_bad_records=0)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("place", [0, 1, 10, 40, 100, -10, -3])
def test_a_damaged_member_is_passed_over(tmp_path: Path, suffix: str, place: int) -> None:
    members = packed(suffix, *GOOD)
    damaged = bytearray(members[3])
    damaged[place] ^= 0x55
    documents, task = read(
        tmp_path, b"".join([*members[:3], damaged, *members[4:]]), f"a{suffix}", on_bad_record="skip"
    )
    # A bit that changes nothing may be hit, but no other record is lost, and none is garbled.
    assert set(ids(documents)) | {3} == set(range(8))
    assert task.bad_records == ({} if 3 in ids(documents) else {"damaged": 1})
    assert all(
        document.text == f"<p>page {i} {random.Random(i).random()}</p>"
        for document in documents
        for i in ids([document])
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_with_damage_in_several_places(tmp_path: Path, suffix: str) -> None:
    members = packed(suffix, *GOOD)
    members[0] = bytes(30) + members[0][30:]
    members[2] = packed(suffix, GOOD[2][5:])[0]
    members[3] = packed(suffix, b"garbage")[0]
    members[5] = members[5][:60]
    documents, task = read(tmp_path, b"".join(members), f"a{suffix}", on_bad_record="skip", add_source=True)
    assert ids(documents) == [1, 4, 6, 7]
    assert task.bad_records == {"damaged": 3}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_records_left_out_before_and_after_damage_count_once(tmp_path: Path, suffix: str) -> None:
    request = page(9, kind="request")
    records = [request, GOOD[0], request, b"garbage", request, GOOD[1]]
    documents, task = read(tmp_path, b"".join(packed(suffix, *records)), f"a{suffix}", on_bad_record="skip")
    assert ids(documents) == [0, 1]
    assert (task.left_out, task.bad_records) == ({"record type request": 3}, {"damaged": 1})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_end_fails_even_if_bad_records_are_skipped(tmp_path: Path, suffix: str) -> None:
    members = packed(suffix, *GOOD[:3])
    data = b"".join(members)
    whole = {len(b"".join(members[:count])) for count in range(4)}
    for bad in (b"", PACKED[suffix](b"garbage")):
        for length in range(len(members[0]) + 1, len(data)):
            if length not in whole:
                with pytest.raises(BadInput, match=r"truncated|damaged|breaks off"):
                    read(tmp_path, bad + data[:length], f"a{suffix}", on_bad_record="skip")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_last_record_that_promises_more_than_the_file_holds_is_a_truncated_end(tmp_path: Path, suffix: str) -> None:
    data = b"".join(packed(suffix, *GOOD[:3], page(3, b"<p>3", length=500)))
    with pytest.raises(BadInput, match="truncated"):
        read(tmp_path, data, f"a{suffix}", on_bad_record="skip")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damage_fails_where_records_are_not_compressed_one_by_one(tmp_path: Path, suffix: str) -> None:
    together = [*GOOD[:3], GOOD[3][20:], *GOOD[4:]]
    for data in (
        packed(suffix, b"".join(together)),
        packed(suffix, *[b"".join(together)[start : start + 100] for start in range(0, 2000, 100)]),
        packed(suffix, b"".join(together[:2]), *together[2:]),
    ):
        with pytest.raises(BadInput, match="expected a record"):
            read(tmp_path, b"".join(data), f"a{suffix}", on_bad_record="skip")


def test_damage_in_a_plain_file_fails(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="expected a record"):
        read(tmp_path, b"".join([*GOOD[:3], GOOD[3][20:], *GOOD[4:]]), on_bad_record="skip")


def test_what_looks_like_a_record_within_a_page_is_none(tmp_path: Path) -> None:
    trap = page(3, b"<p>" + GOOD[7], length=60)
    data = b"".join(packed(".warc.gz", *GOOD[:3], trap, *GOOD[4:6]))
    assert ids(read(tmp_path, data, "a.warc.gz", on_bad_record="skip")[0]) == [0, 1, 2, 4, 5]


def test_padding_between_members_and_frames(tmp_path: Path) -> None:
    skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    members = packed(".warc.zst", *GOOD[:2], b"garbage", *GOOD[3:5])
    data = skippable + skippable.join(members) + skippable
    documents, task = read(tmp_path, data, "a.warc.zst", on_bad_record="skip")
    assert (ids(documents), task.bad_records) == ([0, 1, 3, 4], {"damaged": 1})


def test_a_record_of_several_members_is_read_after_damage_too(tmp_path: Path) -> None:
    halves = [gzipped(GOOD[4][:150]), gzipped(GOOD[4][150:])]
    data = b"".join([*packed(".warc.gz", GOOD[0], b"garbage"), *halves, gzipped(GOOD[5])])
    assert ids(read(tmp_path, data, "a.warc.gz", on_bad_record="skip")[0]) == [0, 4, 5]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_dictionary_in_the_first_frame(tmp_path: Path, compressed: bool) -> None:
    samples: list[bytes | bytearray | memoryview] = [
        page(index, f"<p>sample {index * 37}</p>".encode()) for index in range(3000)
    ]
    dictionary = zstandard.train_dictionary(4096, samples)
    stored = zstandard.compress(dictionary.as_bytes()) if compressed else dictionary.as_bytes()
    frame = b"\x5d\x2a\x4d\x18" + len(stored).to_bytes(4, "little") + stored
    compressor = zstandard.ZstdCompressor(dict_data=dictionary, write_checksum=True)
    frames = [compressor.compress(record) for record in GOOD]
    assert ids(read(tmp_path, frame + b"".join(frames), "a.warc.zst")[0]) == list(range(8))
    frames[3] = compressor.compress(b"garbage")
    documents, task = read(tmp_path, frame + b"".join(frames), "a.warc.zst", on_bad_record="skip")
    assert (ids(documents), task.bad_records) == ([0, 1, 2, 4, 5, 6, 7], {"damaged": 1})
    with pytest.raises(
        BadInput, match=r"the zstd dictionary \d+; dictionaries are not supported, except one in the first frame"
    ):
        read(tmp_path, b"".join(frames), "a.warc.zst")
    with pytest.raises(BadInput, match="dictionary in its first frame breaks off"):
        read(tmp_path, frame[:-5], "a.warc.zst")


def test_a_flipped_bit_loses_at_most_its_own_record(tmp_path: Path) -> None:
    data = b"".join(packed(".warc.gz", *GOOD))
    chosen = random.Random(5)
    for _ in range(150):
        flipped = bytearray(data)
        flipped[chosen.randrange(len(data) - len(gzip.compress(GOOD[7])))] ^= 1 << chosen.randrange(8)
        documents, task = read(tmp_path, bytes(flipped), "a.warc.gz", on_bad_record="skip")
        assert len(documents) + sum(task.bad_records.values()) == 8
        assert len(documents) >= 7


def test_a_remote_shard_is_fetched_a_second_time(tmp_path: Path) -> None:
    data = b"".join(packed(".warc.gz", *GOOD[:3], b"garbage", *GOOD[4:]))
    fsspec.filesystem("memory").pipe("/damaged/a.warc.gz", data)
    storage = Storage()
    step = ReadWarc("memory://damaged", on_bad_record="skip")
    task = TaskContext(storage, 0, 1, step.find_shards(storage), "tag")
    step.bind(task)
    try:
        assert ids(list(step(None, 0, 1))) == [0, 1, 2, 4, 5, 6, 7]
    finally:
        task.close()
