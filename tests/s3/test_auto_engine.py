"""The default engine: obstore where it can serve this user's options, environment and keys, and s3fs where not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from stagger.errors import StaggerError
from stagger.storage.s3.auto_engine import AutoEngine
from stagger.storage.s3.s3fs_engine import S3fsEngine
from stagger.storage.s3.store import S3
from stagger.storage.storage import Storage
from tests.kit.s3_server import S3Server
from tests.s3.conftest import credentials, put


@pytest.fixture(autouse=True)
def clean(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No AWS files, no proxy, no certificates: whatever this machine has."""
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def engine_of(options: dict[str, Any] | None = None) -> Any:
    backend = Storage({"s3": options or {}}).backend("s3://data/x")
    assert isinstance(backend, S3)
    return backend._engine


def test_obstore_serves_what_it_can(s3: S3Server) -> None:
    assert isinstance(engine_of(), AutoEngine)
    assert isinstance(engine_of({"key": "k", "secret": "s", "client_kwargs": {"region_name": "r"}}), AutoEngine)
    storage = Storage()
    entry = put(storage, "s3://data/auto/a", b"content")
    assert b"".join(storage.stream("s3://data/auto/a", 7, entry.version)) == b"content"
    assert [each.name for each in storage.list("s3://data/auto")] == ["a"]
    assert isinstance(engine_of({"engine": "auto"}), AutoEngine)
    assert storage.libraries() == {"s3": "obstore"}


@pytest.mark.parametrize(
    ("environment", "options", "why"),
    [
        ({"AWS_ENDPOINT_URL": "https://store", "AWS_CA_BUNDLE": "/etc/ssl/my.pem"}, {}, "AWS_CA_BUNDLE"),
        ({"AWS_ENDPOINT_URL": "https://store", "HTTPS_PROXY": "http://proxy:3128"}, {}, "HTTPS_PROXY"),
        ({"HTTP_PROXY": "http://proxy:3128"}, {}, "HTTP_PROXY"),
        ({"AWS_USE_FIPS_ENDPOINT": "true"}, {}, "AWS_USE_FIPS_ENDPOINT"),
        (
            {},
            {"s3_additional_kwargs": {"ServerSideEncryption": "AES256"}},
            "storage_options of s3: the engine obstore does not take 's3_additional_kwargs'",
        ),
        (
            {},
            {"config_kwargs": {"s3": {"addressing_style": "virtual"}}},
            "storage_options of s3: the engine obstore does not take 'config_kwargs'",
        ),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, {}, "no credentials"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, {}, "Partial credentials"),
    ],
)
def test_s3fs_serves_what_only_it_can(
    environment: dict[str, str], options: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert isinstance(engine_of(options), S3fsEngine)
    assert engine_of(options).name.startswith(f"s3fs, as obstore cannot serve this: {why}")


@pytest.mark.parametrize(
    ("settings", "engine"),
    [
        ("region = eu-west-1\noutput = json\n", AutoEngine),
        ("s3 =\n  addressing_style = virtual\n", S3fsEngine),
        ("ca_bundle = /etc/ssl/my.pem\n", S3fsEngine),
    ],
)
def test_settings_in_the_aws_files_are_heeded(tmp_path: Path, settings: str, engine: type) -> None:
    (tmp_path / "config").write_text(f"[default]\n{settings}")
    assert isinstance(engine_of(), engine)


def test_endpoint_and_credentials_come_from_the_files(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Storage().write("s3://data/files/b", b"content")
    (tmp_path / "config").write_text(f"[default]\nendpoint_url = {s3.endpoint}\nregion = eu-west-1\n")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert Storage().read("s3://data/files/b") == b"content"  # Keys of the environment, endpoint of the file.
    for name in credentials(s3):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "keys.json").write_text('{"Version": 1, "AccessKeyId": "k", "SecretAccessKey": "s"}')
    with (tmp_path / "config").open("a") as file:
        file.write(f"credential_process = cat {tmp_path}/keys.json\n")
    s3.set_faults(require_auth=True)
    assert isinstance(engine_of(), AutoEngine)
    assert Storage().read("s3://data/files/b") == b"content"
    (tmp_path / "keys.json").unlink()
    with pytest.raises(StaggerError, match="CredentialRetrievalError"):  # As s3fs reports it.
        engine_of()


def test_without_obstore_s3fs_serves_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    for name in ("auto_engine", "obstore_engine"):
        monkeypatch.delitem(sys.modules, f"stagger.storage.s3.{name}")
    assert isinstance(engine_of(), S3fsEngine)


def test_keys_that_obstore_cannot_represent_are_served_by_s3fs(s3: S3Server) -> None:
    storage = Storage()
    for key in ("odd//a", "odd/../b", "odd/./c"):
        entry = put(storage, f"s3://data/{key}", key.encode())
        assert b"".join(storage.stream(f"s3://data/{key}", entry.size, entry.version)) == key.encode()
    assert sorted(each.name for each in storage.walk("s3://data/odd")) == ["../b", "./c", "/a"]
    for key in ("odd//a", "odd/../b", "odd/./c"):  # Other tests list the bucket with obstore.
        storage.remove(f"s3://data/{key}")


def test_a_bucket_that_obstore_fails_on_for_good_is_served_by_s3fs(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a bucket of another region does: botocore follows the redirection, obstore does not."""
    storage = Storage()
    storage.write("s3://data/moved/a", b"content")
    storage = Storage()
    engine = storage.backend("s3://data/x")._engine  # type: ignore[attr-defined]
    asked: list[str] = []

    def moved(*request: Any, **more: Any) -> Any:
        asked.append("obstore")
        raise ValueError("301 PermanentRedirect")

    monkeypatch.setattr(engine._fast, "get", moved)
    monkeypatch.setattr(engine._fast, "put", moved)
    assert storage.read("s3://data/moved/a") == b"content"
    assert storage.create("s3://data/moved/b", b"new")
    assert not storage.create("s3://data/moved/b", b"other")
    assert asked == ["obstore"]
