"""`stagger doctor`: its checks and their advice."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from pathlib import Path

import pytest

from stagger.doctor.storage import CREATORS, storage_checks
from stagger.storage.storage import Storage
from tests.conftest import Bucket, Cli


def without_slurm(cli: Cli, folder: Path) -> dict[str, str]:
    """An environment whose PATH has no Slurm."""
    place = folder / "plain"
    place.mkdir()
    for name in ("bash", "env"):
        (place / name).symlink_to(shutil.which(name) or name)
    return {**cli.env, "PATH": str(place)}


def found(text: str) -> dict[str, tuple[str, str]]:
    return {check["name"]: (check["state"], check["text"]) for check in json.loads(text)["checks"]}


def test_without_slurm_it_says_so_and_looks_at_the_rest(cli: Cli, tmp_path: Path) -> None:
    ran = cli("doctor", "--run-dir", tmp_path / "run", "--json", check=1, **without_slurm(cli, tmp_path))
    checks = found(ran.out)
    assert checks["slurm"] == (
        "problem",
        "There is no sbatch on this machine: runs work here with --executor local only.",
    )
    assert checks["storage"][0] == checks["versions"][0] == "ok"
    assert not (tmp_path / "run").exists()


def test_a_storage_that_cannot_be_reached_is_said_soon(cli: Cli, tmp_path: Path) -> None:
    options = "{s3: {endpoint_url: 'http://127.0.0.1:9', key: k, secret: s}}"
    started = time.monotonic()
    ran = cli(
        "doctor", "--run-dir", "s3://bucket/run", "--storage-options", options, check=1, **without_slurm(cli, tmp_path)
    )
    (line,) = [line for line in ran.out.splitlines() if "storage" in line]
    assert line.startswith("PROBLEM")
    assert "127.0.0.1:9" in line or "s3://bucket/run" in line
    assert time.monotonic() - started < 100


def test_a_bucket_is_asked_for_all_that_a_run_needs(cli: Cli, bucket: Bucket, tmp_path: Path) -> None:
    environment = {**without_slurm(cli, tmp_path), **bucket.env}
    ran = cli("doctor", "--run-dir", f"{bucket.url}/run", "--json", check=1, **environment)
    state, text = found(ran.out)["storage"]
    assert (state, "four requests took" in text) == ("ok", True)
    assert bucket.files.find(bucket.name) == []


class Hasty(Storage):
    """A store that looks first and writes then, as one without atomic conditional writes does."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}
        self.together = threading.Barrier(CREATORS)

    def check_writable(self, folder: str) -> None:
        pass

    def create(self, path: str, data: bytes) -> bool:
        there = path in self.files
        if path.endswith("at-once"):
            self.together.wait()
        if not there:
            self.files[path] = data
        return not there

    def read(self, path: str) -> bytes:
        return self.files[path]

    def remove(self, path: str, version: str = "") -> None:
        del self.files[path]


class Careless(Hasty):
    """A store that ignores the condition."""

    def create(self, path: str, data: bytes) -> bool:
        self.files[path] = data
        return True


@pytest.mark.parametrize(
    ("store", "said"),
    [
        (Hasty, r"^s3://bucket/run does not support .* of several writers at once \(8 of 8 succeeded\): of several la"),
        (Careless, r"^s3://bucket/run does not support conditional writes \(If-None-Match\): of several launches "),
    ],
)
def test_a_store_whose_conditional_writes_do_not_hold_is_a_problem(store: type[Hasty], said: str) -> None:
    storage = store()
    (check,) = storage_checks("s3://bucket/run", storage)
    assert check.state == "problem"
    assert re.match(said, check.text)
    assert storage.files == {}


def test_an_argument_is_the_name_of_a_new_profile_only(cli: Cli) -> None:
    assert "to check a profile, use --profile gpu" in cli("doctor", "gpu", check=2).err
    assert "cannot name a profile" in cli("doctor", "--write-profile", "a b", check=2).err
    assert "cannot name a profile" in cli("doctor", "--write-profile", "none", check=2).err


def test_without_slurm_no_profile_can_be_made(cli: Cli, tmp_path: Path) -> None:
    assert "There is no scontrol" in cli("doctor", "--write-profile", check=2, **without_slurm(cli, tmp_path)).err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--time", "soon"), "stagger doctor: executor.time: 'soon' is not a time that Slurm understands"),
        (("--set", "executor.sbatch.array=3"), "stagger doctor: executor.sbatch: 'array' is set by stagger itself"),
        (("--sbatch", "--array=3"), "stagger doctor: executor.sbatch: 'array' is set by stagger itself"),
        (("--sbatch", "hold"), "--set executor.sbatch.hold: write it as key=value"),
        (("--set", "executor.type=local"), "executor.type: slurm"),
        (("--set", "tasks=3"), "stagger doctor: tasks: unknown key"),
        (("--profile", "gpu"), "--profile: there is no profile 'gpu'"),
    ],
)
def test_a_wrong_setting_is_said(cli: Cli, options: tuple[str, str], said: str) -> None:
    assert said in cli("doctor", *options, check=2).err
