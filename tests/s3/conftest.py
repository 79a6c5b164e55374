"""Fixtures: an S3 server with faults, and both engines as its clients."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from stagger.storage import Entry
from stagger.storage.storage import Storage
from tests.kit.s3_server import S3Server, running

#: Three in ten requests fail: rejected, server error, reset before or within the body, or stored without a response.
THREE_IN_TEN = {"p_503": 0.08, "p_500": 0.04, "p_reset": 0.09, "p_truncate": 0.09, "p_reset_put": 0.18}

ENGINES = ("s3fs", "obstore")


@pytest.fixture(scope="session")
def server() -> Iterator[S3Server]:
    with running("--bucket", "data", "--bucket", "out") as started:
        yield started


@pytest.fixture
def s3(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server without faults, and credentials, which it does not check."""
    for name, value in credentials(server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("stagger.backoff.WAITS_S", [0.001])
    server.set_faults()
    server.reset()
    yield server
    server.set_faults()


def credentials(server: S3Server) -> dict[str, str]:
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "the-secret", "AWS_DEFAULT_REGION": "us-east-1"}
    return {**keys, "AWS_ENDPOINT_URL": server.endpoint}


@pytest.fixture(params=ENGINES)
def storage(request: pytest.FixtureRequest, s3: S3Server) -> Storage:
    return Storage({"s3": {"engine": request.param}})


def put(storage: Storage, path: str, data: bytes) -> Entry:
    storage.write(path, data)
    entry = storage.entry(path)
    assert entry is not None
    return entry


def some_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)
