"""A run on S3 is reached without its storage options being typed again, and what is wrong is one sentence."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from stagger.cli.open_run import UNKNOWN, open_run
from stagger.errors import StaggerError
from stagger.launch.launch import launch
from stagger.rundir import remembered
from stagger.spec.load import load_file
from stagger.storage.s3.refusals import MEANINGS, meaning
from tests.conftest import PipelineFiles
from tests.kit.s3_server import S3Server


@pytest.fixture
def state(tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what is remembered, in a shell that knows the keys, but nothing of AWS."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MY_KEY", "key-of-mine")
    monkeypatch.setenv("MY_SECRET", "secret-of-mine")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("stagger.rundir.run_folder.UNREACHABLE_S", 0.1)
    server.set_faults()
    return tmp_path / "state" / "stagger" / "runs"


def options_of(server: S3Server, **more: Any) -> dict[str, Any]:
    return {"s3": {"endpoint_url": server.endpoint, "key": "${MY_KEY}", "secret": "${MY_SECRET}", **more}}


def launched(files: PipelineFiles, server: S3Server, name: str) -> tuple[Path, str]:
    """Launch a run whose records are in the bucket. Returns its pipeline file and run directory."""
    run_dir = f"s3://data/{name}"
    file = files(run_dir=run_dir, tasks=2, storage_options=options_of(server))
    launch(load_file(str(file)))
    return file, run_dir


def test_a_launched_run_is_opened_by_its_path_alone_and_no_secret_is_kept(
    state: Path, server: S3Server, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    _, run_dir = launched(pipeline_file, server, "opened")
    for written in (run_dir, f"{run_dir}/"):
        assert open_run(written, None)[1].spec.name == "run"
    (file,) = state.iterdir()
    assert json.loads(file.read_text()) == {"run_dir": run_dir, "storage_options": options_of(server)}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "of-mine" not in file.read_text()
    assert remembered.recalled("s3://data/another") == {}
    file.rename(remembered.remembered_file("s3://data/another"))  # Another run's file.
    assert remembered.recalled("s3://data/another") == {}


def test_the_pipeline_file_the_profile_or_what_was_typed_once_serve_as_well(
    state: Path, server: S3Server, pipeline_file: PipelineFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, run_dir = launched(pipeline_file, server, "served")
    (kept,) = state.iterdir()
    kept.unlink()
    with pytest.raises(StaggerError, match="no credentials were found") as error:
        open_run(run_dir, None)
    assert str(error.value).endswith(UNKNOWN)
    assert open_run(str(file), None)[0].path == run_dir
    kept.unlink()
    config = tmp_path / "site.yaml"
    config.write_text(yaml.safe_dump({"default": "us", "profiles": {"us": {"storage_options": options_of(server)}}}))
    monkeypatch.setenv("STAGGER_CONFIG", str(config))
    assert open_run(run_dir, None)[0].path == run_dir
    config.write_text("profiles: 3")
    with pytest.raises(StaggerError, match="no credentials were found"):  # A damaged profile is no error of its own.
        open_run(run_dir, None)
    monkeypatch.delenv("STAGGER_CONFIG")
    open_run(run_dir, json.dumps(options_of(server)))
    assert open_run(run_dir, None)[0].path == run_dir


def test_a_file_that_is_damaged_foreign_or_unwritable_breaks_nothing(
    state: Path, server: S3Server, pipeline_file: PipelineFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run_dir = launched(pipeline_file, server, "damaged")
    (file,) = state.iterdir()
    good = file.read_bytes()
    for bad in (b"", b"{", b"[]", b'{"run_dir": 3}', good.replace(b'"s3": {', b'"s3": [{', 1), b" " * 70_000 + good):
        file.write_bytes(bad)
        assert remembered.recalled(run_dir) == {}
    file.write_bytes(good)
    file.chmod(0o666)
    assert remembered.recalled(run_dir) == {}
    file.chmod(0o600)
    os.chown(file, 12345, -1) if os.geteuid() == 0 else file.unlink()
    assert remembered.recalled(run_dir) == {}
    file.unlink(missing_ok=True)
    file.symlink_to(state.parent / "elsewhere")
    assert remembered.recalled(run_dir) == {}
    file.unlink()
    state.rmdir()
    state.write_text("a file where the folder should be")
    launched(pipeline_file, server, "damaged")
    assert remembered.recalled(run_dir) == {}


def test_only_so_many_runs_are_remembered_and_nothing_large(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "MOST_FILES", 3)
    for number in range(5):
        remembered.remember(f"s3://data/{number}", {"s3": {"anon": True}})
        os.utime(remembered.remembered_file(f"s3://data/{number}"), (number, number))
    assert [bool(remembered.recalled(f"s3://data/{number}")) for number in range(5)] == [False] * 2 + [True] * 3
    remembered.remember("s3://data/large", {"s3": {"x": "y" * 70_000}})
    remembered.remember("s3://data/secret", {"s3": {"secret": "wJalrXUtnFEMI/K7MDENG/bPxRfiCY"}})
    remembered.remember("/a/local/run", {"s3": {"anon": True}})
    assert len(list(state.iterdir())) == 3


@pytest.mark.parametrize("engine", ["s3fs", "obstore"])
@pytest.mark.parametrize(
    ("run_dir", "more", "words"),
    [
        ("s3://no-such-bucket/run", {}, "there is no bucket no-such-bucket"),
        ("s3://data/nothing-here", {}, "There is no run in s3://data/nothing-here"),
        ("s3://data/run", {"endpoint_url": "http://127.0.0.1:9"}, "the endpoint cannot be reached: correct endpoint_u"),
        ("s3://data/run", {"endpoint_url": "127.0.0.1:9"}, "endpoint_url '127.0.0.1:9' must begin with https://"),
        ("s3://data/denied/run", {}, "the credentials may not do this"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    state: Path, server: S3Server, engine: str, run_dir: str, more: dict[str, Any], words: str
) -> None:
    server.set_faults(deny="denied")
    with pytest.raises(StaggerError) as error:
        open_run(run_dir, json.dumps(options_of(server, **more, engine=engine)))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    server.set_faults()


class Refused(Exception):
    """An error of botocore's kind."""

    def __init__(self, code: str, status: int) -> None:
        super().__init__(f"An error occurred ({code})")
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("ExpiredToken", 400, "have expired"),
        ("InvalidAccessKeyId", 403, "does not know the access key"),
        ("SignatureDoesNotMatch", 403, "does not belong to the access key"),
        ("SomethingNew", 403, "rejects the credentials"),
        ("SomethingNew", 400, ""),
    ],
)
def test_refused_credentials_are_told_apart(code: str, status: int, words: str) -> None:
    error = OSError("wrapped")
    error.__cause__ = Refused(code, status)
    found = meaning(error)
    assert words in found
    assert bool(words) == bool(found)
    assert all(" " in sentence for sentence in MEANINGS.values())
