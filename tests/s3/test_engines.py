"""Both engines on a store that throttles, breaks off and loses responses: received data and requests made."""

from __future__ import annotations

import gc
import hashlib
import re
import warnings
import zlib
from functools import partial
from pathlib import Path

import pytest

from stagger.errors import BadInput, StaggerError, StorageError
from stagger.steps.listing import input_files
from stagger.storage import Output
from stagger.storage.s3.engine import Changed, Engine
from stagger.storage.s3.output import PART_BYTES, S3Output
from stagger.storage.s3.store import connect
from stagger.storage.storage import Storage
from stagger.task import Superseded
from tests.conftest import until
from tests.kit.s3_server import S3Server
from tests.s3.conftest import ENGINES, THREE_IN_TEN, credentials, put, some_bytes


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, s3: S3Server) -> Engine:
    return connect(request.param, {})


def quoted_md5(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def test_one_get_and_nothing_else_for_each_shard(storage: Storage, s3: S3Server) -> None:
    entry = put(storage, "s3://data/once/a", some_bytes(5 * 10**6))
    s3.reset()
    assert b"".join(storage.stream("s3://data/once/a", entry.size, entry.version)) == some_bytes(5 * 10**6)
    assert s3.stats()["requests"] == {"GetObject": 1}


def test_a_body_that_breaks_off_goes_on_from_there(storage: Storage, s3: S3Server) -> None:
    data = some_bytes(20 * 10**6)
    entry = put(storage, "s3://data/resume/a", data)
    s3.set_faults(p_truncate=0.6, only=["GET"], seed=1)
    s3.reset()
    assert b"".join(storage.stream("s3://data/resume/a", entry.size, entry.version)) == data
    ranges = [asked for kind, _, asked, _ in s3.log() if kind == "GetObject"]
    assert len(ranges) > 1
    starts = [int(asked.removeprefix("bytes=").partition("-")[0]) for asked in ranges if asked]
    assert starts == sorted(starts)
    assert starts[-1] > 0
    # Only an incomplete piece is requested again, not the bytes that arrived before it.
    assert s3.stats()["bytes_out"] <= len(data) + len(ranges) * 2**20
    assert sum(storage.retried()["requests"].values()) == len(ranges) - 1


def test_pieces_are_shorter_once_a_body_has_broken_off(s3: S3Server) -> None:
    """A body has to last for one piece, or nothing of it is kept. Pieces are no longer than needed on a slow store."""
    storage = Storage({"s3": {"engine": "obstore"}})
    data = some_bytes(2 * 10**6)
    entry = put(storage, "s3://data/breaks/a", data)

    def first_piece() -> int:
        s3.set_faults(bandwidth=20e6)
        pieces = list(storage.stream("s3://data/breaks/a", entry.size, entry.version))
        assert b"".join(pieces) == data
        return len(pieces[0])

    assert first_piece() >= 256 * 2**10
    s3.set_faults(p_truncate=0.6, only=["GET"], seed=1)
    assert b"".join(storage.stream("s3://data/breaks/a", entry.size, entry.version)) == data
    assert 64 * 2**10 <= first_piece() < 256 * 2**10


def test_an_object_that_was_replaced_is_noticed_though_it_is_as_long(storage: Storage, s3: S3Server) -> None:
    entry = put(storage, "s3://data/replaced/a", b"one" * 1000)
    put(storage, "s3://data/replaced/a", b"two" * 1000)
    with pytest.raises(BadInput, match="has been replaced since the plan was made"):
        list(storage.stream("s3://data/replaced/a", entry.size, entry.version))


def test_an_object_that_is_replaced_while_it_is_read_is_noticed(storage: Storage, s3: S3Server) -> None:
    put(storage, "s3://data/replaced/b", some_bytes(4 * 10**6))
    s3.set_faults(p_truncate=1.0, only=["GET"])
    pieces = storage.stream("s3://data/replaced/b", 4 * 10**6)  # As from a store that lists no versions.
    assert some_bytes(4 * 10**6).startswith(next(pieces))
    s3.set_faults()
    put(storage, "s3://data/replaced/b", bytes(4 * 10**6))
    with pytest.raises(BadInput, match="has been replaced"):
        list(pieces)


def test_everything_works_with_three_requests_in_ten_failing(storage: Storage, s3: S3Server) -> None:
    s3.set_faults(**THREE_IN_TEN, seed=2)
    names = [f"{number:04d}" for number in range(0, 2400, 2)]
    for name in names[:100]:
        storage.write(f"s3://data/hard/{name}", name.encode())
    s3.set_faults()
    for name in names[100:]:
        storage.write(f"s3://data/hard/{name}", name.encode())
    s3.set_faults(**THREE_IN_TEN, seed=3)
    assert [entry.name for entry in storage.list("s3://data/hard")] == names
    assert sorted(entry.name for entry in storage.walk("s3://data")) == sorted(
        {f"hard/{name}" for name in names} | {entry.name for entry in storage.walk("s3://data")}
    )
    assert storage.named("s3://data", "hard/001") == [f"hard/001{digit}" for digit in (0, 2, 4, 6, 8)]
    paths = [f"s3://data/hard/{name}" for name in [*names[:50], "none"]]
    assert storage.read_many(paths) == [*(name.encode() for name in names[:50]), None]
    assert storage.entry("s3://data/hard/0001") is None
    for name in names[:50]:
        storage.remove(f"s3://data/hard/{name}")
    assert len(storage.list("s3://data/hard")) == len(names) - 50


def test_of_two_that_create_one_wins_also_when_answers_are_lost(storage: Storage, s3: S3Server) -> None:
    s3.set_faults(p_reset_put=0.6, seed=4)
    for number in range(30):
        path = f"s3://data/locks/{id(storage)}-{number}"
        assert storage.create(path, b"me")
        assert not storage.create(path, b"you")
        assert storage.read(path) == b"me"


def test_an_object_that_was_in_the_way_may_be_gone_by_now(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner removes it between the refused PUT and the look whether it is ours, as with locks of two launches."""

    def refuse(*_: object, **__: object) -> str:
        raise FileExistsError

    monkeypatch.setattr("stagger.storage.s3.objects.Objects.put", refuse)
    assert not storage.create("s3://data/vanished", b"me")


def test_a_conditional_put_replaces_only_the_version_that_it_names(engine: Engine) -> None:
    first = engine.put("data", "conditional/a", b"one", create=True)
    assert first == quoted_md5(b"one")
    with pytest.raises(FileExistsError):
        engine.put("data", "conditional/a", b"two", create=True)
    second = engine.put("data", "conditional/a", b"two", match=first)
    assert second == quoted_md5(b"two")
    for data in (b"three", b"one"):
        with pytest.raises(Changed):
            engine.put("data", "conditional/a", data, match=first)
    with pytest.raises(Changed):
        engine.delete("data", "conditional/a", match=first)
    assert b"".join(engine.get("data", "conditional/a", 0, None, "").chunks) == b"two"
    engine.delete("data", "conditional/a", match=second)
    assert engine.head("data", "conditional/a") is None
    with pytest.raises(Changed):  # What was to be replaced is gone.
        engine.put("data", "conditional/a", b"three", match=second)
    with pytest.raises(FileNotFoundError):
        engine.put("no-such-bucket", "conditional/a", b"three")


@pytest.mark.parametrize("end", ["commit", "abort"])
def test_a_large_output_under_faults_is_whole_or_nothing(storage: Storage, s3: S3Server, end: str) -> None:
    s3.set_faults(**THREE_IN_TEN, seed=5)
    path = f"s3://out/large/{id(storage)}-{end}"
    announced: list[str] = []
    output = storage.output(path, "tag", announced.append)
    piece = some_bytes(7 * 10**6)
    for _ in range(12):
        output.write(piece)
    output.finish()
    assert storage.entry(path) is None
    if end == "commit":
        output.commit(lambda: None, "")
    else:
        output.abort()
    assert announced == [path]
    assert (storage.read(path) == piece * 12) if end == "commit" else storage.entry(path) is None
    storage.abort_uploads(path)  # One whose id was lost is left over: the end of the stage aborts it.
    assert s3.stats()["open_uploads"] == 0


def holds_one_part(output: Output) -> bool:
    return output.held == PART_BYTES


def test_parts_are_sent_while_the_writer_goes_on(
    storage: Storage, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first part hangs; the writer does not wait for it before several more are to be sent."""
    monkeypatch.setattr("stagger.storage.s3.parts.STOP_S", 0.1)
    piece = some_bytes(PART_BYTES)
    for end in ("commit", "abort"):
        path = f"s3://out/overlap/{id(storage)}-{end}"
        output = storage.output(path, "tag")
        s3.set_faults(hold=1, only=["UploadPart"])
        s3.reset()
        for _ in range(11):
            output.write(piece)
        until(partial(holds_one_part, output), "all parts but the first to be sent")
        assert s3.stats()["requests"]["UploadPart"] == 11
        assert s3.held() == 1
        if end == "commit":
            s3.release()
            output.finish()
            output.commit(lambda: None, "")
            assert storage.read(path) == piece * 11
            storage.remove(path)
        else:
            output.abort()
            s3.release()
            assert storage.entry(path) is None
            storage.abort_uploads(path)
        assert s3.stats()["open_uploads"] == 0


def test_connections_are_closed_with_the_storage(s3: S3Server) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        storage = Storage({"s3": {"engine": "obstore"}})
        assert not list(storage.walk(f"s3://data/nothing-{id(storage)}/"))
        assert s3.stats()["requests"]
        del storage
        gc.collect()
    assert [str(one.message) for one in found if "socket" in str(one.message)] == []


def test_a_small_output_is_one_put(storage: Storage, s3: S3Server) -> None:
    output = storage.output(f"s3://out/small-{id(storage)}", "tag")
    output.write(bytes(60 * 2**20))
    output.finish()
    s3.reset()
    output.commit(lambda: None, "")
    assert s3.stats()["requests"] == {"PutObject": 1}
    assert isinstance(output, S3Output)
    assert output.version == quoted_md5(bytes(60 * 2**20))


def test_many_finished_outputs_do_not_fill_the_memory(storage: Storage, s3: S3Server) -> None:
    outputs = []
    for number in range(5):
        output = storage.output(f"s3://out/many/{id(storage)}-{number}", "tag")
        output.write(bytes([number]) * 30 * 2**20)
        output.finish()
        outputs.append(output)
    assert s3.stats()["requests"]["CreateMultipartUpload"] == 3  # Two outputs fit into memory together.
    assert storage.list("s3://out/many") == []
    for output in outputs:
        output.commit(lambda: None, "")
    assert len(storage.list("s3://out/many")) == 5
    for entry in storage.list("s3://out/many"):
        storage.remove(f"s3://out/many/{entry.name}")


@pytest.mark.parametrize("engine", ENGINES)
def test_what_will_not_pass_is_asked_once_and_said_in_one_sentence(s3: S3Server, engine: str) -> None:
    storage = Storage({"s3": {"engine": engine}}, retry_s=0.2)
    storage.write("s3://data/denied/a", b"x")
    s3.set_faults(deny="denied/")
    s3.reset()
    with pytest.raises(StorageError, match=r"^s3://data/denied/a: the credentials may not do this: .*Access ?Denied"):
        storage.read("s3://data/denied/a")
    assert s3.stats()["requests"] == {"GetObject": 1}
    s3.set_faults(p_503=1.0)
    with pytest.raises(StorageError, match=r"reduce your request rate.*\(throttled; retries exhausted\)") as caught:
        storage.read("s3://data/denied/a")
    assert "\n" not in str(caught.value)
    # Only one layer retries: every request is one of its attempts.
    assert s3.stats()["requests"]["GetObject"] == 2 + storage.retried()["requests"]["throttled"]


def test_options_that_an_engine_does_not_have_are_named(s3: S3Server) -> None:
    for options, message in (
        ({"engine": "boto"}, "there is no engine 'boto'; valid engines: auto, obstore, s3fs"),
        (
            {"engine": "obstore", "s3_additional_kwargs": {}},
            "obstore does not take 's3_additional_kwargs'; it takes key",
        ),
    ):
        with pytest.raises(Exception, match=message):
            Storage({"s3": options}).read("s3://data/x")


@pytest.mark.parametrize("engine", ENGINES)
def test_credentials_and_endpoint_from_the_usual_files(
    s3: S3Server, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Storage().write("s3://data/files/a", b"content")
    for name in credentials(s3):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text("[other]\naws_access_key_id = k\naws_secret_access_key = s\n")
    (tmp_path / "config").write_text(f"[profile other]\nregion = eu-west-1\nendpoint_url = {s3.endpoint}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    s3.set_faults(require_auth=True)
    options = {"engine": engine, "profile": "other"}
    assert Storage({"s3": options}).read("s3://data/files/a") == b"content"


def test_a_revoked_upload_cannot_be_completed_any_more(storage: Storage, s3: S3Server) -> None:
    path = f"s3://out/revoked-{id(storage)}"
    output = storage.output(path, "tag")
    for _ in range(10):
        output.write(bytes(7 * 2**20))
    output.finish()
    storage.revoke(path, output.pending)

    def confirm() -> None:
        raise Superseded("a later attempt has the commit")

    with pytest.raises(Superseded):
        output.commit(confirm, "")
    output.abort()
    assert storage.entry(path) is None


def test_a_put_replaces_only_what_it_was_to_replace(storage: Storage) -> None:
    path = f"s3://out/conditional-{id(storage)}"
    late, first = (storage.output(path, "tag") for _ in range(2))
    first.write(b"first")
    late.write(b"late")
    first.commit(lambda: None, "")

    def confirm() -> None:
        raise Superseded("a later attempt has the commit")

    with pytest.raises(Superseded):
        late.commit(confirm, "")
    assert storage.read(path) == b"first"
    late.abort()
    later = storage.output(path, "tag")
    later.write(b"later")
    later.commit(lambda: None, None)  # It has the right, and knows that there may be something.
    assert storage.read(path) == b"later"
    first.withdraw()
    assert storage.read(path) == b"later"
    later.withdraw()
    assert storage.entry(path) is None


@pytest.mark.parametrize("recursive", [True, False])
def test_folder_markers_are_not_input_and_named(s3: S3Server, storage: Storage, recursive: bool) -> None:
    keys = Storage()  # The engine obstore cannot write a key that ends with a slash.
    for key in ("", "d/", "empty/", "d_$folder$", "e", "none.jsonl"):
        keys.write(f"s3://data/markers/{key}", b"")
    for key in ("a.jsonl", "d/b.jsonl", "e/c.jsonl", "e-f.jsonl"):
        keys.write(f"s3://data/markers/{key}", b'{"text": "x"}\n')
    files, left_out = input_files(storage, "s3://data/markers", "*", recursive=recursive)
    below = ["d/b.jsonl", "e/c.jsonl"] if recursive else []
    assert [entry.name for entry in files] == sorted(["a.jsonl", "e-f.jsonl", "none.jsonl", *below])
    markers = ["", "d/", "d_$folder$", "e", "empty/"] if recursive else ["", "d_$folder$", "e"]
    assert left_out.counts == {"folder markers": len(markers)}
    assert left_out.first["folder markers"] == markers[:3]


#: Keys that look like other paths -> whether obstore takes them.
ODD_KEYS = {
    "./a.jsonl": False,
    "../a.jsonl": False,
    "d/./a": False,
    "d//a": False,
    "/a.jsonl": False,
    " a.jsonl": True,
    "a.jsonl ": True,
}


@pytest.mark.parametrize("key", ODD_KEYS)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_key_that_looks_like_another_path_is_read_or_refused_by_its_name(s3: S3Server, engine: str, key: str) -> None:
    storage = Storage({"s3": {"engine": engine}})
    folder = f"s3://data/odd-{zlib.crc32(key.encode())}"
    Storage().write(f"{folder}/{key}", b"content")
    if engine == "obstore" and not ODD_KEYS[key]:
        with pytest.raises(StaggerError, match=re.escape(key)):
            input_files(storage, folder, "*", recursive=True)
        return
    (entry,), _ = input_files(storage, folder, "*", recursive=True)
    assert entry.name == key
    assert b"".join(storage.stream(f"{folder}/{key}", 7, entry.version)) == b"content"
