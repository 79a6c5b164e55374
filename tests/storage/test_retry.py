"""The retry policy: which errors are retried, for how long, and with which waits."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from signal import Signals

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError
from obstore.exceptions import GenericError, PermissionDeniedError
from s3fs.errors import translate_boto_error

from stagger.backoff import BASE_S, CAP_S, full_jitter
from stagger.errors import Interrupted, StaggerError
from stagger.storage.faults import BrokenOff, fault_of
from stagger.storage.retry import Retry, Trial


def answer(status: int, code: str) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": "said so"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject"
    )


def obstore_error(status: int, code: str) -> GenericError:
    text = f"Server returned non-2xx status code: {status} Reason: <Error><Code>{code}</Code></Error>"
    return GenericError(f"Generic S3 error: Error performing GET http://127.0.0.1:5030/b/503 in 9ms - {text}")


FAULTS: list[tuple[BaseException, str]] = [
    (answer(503, "SlowDown"), "throttled"),
    (answer(503, "ServiceUnavailable"), "throttled"),
    (answer(429, "429"), "throttled"),
    (answer(500, "InternalError"), "server error"),
    (answer(502, "502"), "server error"),
    (answer(507, "XMinioStorageFull"), "server error"),
    (answer(400, "RequestTimeout"), "time-out"),
    (answer(409, "ConditionalRequestConflict"), "conflict"),
    (answer(400, "BadDigest"), "damaged on the way"),
    (translate_boto_error(answer(503, "SlowDown")), "throttled"),
    (EndpointConnectionError(endpoint_url="http://x", error=ConnectionRefusedError()), "unreachable"),
    (EndpointConnectionError(endpoint_url="http://x", error=ConnectionResetError()), "reset"),
    (ReadTimeoutError(endpoint_url="http://x"), "time-out"),
    (ConnectionResetError(104, "reset by peer"), "reset"),
    (BrokenPipeError(), "reset"),
    (socket.gaierror(-2, "unknown"), "unreachable"),
    (asyncio.TimeoutError(), "time-out"),
    (asyncio.IncompleteReadError(b"", 5), "broken off"),
    (BrokenOff("5 bytes are missing"), "broken off"),
    (obstore_error(503, "SlowDown"), "throttled"),
    (obstore_error(500, "InternalError"), "server error"),
    (GenericError("HTTP error: error sending request Debug source: ConnectionReset"), "reset"),
    (GenericError("HTTP error: request or response body error: UnexpectedEof, error: IncompleteBody"), "broken off"),
]

ANSWERS: list[BaseException] = [
    answer(403, "AccessDenied"),
    answer(404, "NoSuchKey"),
    answer(501, "NotImplemented"),
    answer(505, "505"),
    answer(511, "511"),
    obstore_error(501, "NotImplemented"),
    obstore_error(505, "HTTPVersionNotSupported"),
    answer(404, "404"),
    answer(400, "InvalidRequest"),
    answer(412, "PreconditionFailed"),
    answer(416, "InvalidRange"),
    translate_boto_error(answer(403, "AccessDenied")),
    translate_boto_error(answer(404, "NoSuchKey")),
    NoCredentialsError(),
    obstore_error(403, "AccessDenied"),
    obstore_error(400, "InvalidRequest"),
    PermissionDeniedError("Server returned non-2xx status code: 403 Forbidden"),
    FileNotFoundError("gone"),
    ValueError("503"),
    StaggerError("no"),
]


@pytest.mark.parametrize(("error", "kind"), FAULTS)
def test_faults_that_may_pass_are_known(error: BaseException, kind: str) -> None:
    assert fault_of(error) == kind
    wrapped = RuntimeError("of a library")
    wrapped.__cause__ = error
    assert fault_of(wrapped) == kind


@pytest.mark.parametrize("error", ANSWERS)
def test_answers_that_will_stay_are_never_asked_for_again(error: Exception) -> None:
    calls: list[int] = []
    assert fault_of(error) is None
    with pytest.raises(type(error)):
        Retry().call("s3://b/k", failing(error, 99, calls))
    assert calls == [1]


def failing(error: Exception, times: int, calls: list[int]) -> Callable[[], str]:
    def ask() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return "answer"

    return ask


class Clock:
    """A clock that advances only during sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("stagger.storage.retry.time.monotonic", lambda: self.now)
        monkeypatch.setattr("stagger.storage.retry.time.sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 1e-6)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_what_failed_is_asked_again_and_accounted_for(clock: Clock) -> None:
    told: list[str] = []
    retry = Retry(tell=told.append)
    assert retry.call("s3://b/k", failing(answer(503, "SlowDown"), 5, [])) == "answer"
    assert retry.call("s3://b/k", failing(ConnectionResetError(), 2, [])) == "answer"
    account = retry.take_account()
    assert account["requests"] == {"throttled": 5, "reset": 2}
    assert account["waited_s"] == pytest.approx(clock.now - 1000, abs=0.01)
    assert len(told) == 7
    assert told[0].startswith("s3://b/k: throttled; retrying in ")
    assert retry.take_account() == {"requests": {}, "waited_s": 0.0}


def test_it_is_bounded_by_time_and_not_by_attempts(clock: Clock) -> None:
    calls: list[int] = []
    with pytest.raises(ClientError):
        Retry(600).call("s3://b/k", failing(answer(503, "SlowDown"), 10**9, calls))
    assert 600 - CAP_S <= clock.now - 1000 <= 600
    assert len(calls) > 30


def test_an_endpoint_that_cannot_be_reached_is_given_up_sooner(clock: Clock) -> None:
    with pytest.raises(ConnectionRefusedError):
        Retry(600, unreachable_s=10).call("s3://b/k", failing(ConnectionRefusedError(), 10**9, []))
    assert clock.now - 1000 <= 10


def test_the_wait_is_drawn_evenly_from_a_growing_range() -> None:
    retry = Retry()
    for failures, top in ((0, BASE_S), (3, BASE_S * 8), (50, CAP_S), (10**6, CAP_S)):
        draws = sorted(full_jitter(failures, retry.random) for _ in range(2000))
        assert 0 <= draws[0] < top / 20
        assert top * 0.95 < draws[-1] <= top
        assert draws[1000] == pytest.approx(top / 2, rel=0.15)


def test_progress_gives_the_whole_time_again(clock: Clock) -> None:
    trial = Trial(Retry(60), "s3://b/k")
    for _ in range(100):
        trial.failed(BrokenOff("5 bytes are missing"))
        trial.progressed()
        clock.now += 5
    since = clock.now
    with pytest.raises(BrokenOff):
        fail_for_ever(trial)
    assert clock.now - since <= 60


def fail_for_ever(trial: Trial) -> None:
    while True:
        trial.failed(BrokenOff("5 bytes are missing"))


def test_a_task_that_is_told_to_stop_does_not_wait(clock: Clock) -> None:
    def check() -> None:
        if clock.now > 1001:
            raise Interrupted(Signals.SIGTERM)

    with pytest.raises(Interrupted):
        Retry(check=check).call("s3://b/k", failing(answer(503, "SlowDown"), 10**9, []))
    assert clock.now < 1002
