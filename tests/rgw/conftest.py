"""Fixtures: one gateway for all tests of the session, a fresh bucket for each test, and both engines as its clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stagger.storage.s3.engine import Engine
from stagger.storage.s3.store import ENGINES, connect
from stagger.storage.storage import Storage
from tests.conftest import Bucket, Cli, fresh_bucket
from tests.conftest import missing as skip_without
from tests.rgw.gateway import missing, running


@pytest.fixture(scope="session")
def gateway() -> Iterator[str]:
    """The gateway's endpoint."""
    if absent := missing():
        skip_without(f"Ceph's object gateway ({', '.join(absent)})")
    with running() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(gateway: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A fresh bucket of the gateway; the environment holds its endpoint and credentials."""
    made = fresh_bucket(gateway)
    for name, value in made.env.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture(params=ENGINES)
def engine_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine(bucket: Bucket, engine_name: str) -> Engine:
    return connect(engine_name, {})


@pytest.fixture
def storage(bucket: Bucket, engine_name: str) -> Storage:
    return Storage({"s3": {"engine": engine_name}}, retry_s=30)


@pytest.fixture
def s3_cli(cli: Cli, bucket: Bucket) -> Cli:
    cli.env.update(bucket.env)
    return cli


def open_uploads(bucket: Bucket) -> list[str]:
    """The keys of the uploads that were neither completed nor aborted."""
    found = bucket.files.call_s3("list_multipart_uploads", Bucket=bucket.name).get("Uploads", ())
    return [upload["Key"] for upload in found]
