"""What tests share: a way to run the command, real shards, one Slurm cluster and one S3 server a session."""

from __future__ import annotations

import gzip
import json
import os
import shutil
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

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "tests" / "cluster"
DATA = ROOT / "tests" / "data"

#: How long a test waits for an event that must come; never how long it takes.
PATIENCE_S = 120.0


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
    """Runs `stagger` as a user would: a process of its own, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "AWS_"))}

    def __call__(self, *arguments: str | int | Path, check: int | None = None, **env: str) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "stagger", *map(str, arguments)],
            cwd=self.folder,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=300,
        )
        if check is not None:
            assert done.returncode == check, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return Ran(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str | Path, **env: str) -> subprocess.Popen[str]:
        """The command in the background, in a process group of its own."""
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
    """Wait for an event of another process; its value."""
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
    """The records of an output file, by decoders that are not stagger's."""
    data = path.read_bytes()
    if path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    elif path.suffix == ".gz":
        data = gzip.decompress(data)
    return [json.loads(line) for line in data.splitlines()]


def output_ids(folder: Path) -> list[str]:
    """The ids in all outputs of a folder, sorted; hidden files are no outputs."""
    files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return sorted(record["id"] for path in files for record in read_jsonl(path))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones included."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


#: Steps that tests put beside their pipeline files.
STEPS = '''
import os, signal, time

def fail_on(data, rank, world_size, ranks=(), flag=""):
    """Raises on some ranks, after some documents; not any more once the file `flag` is there."""
    for count, document in enumerate(data):
        if rank in ranks and count == 20 and not os.path.exists(flag):
            raise ValueError(f"rank {rank} cannot go on")
        yield document

def kill_on(data, rank, world_size, ranks=(), flag=""):
    """Is killed, as by the out-of-memory killer, on some ranks."""
    for count, document in enumerate(data):
        if rank in ranks and count == 20 and not os.path.exists(flag):
            os.kill(os.getpid(), signal.SIGKILL)
        yield document

def hold(data, rank, world_size, ranks=None, flag=""):
    """Waits after some documents until the file `flag` is there; says so with the file `flag`-<rank>."""
    for count, document in enumerate(data):
        if count == 20 and (ranks is None or rank in ranks):
            open(f"{flag}-{rank}", "w").close()
            while not os.path.exists(flag):
                time.sleep(0.01)
        yield document

def dawdle(data, rank, world_size, ranks=(), flag=""):
    """Takes its time on some ranks; says with the file `flag`-<rank> that it has begun."""
    for document in data:
        if rank in ranks:
            open(f"{flag}-{rank}", "w").close()
            time.sleep(0.1)
        yield document

def fail_from(data, rank, world_size, first, flag=""):
    """Raises at the first document whose number is `first` or more, until the file `flag` is there."""
    for document in data:
        if int(document.id.rpartition("-")[2]) >= first and not os.path.exists(flag):
            raise ValueError("no further")
        yield document

def linger(data, rank, world_size, first, seconds=1, flag=""):
    """Takes so long for each document from number `first` on, and says so, until the file `flag` is there."""
    for document in data:
        if int(document.id.rpartition("-")[2]) >= first and not os.path.exists(flag):
            open(f"{flag}-{rank}", "w").close()
            time.sleep(seconds)
        yield document

def note_node(data, rank, world_size, flag=""):
    """Says which process of how many is at work on the rank, each on a node of its own."""
    name = f"{flag}-{rank}-{os.environ['RANK']}-of-{os.environ['WORLD_SIZE']}"
    open(name, "w").close()
    return data

def need_memory(data, rank, world_size, ranks=(), mb=0, flag=""):
    """Needs so many MB on some ranks, until it has had them for a while."""
    held = bytearray(0)
    for count, document in enumerate(data):
        if rank in ranks and count == 20:
            held = bytearray(b"x") * (mb * 10**6)
            time.sleep(5)
        yield document

def swallow(data, rank, world_size):
    """A step that goes on whatever happens."""
    iterator = iter(data)
    while True:
        try:
            yield next(iterator)
        except StopIteration:
            return
        except Exception:
            continue

def shorter(data, rank, world_size):
    """Gives only ten documents of a shard once the file `short` is there."""
    for document in data:
        if not os.path.exists("short") or int(document.id.rpartition("-")[2]) % 50 < 10:
            yield document

def first(data, rank, world_size, count=1):
    """Gives the first documents, and asks for no more."""
    for number, document in enumerate(data, 1):
        yield document
        if number == count:
            return

def backwards(data, rank, world_size):
    """Gives nothing before it has read everything, and makes its documents anew."""
    from stagger import Document
    for document in reversed(list(data)):
        yield Document(document.text, document.id)

class Upper:
    def __init__(self, suffix=""):
        self.suffix = suffix

    def __call__(self, data, rank, world_size):
        for document in data:
            document.text = document.text.upper() + self.suffix
            yield document

def large(data, rank, world_size, flag=""):
    """A source of 110 MB. In its first attempt it writes its process's number to the file `flag`, and waits there."""
    from stagger import Document
    for i in range(110):
        yield Document("x" * 10**6, f"{i}")
        if i == 90 and not os.path.exists(flag):
            with open(flag + ".new", "w") as file:
                file.write(str(os.getpid()))
            os.rename(flag + ".new", flag)
            while True:
                time.sleep(0.01)

def numbers(data, rank, world_size, count=10):
    """A source without shards."""
    from stagger import Document
    for i in range(count):
        yield Document(f"{rank}-{i}", f"{rank}-{i}")
'''


class PipelineFiles:
    """Writes pipeline files, with `STEPS` importable as the module my_steps."""

    def __init__(self, folder: Path, shards: Path) -> None:
        self.folder = folder
        self.shards = shards
        (folder / "my_steps.py").write_text(STEPS)

    def __call__(
        self,
        name: str = "run",
        *,
        steps: tuple[Any, ...] = (),
        executor: dict[str, Any] | None = None,
        tasks: int = 4,
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
    """A part that tests need is not here: on CI a failure, never a skip."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing, and CI must have it")
    pytest.skip(f"{what} is missing; make test installs it")


@pytest.fixture(scope="session")
def slurm_conf() -> str:
    """The configuration of a running cluster: one for the whole session, left up for the next."""
    if shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        missing("Slurm")
    done = subprocess.run([CLUSTER / "up.sh"], capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.fail(f"the cluster did not start:\n{done.stderr}")
    return done.stdout.strip().rpartition("SLURM_CONF=")[2]


@pytest.fixture
def slurm_cli(cli: Cli, slurm_conf: str, tmp_path: Path) -> Iterator[Cli]:
    """The command on a machine of the cluster; what a test leaves queued is cancelled after it."""
    cli.env["SLURM_CONF"] = slurm_conf
    yield cli
    for run in tmp_path.rglob("run.json"):
        cli("cancel", run.parent)


@dataclass(frozen=True)
class Bucket:
    """A fresh bucket of the session's S3 server."""

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
    """moto's server, in a process of its own, so that forks and kills of tests do not touch it."""
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
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    env = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_ENDPOINT_URL": s3_server}
    made = Bucket(name, s3_server, {**env, "AWS_DEFAULT_REGION": "us-east-1"})
    made.files.mkdir(name)
    return made
