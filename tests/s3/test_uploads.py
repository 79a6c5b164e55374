"""Multipart uploads by own requests: their signatures are botocore's, and s3fs steps in where they are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from stagger.storage.faults import WrongAnswer, fault_of, status_of
from stagger.storage.s3 import plain_requests
from stagger.storage.s3.obstore_engine import ObstoreEngine
from stagger.storage.s3.output import PART_BYTES
from stagger.storage.s3.plain_requests import Answer
from stagger.storage.s3.signature import Keys, escaped, query_text, signed
from stagger.storage.s3.store import S3
from stagger.storage.storage import Storage
from tests.kit.s3_server import S3Server
from tests.s3.conftest import some_bytes

TIME = "20261129T174500Z"

#: What a key, an upload id or a token may hold.
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)


@given(key=TEXTS, upload=TEXTS, token=st.sampled_from(["", "a+/token=="]), part=st.integers(1, 10_000))
def test_signatures_are_those_of_botocore(key: str, upload: str, token: str, part: int) -> None:
    path, query = f"/bucket/{escaped(key, safe='/')}", {"partNumber": str(part), "uploadId": upload}
    keys = Keys("access", "secret/+", token)
    mine = signed("PUT", path, query, {"host": "store:9000"}, keys, "eu-west-1", TIME, "UNSIGNED-PAYLOAD")
    request = AWSRequest("PUT", f"https://store:9000{path}?{query_text(query)}", mine)
    del request.headers["authorization"]
    request.context["timestamp"] = TIME
    auth = S3SigV4Auth(Credentials(keys.access_key, keys.secret_key, token or None), "s3", "eu-west-1")
    text = auth.string_to_sign(request, auth.canonical_request(request))
    assert mine["authorization"].endswith(f"Signature={auth.signature(text, request)}")


def upload(storage: Storage, path: str, data: bytes) -> None:
    output = storage.output(path, "tag")
    output.write(data)
    output.finish()
    assert output.pending
    output.commit(lambda: None, "")


@pytest.fixture
def small_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagger.storage.s3.output.ONE_PUT_BYTES", 2**20)


def engine_of(storage: Storage) -> ObstoreEngine:
    backend = storage.backend("s3://out/x")
    assert isinstance(backend, S3)
    assert isinstance(backend._engine, ObstoreEngine)
    return backend._engine


@pytest.mark.parametrize("failing", [0.0, 0.4])
def test_an_upload_needs_no_s3fs(s3: S3Server, small_outputs: None, failing: float) -> None:
    storage = Storage({"s3": {"engine": "obstore"}})
    data = some_bytes(2 * PART_BYTES + 5)
    s3.set_faults(p_503=failing, seed=3)
    upload(storage, "s3://out/own/a b+é", data)
    s3.set_faults()
    assert storage.read("s3://out/own/a b+é") == data
    assert "s3fs" not in engine_of(storage).__dict__
    kinds = s3.stats()["requests"]
    assert kinds["CreateMultipartUpload"] >= 1
    assert kinds["UploadPart"] >= 3
    assert bool(storage.retried()["requests"]) == bool(failing)


@pytest.mark.parametrize("request_of", ["begin_upload", "put_part", "complete_upload", "abort_upload"])
def test_what_the_store_refuses_for_good_is_asked_by_s3fs(
    s3: S3Server, small_outputs: None, monkeypatch: pytest.MonkeyPatch, request_of: str
) -> None:
    def refuse(*_: object) -> str:
        raise Answer(400, b"<Error><Code>InvalidRequest</Code><Message>a header is missing</Message></Error>")

    monkeypatch.setattr(plain_requests.PlainRequests, request_of, refuse)
    storage = Storage({"s3": {"engine": "obstore"}})
    output = storage.output("s3://out/refused/a", "tag")
    output.write(some_bytes(2**21))
    output.finish()
    if request_of == "abort_upload":
        output.abort()
        assert not engine_of(storage).uploads("out", "refused/a")
        return
    output.commit(lambda: None, "")
    assert storage.read("s3://out/refused/a") == some_bytes(2**21)


def test_an_answer_is_explained_as_every_other() -> None:
    throttled = Answer(503, b"<Error><Code>SlowDown</Code><Message>Slower</Message></Error>")
    assert (fault_of(throttled), status_of(throttled), str(throttled)) == ("throttled", 503, "SlowDown: Slower")
    denied = Answer(403, b"")
    assert (fault_of(denied), status_of(denied), str(denied)) == (None, 403, "403: Forbidden")


def answering(body: bytes) -> Callable[..., tuple[bytes, dict[str, str]]]:
    return lambda *_: (body, {})


def test_an_error_in_an_answer_200_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 begins its answer before it has put the parts together."""
    place = plain_requests.Place("http://store", "r", lambda: Keys("a", "b"), {})
    monkeypatch.setattr(plain_requests.PlainRequests, "_ask", answering(b"<Error><Code>InternalError</Code></Error>"))
    with pytest.raises(Answer) as raised:
        plain_requests.PlainRequests(place).complete_upload("b", "k", "id", ['"etag"'])
    assert fault_of(raised.value) == "server error"
    with pytest.raises(WrongAnswer):
        plain_requests.PlainRequests(place).begin_upload("b", "k")


@pytest.mark.parametrize("name", ["AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "HTTP_PROXY"])
def test_where_obstore_may_find_the_store_in_another_way_s3fs_uploads(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert ObstoreEngine({})._plain is None


def test_keys_come_from_the_options_or_the_environment(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    assert ObstoreEngine({})._keys() == Keys("key", "the-secret", "token")
    assert ObstoreEngine({"key": "a", "secret": "b"})._keys() == Keys("a", "b", "")
