"""Shared by tests of several rooms: running the command, real shards, and one S3 server per session."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.kit.preloaded import preloaded, same_python

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "tests" / "cluster"
DATA = ROOT / "tests" / "data"

#: The module that tests copy beside their pipeline files as my_steps.
STEPS = ROOT / "tests" / "kit" / "steps.py"

#: Seconds after which a test fails if an event has not come. No test relies on how long an event takes.
PATIENCE_S = 120.0


@pytest.fixture(autouse=True)
def no_profiles(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the configuration and cache of the user who runs the tests, and what commands remember for them."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "no-configuration"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))
    monkeypatch.delenv("STAGGER_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt: a shell that starts the tests in the background lets them ignore it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@dataclass
class Ran:
    """A finished command."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Cli:
    """Runs `stagger` as a user would: in its own process and folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "AWS_"))}

    def __call__(self, *arguments: str | int | Path, check: int | None = None, **env: str) -> Ran:
        environment = {**self.env, **env}
        if same_python(environment):
            done = preloaded().run([*map(str, arguments)], self.folder, environment)
        else:
            command = [sys.executable, "-m", "stagger", *map(str, arguments)]
            done = subprocess.run(
                command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300
            )
        if check is not None:
            assert done.returncode == check, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return Ran(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str | Path, **env: str) -> subprocess.Popen[str]:
        """Start the command in the background, in its own process group."""
        return subprocess.Popen(
            [sys.executable, "-m", "stagger", *map(str, arguments)],
            cwd=self.folder,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Wait until `condition` returns a true value, and return it."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s for {what}"
        time.sleep(0.05)
    return value


def documents(start: int, count: int) -> list[dict[str, Any]]:
    return [{"text": f"document {i} " + "word " * (i % 50), "id": f"doc-{i}"} for i in range(start, start + count)]


def jsonl(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Twelve shards of 50 documents each: plain, .gz and .zst in turn."""
    folder = tmp_path / "input"
    folder.mkdir()
    for index in range(12):
        data = jsonl(documents(index * 50, 50))
        if index % 3 == 0:
            (folder / f"shard-{index:02d}.jsonl").write_bytes(data)
        elif index % 3 == 1:
            (folder / f"shard-{index:02d}.jsonl.gz").write_bytes(gzip.compress(data))
        else:
            (folder / f"shard-{index:02d}.jsonl.zst").write_bytes(zstandard.compress(data))
    return folder


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of an output file, decoded without stagger's own code."""
    data = path.read_bytes()
    if path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    elif path.suffix == ".gz":
        data = gzip.decompress(data)
    return [json.loads(line) for line in data.splitlines()]


def output_ids(folder: Path) -> list[str]:
    """The sorted ids in all outputs of a folder, without hidden files."""
    files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return sorted(record["id"] for path in files for record in read_jsonl(path))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones included."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class PipelineFiles:
    """Writes pipeline files, with `tests/kit/steps.py` importable as the module my_steps."""

    def __init__(self, folder: Path, shards: Path) -> None:
        self.folder = folder
        self.shards = shards
        shutil.copy(STEPS, folder / "my_steps.py")

    def __call__(
        self,
        name: str = "run",
        *,
        steps: tuple[Any, ...] = (),
        executor: dict[str, Any] | None = None,
        tasks: int | str | None = 4,
        source: str | None = None,
        output: str | None = None,
        compression: str | None = "zstd",
        writer: dict[str, Any] | None = None,
        **more: Any,
    ) -> Path:
        content = {
            "name": name,
            "run_dir": str(self.folder / name),
            "tasks": tasks,
            "pipeline": [
                {"read_jsonl": {"path": source or str(self.shards)}},
                *steps,
                {
                    "write_jsonl": {
                        "path": output or str(self.folder / f"{name}-output"),
                        "compression": compression,
                        **(writer or {}),
                    }
                },
            ],
            "executor": executor or {"type": "local", "workers": 2},
            **more,
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        return path


@pytest.fixture
def pipeline_file(tmp_path: Path, shards: Path) -> PipelineFiles:
    return PipelineFiles(tmp_path, shards)


def missing(what: str) -> None:
    """Skip a test that needs `what`; on CI fail instead."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing, and CI must have it")
    pytest.skip(f"{what} is missing; make test installs it")


@dataclass(frozen=True)
class Bucket:
    """A fresh bucket of an S3 server."""

    name: str
    endpoint: str
    env: dict[str, str]

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    @property
    def files(self) -> Any:
        import s3fs

        return s3fs.S3FileSystem(
            endpoint_url=self.endpoint, key="key", secret="secret", use_listings_cache=False, skip_instance_cache=True
        )


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """moto's server, in its own process, so that forks and kills of tests do not touch it."""
    code = (
        "from moto.server import ThreadedMotoServer as S; import sys, time\n"
        "s = S(ip_address='127.0.0.1', port=0, verbose=False); s.start(); print(s.get_host_and_port()[1], flush=True)\n"
        "sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    port = process.stdout.readline().strip().decode()
    if not port:
        missing("moto's S3 server")
    yield f"http://127.0.0.1:{port}"
    process.communicate()


@pytest.fixture
def bucket(s3_server: str) -> Bucket:
    return fresh_bucket(s3_server)


def fresh_bucket(endpoint: str) -> Bucket:
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    env = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_ENDPOINT_URL": endpoint}
    made = Bucket(name, endpoint, {**env, "AWS_DEFAULT_REGION": "us-east-1"})
    made.files.mkdir(name)
    return made


@pytest.fixture
def loaded(bucket: Bucket, shards: Path) -> Bucket:
    """The bucket, with the shards below input/."""
    bucket.files.put([str(path) for path in sorted(shards.iterdir())], f"{bucket.name}/input/")
    return bucket
