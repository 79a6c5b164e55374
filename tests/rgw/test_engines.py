"""Both engines on RGW: conditional writes, listings, odd keys, multipart uploads, errors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from stagger.errors import BadInput, StorageError
from stagger.storage.s3.engine import PAGE_KEYS, Changed, Engine
from stagger.storage.s3.key_ranges import KeyRanges
from stagger.storage.storage import Storage
from tests.conftest import Bucket
from tests.rgw.conftest import open_uploads

pytestmark = pytest.mark.rgw

#: Characters that need an escape in a URL, in XML or in a signature.
ODD_KEYS = (
    "sp ace+%23#?é",
    "%41",
    "q\"'<>&",
    "back\\s",
    "*[]{}|^`~",
    "semi;a=b&c,d:e@f$g!",
    "日本/\U0001f600",
    "z" * 900,
)

#: Keys that obstore cannot write.
S3FS_KEYS = ("//lead", "a//b", "x/s3://data/other", "dot/./y", "up/../z", "tab\tx", "new\nline", "high\x7f")


def test_an_object_is_created_once(engine: Engine, bucket: Bucket) -> None:
    etag = engine.put(bucket.name, "lock", b"one", create=True)
    with pytest.raises(FileExistsError):
        engine.put(bucket.name, "lock", b"two", create=True)
    assert b"".join(engine.get(bucket.name, "lock", 0, None, etag).chunks) == b"one"
    engine.delete(bucket.name, "lock")
    engine.put(bucket.name, "lock", b"three", create=True)
    engine.put(bucket.name, "lock", b"four")
    assert b"".join(engine.get(bucket.name, "lock", 0, None, "").chunks) == b"four"


def test_of_many_that_create_at_once_one_wins(storage: Storage, bucket: Bucket) -> None:
    callers = 12
    together = Barrier(callers)

    def create(number: int) -> bool:
        together.wait()
        return storage.create(f"{bucket.url}/lock-{round_}", b"%d" % number)

    with ThreadPoolExecutor(callers) as threads:
        for round_ in range(4):
            won = list(threads.map(create, range(callers)))
            assert won.count(True) == 1
            assert storage.read(f"{bucket.url}/lock-{round_}") == b"%d" % won.index(True)


def test_a_version_that_was_replaced_is_neither_read_nor_replaced(engine: Engine, bucket: Bucket) -> None:
    old = engine.put(bucket.name, "a", b"one")
    now = engine.put(bucket.name, "a", b"two")
    assert now != old
    entry = engine.head(bucket.name, "a")
    assert entry is not None
    assert {now} == {entry.version} == set(engine.page(bucket.name, "", recursive=True, more="").versions)
    with pytest.raises(Changed):
        engine.get(bucket.name, "a", 0, None, old)
    with pytest.raises(Changed):
        engine.put(bucket.name, "a", b"three", match=old)
    with pytest.raises(Changed):
        engine.put(bucket.name, "gone", b"three", match=old)
    assert b"".join(engine.get(bucket.name, "a", 0, None, now).chunks) == b"two"


def test_an_input_that_was_replaced_is_said(storage: Storage, bucket: Bucket) -> None:
    path = f"{bucket.url}/shard"
    storage.write(path, b"one" * 1000)
    entry = storage.entry(path)
    assert entry is not None
    storage.write(path, b"two" * 1000)
    with pytest.raises(BadInput, match="has been replaced since the plan was made"):
        list(storage.stream(path, entry.size, entry.version))


def test_ranges_end_where_the_object_ends(engine: Engine, bucket: Bucket) -> None:
    engine.put(bucket.name, "a", b"0123456789")
    engine.put(bucket.name, "empty", b"")

    def content(key: str, start: int, end: int | None) -> bytes:
        return b"".join(engine.get(bucket.name, key, start, end, "").chunks)

    assert (content("a", 2, 5), content("a", 7, None), content("a", 8, 99)) == (b"234", b"789", b"89")
    assert content("a", 10, None) == content("a", 50, 60) == content("empty", 0, 10) == content("empty", 0, None) == b""


def test_a_folder_of_many_pages_is_listed_in_ranges(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("s3fs_engine", "plain_requests", "key_ranges"):
        monkeypatch.setattr(f"stagger.storage.s3.{place}.PAGE_KEYS", 10)
    divided: list[int] = []
    check = KeyRanges.check

    def counted(ranges: KeyRanges) -> None:
        divided.append(len(ranges.ranges))
        check(ranges)

    monkeypatch.setattr(KeyRanges, "check", counted)
    storage = Storage()
    names = [f"{number:05d}" for number in range(300)] + [f"d{number}/{part}" for number in range(30) for part in "ab"]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda name: storage.write(f"{bucket.url}/many/{name}", b"x"), names))
    assert [entry.name for entry in storage.walk(f"{bucket.url}/many")] == sorted(names)
    assert [entry.name for entry in storage.list(f"{bucket.url}/many")] == names[:300]
    assert len(divided) == 2  # Both listings were taken as they were read, in ranges.
    assert min(divided) > 3


def test_a_folder_of_more_keys_than_a_page_is_listed_whole(storage: Storage, bucket: Bucket) -> None:
    names = [f"{number:05d}" for number in range(PAGE_KEYS + 105)]
    paths = [f"{bucket.url}/many/{name}" for name in [*names, "below/a", "below/b"]]
    writer = Storage({"s3": {"engine": "obstore"}})
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda path: writer.write(path, b"x"), paths))
    assert [entry.name for entry in storage.list(f"{bucket.url}/many")] == names
    walked = list(storage.walk(bucket.url))
    assert sorted(entry.name for entry in walked) == sorted(path.removeprefix(f"{bucket.url}/") for path in paths)
    assert {(entry.size, entry.version == "") for entry in walked} == {(1, False)}
    assert storage.named(f"{bucket.url}/many", "0110") == [f"0110{digit}" for digit in range(5)]
    assert storage.list(f"{bucket.url}/none") == []


def test_odd_keys_are_written_listed_read_and_removed(storage: Storage, bucket: Bucket, engine_name: str) -> None:
    keys = [*ODD_KEYS, *(S3FS_KEYS if engine_name == "s3fs" else ())]
    paths = [f"{bucket.url}/odd/{key}" for key in keys]
    for path in paths:
        storage.write(path, path.encode())
    assert sorted(entry.name for entry in storage.walk(f"{bucket.url}/odd")) == sorted(keys)
    assert storage.read_many(paths) == [path.encode() for path in paths]
    for path in paths:
        storage.remove(path)
    assert list(storage.walk(f"{bucket.url}/odd")) == []


@pytest.mark.parametrize("end", ["complete", "abort"])
def test_an_upload_appears_whole_or_not_at_all(engine: Engine, bucket: Bucket, end: str) -> None:
    pieces = [bytes([1]) * 5 * 2**20, bytes([2]) * 10**6]
    upload = engine.begin_upload(bucket.name, "large")
    parts = [engine.put_part(bucket.name, "large", upload, number, piece) for number, piece in enumerate(pieces, 1)]
    assert engine.head(bucket.name, "large") is None
    assert open_uploads(bucket) == ["large"]
    if end == "complete":
        engine.complete_upload(bucket.name, "large", upload, parts)
        assert b"".join(engine.get(bucket.name, "large", 0, None, "").chunks) == b"".join(pieces)
    else:
        engine.abort_upload(bucket.name, "large", upload)
        assert engine.head(bucket.name, "large") is None
    assert open_uploads(bucket) == []


def test_uploads_of_a_dead_writer_are_aborted_and_others_are_not(
    engine: Engine, storage: Storage, bucket: Bucket
) -> None:
    for key in ("a", "a", "ab"):
        upload = engine.begin_upload(bucket.name, key)
        engine.put_part(bucket.name, key, upload, 1, b"part")
    assert storage.abort_uploads(f"{bucket.url}/a") == 2
    assert open_uploads(bucket) == ["ab"]
    assert storage.abort_uploads(f"{bucket.url}/a") == 0
    with pytest.raises(FileNotFoundError):
        engine.put_part(bucket.name, "a", "2~gone", 1, b"part")


def test_completing_an_upload_twice_is_no_error(engine: Engine, bucket: Bucket) -> None:
    """The answer of the first may have been lost."""
    upload = engine.begin_upload(bucket.name, "twice")
    parts = [engine.put_part(bucket.name, "twice", upload, 1, b"part")]
    for _ in range(2):
        engine.complete_upload(bucket.name, "twice", upload, parts)
    assert b"".join(engine.get(bucket.name, "twice", 0, None, "").chunks) == b"part"


def test_what_is_refused_is_asked_once_and_what_is_missing_is_no_error(bucket: Bucket, engine_name: str) -> None:
    options = {"s3": {"engine": engine_name, "secret": "wrong", "key": "key"}}
    storage = Storage(options, retry_s=60)
    with pytest.raises(StorageError, match=f"^{bucket.url}/a: .*SignatureDoesNotMatch") as caught:
        storage.read(f"{bucket.url}/a")
    assert "\n" not in str(caught.value)
    assert storage.retried()["requests"] == {}
    good = Storage({"s3": {"engine": engine_name}})
    with pytest.raises(FileNotFoundError):
        good.read(f"{bucket.url}/missing")
    assert good.read_many([f"{bucket.url}/missing"]) == [None]
    assert good.entry(f"{bucket.url}/missing") is None
    good.remove(f"{bucket.url}/missing")
