"""Both engines on stores that answer falsely: an error or a retry, bounded, and never taken for done."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from stagger.errors import BadInput, StorageError
from stagger.storage.s3.output import S3Output
from stagger.storage.storage import Storage
from tests.kit.s3_server import S3Server
from tests.s3.conftest import ENGINES, put, some_bytes


@pytest.fixture(params=ENGINES)
def hasty(request: pytest.FixtureRequest, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """Storage that gives up soon, and sends large outputs in small parts."""
    monkeypatch.setattr("stagger.storage.s3.output.ONE_PUT_BYTES", 6 * 2**20)
    monkeypatch.setattr("stagger.storage.s3.output.PART_BYTES", 5 * 2**20)
    monkeypatch.setattr("stagger.storage.s3.pages.EMPTY_PAGES", 20)
    yield Storage({"s3": {"engine": request.param}}, retry_s=0.1)
    s3.set_faults()


def write(storage: Storage, path: str, data: bytes) -> S3Output:
    output = storage.output(path, "tag")
    output.write(data)
    output.finish()
    try:
        output.commit(lambda: None, "")
    except BaseException:
        output.abort()
        raise
    assert isinstance(output, S3Output)
    return output


SMALL = some_bytes(3000)
LARGE = some_bytes(13 * 2**20)


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ("list-twice", "names 'lists/a' twice"),
        ("list-loop", "names 'lists/a' twice"),
        ("list-loop-empty", "names the next page '0000000.' twice"),
        ("list-empty", "pages in a row are empty"),
        ("list-cut", "truncated, and the store names no token"),
        ("list-page", "is not a listing"),
        ("list-nothing", "is not a listing"),
        ("list-broken", "broken off|server error"),
    ],
)
@pytest.mark.parametrize("how", ["walk", "list"])
def test_a_false_listing_is_an_error(hasty: Storage, s3: S3Server, lie: str, said: str, how: str) -> None:
    for name in "abc":
        hasty.write(f"s3://data/lists/{name}", b"x")
    s3.set_faults(lie=lie)
    with pytest.raises(StorageError, match=said):
        list(getattr(hasty, how)("s3://data/lists"))
    s3.set_faults(lie=lie, lies=1)
    if lie in ("list-cut", "list-page", "list-nothing", "list-broken"):  # A false page is asked for again.
        assert [entry.name for entry in getattr(hasty, how)("s3://data/lists")] == ["a", "b", "c"]


def test_etags_without_quotes_in_a_listing_are_those_of_the_objects(hasty: Storage, s3: S3Server) -> None:
    entry = put(hasty, "s3://data/bare/a", SMALL)
    s3.set_faults(lie="list-bare")
    (listed,) = hasty.walk("s3://data/bare")
    assert listed.version == entry.version
    assert b"".join(hasty.stream("s3://data/bare/a", listed.size, listed.version)) == SMALL


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ("put-lost", "accepted the object, but does not have it|that of what was sent is"),
        ("put-page", "accepted the object, but does not have it|ETag Header missing"),
        ("put-short", "holds 2,990 bytes of the 3,000|that of what was sent is"),
        ("put-flipped", "was sent|that of what was sent is"),
        ("put-opaque-short", "holds 2,990 bytes of the 3,000"),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_an_object_that_the_store_does_not_keep_is_sent_again_or_fails(
    hasty: Storage, s3: S3Server, lie: str, said: str, known: bool
) -> None:
    """Known: the store has answered MD5s before."""
    if lie == "put-opaque-short" and known:
        said = "that of what was sent is"
    if known:
        hasty.write("s3://out/lies/before", b"x")
    s3.set_faults(lie=lie)
    with pytest.raises(StorageError, match=rf"s3://out/lies/a: .*({said}).*retries exhausted"):
        write(hasty, "s3://out/lies/a", SMALL)
    s3.set_faults()
    assert hasty.entry("s3://out/lies/a") is None  # Nobody takes what is left of it for data.
    s3.set_faults(lie=lie, lies=1)
    write(hasty, "s3://out/lies/a", SMALL)
    assert hasty.read("s3://out/lies/a") == SMALL
    assert hasty.retried()["requests"].keys() & {"not kept by the store", "wrong answer"}
    hasty.remove("s3://out/lies/a")


@pytest.mark.parametrize(
    ("lie", "first", "then"),
    [
        ("", {"PutObject": 1}, {"PutObject": 1}),
        ("put-capitals", {"PutObject": 1}, {"PutObject": 1}),
        ("put-named", {"PutObject": 1, "HeadObject": 1}, {"PutObject": 1, "HeadObject": 1}),
        ("put-opaque", {"PutObject": 1, "HeadObject": 1, "GetObject": 1}, {"PutObject": 1, "HeadObject": 1}),
    ],
)
def test_only_etags_that_are_no_md5s_cost_another_request(
    hasty: Storage, s3: S3Server, lie: str, first: dict[str, int], then: dict[str, int]
) -> None:
    s3.set_faults(lie=lie)
    for number, wanted in enumerate((first, then)):
        path = f"s3://out/etags/{id(hasty)}-{number}"
        s3.reset()
        output = write(hasty, path, SMALL)
        assert s3.stats()["requests"] == wanted
        entry = hasty.entry(path)
        assert entry is not None
        assert output.version == entry.version


def test_etags_of_objects_encrypted_with_keys_are_known_by_their_header(s3: S3Server) -> None:
    storage = Storage({"s3": {"engine": "s3fs"}})
    storage.write("s3://out/keys/before", b"x")
    s3.set_faults(lie="put-kms")
    s3.reset()
    write(storage, "s3://out/keys/a", SMALL)
    assert s3.stats()["requests"] == {"PutObject": 1, "HeadObject": 1}


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ("complete-empty", "does not have it"),
        ("complete-other", "does not have it"),
        ("complete-error", "server error"),
        ("part-short", "the MD5 of what was sent is"),
    ],
)
def test_an_upload_is_done_only_once_the_whole_object_is_there(
    hasty: Storage, s3: S3Server, lie: str, said: str
) -> None:
    hasty.write("s3://out/parts/before", b"x")
    if lie == "part-short":
        write(hasty, "s3://out/parts/whole", LARGE)
    s3.set_faults(lie=lie)
    with pytest.raises(StorageError, match=rf"s3://out/parts/a: .*{said}"):
        upload(hasty, "s3://out/parts/a")
    s3.set_faults()
    assert hasty.entry("s3://out/parts/a") is None
    s3.set_faults(lie=lie, lies=1)
    upload(hasty, "s3://out/parts/a")
    assert hasty.read("s3://out/parts/a") == LARGE
    hasty.remove("s3://out/parts/a")
    assert s3.stats()["open_uploads"] == 0


def upload(storage: Storage, path: str) -> None:
    output = storage.output(path, "tag")
    try:
        output.write(LARGE)
        output.finish()
        output.commit(lambda: None, "")
    except BaseException:
        output.abort()
        raise


def test_an_upload_with_an_etag_of_another_kind_is_checked_by_its_size(hasty: Storage, s3: S3Server) -> None:
    s3.set_faults(lie="complete-named")
    output = write(hasty, "s3://out/parts/named", LARGE)
    assert output.version == '"version-7"'


def test_an_earlier_object_of_the_same_size_is_not_taken_for_the_upload(hasty: Storage, s3: S3Server) -> None:
    write(hasty, "s3://out/parts/old", bytes(len(LARGE)))
    s3.set_faults(lie="complete-empty")
    with pytest.raises(StorageError, match="not kept by the store"):
        upload(hasty, "s3://out/parts/old")


@pytest.mark.parametrize("lie", ["get-range", "get-whole"])
def test_a_body_of_another_range_is_not_spliced_in(hasty: Storage, s3: S3Server, lie: str) -> None:
    data = some_bytes(2 * 10**6)
    entry = put(hasty, "s3://data/ranges/a", data)
    s3.set_faults(lie=lie, p_truncate=1.0, only=["GET"])
    received: list[bytes] = []
    with pytest.raises((StorageError, BadInput)):
        received.extend(hasty.stream("s3://data/ranges/a", entry.size, entry.version))
    assert data.startswith(b"".join(received))
    s3.set_faults(lie=lie)
    with pytest.raises(StorageError):
        hasty.read_range("s3://data/ranges/a", 1000, 2000)
    s3.set_faults(lie=lie, lies=1)
    assert b"".join(hasty.stream("s3://data/ranges/a", entry.size, entry.version)) == data


@pytest.mark.parametrize("lie", ["get-version", "get-longer", "get-page"])
@pytest.mark.parametrize("versioned", [True, False])
def test_a_body_that_is_not_the_planned_version_is_not_read(
    hasty: Storage, s3: S3Server, lie: str, versioned: bool
) -> None:
    entry = put(hasty, "s3://data/bodies/a", SMALL)
    if lie == "get-version" and not versioned:
        return  # Nothing shows that it is another one.
    s3.set_faults(lie=lie)
    with pytest.raises((StorageError, BadInput)):
        list(hasty.stream("s3://data/bodies/a", entry.size, entry.version if versioned else ""))
    s3.set_faults(lie=lie, lies=1)
    version = entry.version if versioned else ""
    if lie != "get-page":
        assert b"".join(hasty.stream("s3://data/bodies/a", entry.size, version)) == SMALL


def test_an_object_is_called_replaced_only_when_head_says_so(hasty: Storage, s3: S3Server) -> None:
    entry = put(hasty, "s3://data/mismatch/a", SMALL)
    s3.set_faults(lie="get-mismatch")
    assert b"".join(hasty.stream("s3://data/mismatch/a", entry.size, entry.version)) == SMALL
    hasty.write("s3://data/mismatch/a", bytes(len(SMALL)))
    with pytest.raises(BadInput, match="has been replaced"):
        list(hasty.stream("s3://data/mismatch/a", entry.size, entry.version))


def test_a_body_that_trickles_is_given_up(hasty: Storage, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagger.storage.s3.pace.PACE_S", -1.0)  # As if every piece had taken too long.
    entry = put(hasty, "s3://data/slow/a", SMALL)
    with pytest.raises(StorageError, match="too slow; retries exhausted"):
        list(hasty.stream("s3://data/slow/a", entry.size, entry.version))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_store_that_never_answers_is_given_up(s3: S3Server, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Storage().write("s3://data/silent/a", SMALL)
    monkeypatch.setattr("stagger.storage.s3.s3fs_engine.CONFIG", {"connect_timeout": 10, "read_timeout": 0.1})
    limits = {"connect_timeout": timedelta(seconds=10), "read_timeout": timedelta(seconds=0.1)}
    monkeypatch.setattr("stagger.storage.s3.obstore_engine.TIMEOUTS", limits)
    storage = Storage({"s3": {"engine": engine}}, retry_s=0.1)
    s3.set_faults(latency=3600)
    for ask in (lambda: storage.read("s3://data/silent/a"), lambda: storage.write("s3://data/silent/b", SMALL)):
        with pytest.raises(StorageError, match="retries exhausted"):
            ask()


@pytest.mark.parametrize("lie", ["no-create", "no-checksums"])
def test_what_a_store_does_not_implement_is_said_at_once_with_the_way_out(
    hasty: Storage, s3: S3Server, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.set_faults(lie=lie)
    if lie == "no-create":
        with pytest.raises(StorageError, match=r"NotImplemented.*conditional writes \(If-None-Match\).*Put run_dir"):
            hasty.create("s3://out/unknown/a", b"x")
    else:
        hasty.write("s3://out/unknown/a", b"x")  # Without checksum headers: this is not AWS.
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
        with pytest.raises(StorageError, match=r"NotImplemented.*AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
            Storage({"s3": {"engine": "s3fs"}}).write("s3://out/unknown/a", b"x")
    assert hasty.retried()["requests"] == {}
