"""Two attempts at one rank: the old one freezes within its commit, the new one runs to its end, the old one goes on.

On a file system the old attempt runs under strace, which stops it at one system call. On S3 the server holds one of its
requests, or the answer to it. The step in between samples, so the two attempts write different documents, in different
numbers of files: whatever they mix up shows.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stagger.storage.storage import Storage
from tests.kit.preloaded import preloaded
from tests.kit.s3_server import S3Server

#: System calls of a commit. strace counts the occurrences of each by its name.
CALLS = "openat,write,close,fsync,rename,link,unlink,mkdir,lstat,stat,newfstatat,read,getdents64,rmdir"

#: The calls of a commit that change something, or look for the other attempt.
DECISIVE = ("fsync", "rename", "link", "unlink", "mkdir")

SAMPLE = """
import os
import stagger
@stagger.stateless
def sample(data, rank, world_size):
    who = os.environ.get("WHO", "new")
    for number, document in enumerate(data):
        if who == os.environ.get("FEW") and number % 3:
            continue
        document.text = f"{who} {document.text}"
        yield document
"""

PATIENCE_S = 300.0


@dataclass(frozen=True)
class Point:
    """Where the old attempt freezes: at the `number`-th call of `call`, or at the `number`-th request.

    `call` of a request is `request` (held before the server processes it) or `answer` (held after).
    """

    call: str
    number: int


@dataclass
class Scene:
    """A run of two ranks in `folder` or on `server`, of which rank 0 is done and rank 1 is to be attempted twice.

    `few` is the attempt, old or new, that keeps a third of the documents. With `commit: shard` all outputs are named
    after shards.
    """

    folder: Path
    commit: str = "rank"
    few: str = "new"
    engine: str = ""
    server: S3Server | None = None
    expected: dict[str, dict[str, bytes]] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    settings: str = ""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.place = f"s3://runs/{self.folder.name}" if self.server else str(self.folder)
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        endpoint = {"AWS_ENDPOINT_URL": self.server.endpoint} if self.server else {}
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "AWS_"))}
        self.env = {**inherited, **keys, **endpoint, "FEW": self.few}
        options = {"s3": {"engine": self.engine, **({"endpoint_url": self.server.endpoint} if self.server else {})}}
        os.environ.update(keys)
        self.storage = Storage(options if self.server else {})
        self._write_files(options)
        self._prepare()

    # ---- Making it ----

    def _write_files(self, options: dict[str, Any]) -> None:
        source = self.folder / "in"
        source.mkdir()
        for shard in range(6):
            lines = [json.dumps({"text": f"{shard} {n} " + "word " * 9, "id": f"{shard}-{n}"}) for n in range(30)]
            (source / f"{shard}.jsonl").write_text("\n".join(lines) + "\n")
        (self.folder / "sampling.py").write_text(SAMPLE)
        name = {"filename": "{stem}.jsonl"} if self.commit == "shard" else {}
        content = {
            "name": "frozen",
            "run_dir": f"{self.place}/run",
            "tasks": 2,
            "commit": self.commit,
            "storage_options": options if self.server else {},
            "retry_seconds": 20,
            "pipeline": [
                {"read_jsonl": {"path": str(source)}},
                {"sampling:sample": {}},
                {"write_jsonl": {"path": f"{self.place}/parts", "compression": None, "max_bytes": 2500, **name}},
                {"write_jsonl": {"path": f"{self.place}/whole", **name}},
            ],
            "executor": {"type": "local", "workers": 1},
        }
        (self.folder / "frozen.yaml").write_text(json.dumps({key: value for key, value in content.items() if value}))

    def _prepare(self) -> None:
        """Launch rank 0, keep the state, and record what each attempt writes when nobody disturbs it."""
        self.stagger("launch", "frozen.yaml", "--limit", "1")
        launched = json.loads(self.storage.read(f"{self.place}/run/launches/1/launch.json"))
        self.settings = launched["settings"]
        self.before = self.files()
        for who in ("old", "new"):
            self.attempt(who)
            self.expected[who] = self.outputs()
            self.reset()
        assert len(self.expected["old"]) != len(self.expected["new"])

    def stagger(self, *words: str) -> str:
        done = preloaded().run([*words], self.folder, self.env)
        assert done.returncode in (0, 3), done.stderr  # 3: ranks are not done yet.
        return done.stdout

    def files(self) -> dict[str, bytes]:
        """Everything below the run directory and the output folders."""
        names = [
            f"{self.place}/{name}/{entry.name}"
            for name in ("run", "parts", "whole")
            for entry in self.storage.walk(f"{self.place}/{name}")
        ]
        return {name: self.storage.read(name) for name in names}

    def outputs(self) -> dict[str, bytes]:
        """The visible outputs of rank 1, by path."""
        return {
            name: data
            for name, data in self.files().items()
            if name not in self.before and not name.startswith(f"{self.place}/run/") and "/." not in name
        }

    def reset(self) -> None:
        """Go back to the state in which rank 0 is done, and rank 1 has never run."""
        if not self.server:
            for name in ("run", "parts", "whole"):
                shutil.rmtree(self.folder / name)
            for path, data in self.before.items():
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).write_bytes(data)
            return
        for path in self.files().keys() - self.before.keys():
            self.storage.remove(path)
            self.storage.abort_uploads(path)

    # ---- Attempts ----

    def environment(self, who: str) -> dict[str, str]:
        """The environment of an attempt at rank 1: of a first one, or of its job after a requeue."""
        slurm = {"SLURM_JOB_ID": "7", "STAGGER_SCRIPT_STARTED": "1000", "WHO": who}
        restart = {"SLURM_RESTART_COUNT": "1"} if who == "new" else {}
        young = {"STAGGER_SCRIPT_STARTED": str(int(time.time()))} if self.server else {}
        return {**self.env, **slurm, **restart, **young}

    def task(self, who: str) -> subprocess.CompletedProcess[str]:
        return preloaded().run([self.settings, "1"], Path("/"), self.environment(who), "stagger.task")

    def attempt(self, who: str) -> None:
        done = self.task(who)
        assert done.returncode == 0, done.stderr

    def traced(self, *options: str) -> tuple[list[str], dict[str, str]]:
        """The command of the old attempt under strace, and its environment."""
        task = [sys.executable, "-I", "-m", "stagger.task", self.settings, "1"]
        return ["strace", "-f", *options, *task], self.environment("old")

    def points(self) -> list[Point]:
        """Every point of the old attempt's commit at which it can freeze, in order."""
        if self.server:
            self.server.reset()
            self.attempt("old")
            requests = range(1, len(self.server.log()) + 1)
            self.reset()
            return [Point(call, number) for number in requests for call in ("request", "answer")]
        trace = self.folder / "trace"
        strace, env = self.traced("-o", str(trace), "-e", f"trace={CALLS}")
        subprocess.run(strace, env=env, cwd="/", check=True, capture_output=True, timeout=PATIENCE_S)
        self.reset()
        counts: dict[str, int] = {}
        found, begun = [], False
        for line in trace.read_text().splitlines():
            if (match := re.match(r"\d+ +(\w+)\(", line)) is None:
                continue
            call = match[1]
            counts[call] = counts.get(call, 0) + 1
            begun = begun or (call == "fsync")  # The first file is full.
            if begun:
                found.append(Point(call, counts[call]))
        return found

    @contextlib.contextmanager
    def frozen(self, point: Point) -> Iterator[bool]:
        """An old attempt that is frozen at `point` within the block, and ends after it. False if it never froze."""
        if self.server:
            yield from self._held(point)
        else:
            yield from self._stopped(point)

    def _held(self, point: Point) -> Iterator[bool]:
        assert self.server is not None
        self.server.set_faults(hold=point.number, hold_answer=point.call == "answer")
        server = self.server
        with ThreadPoolExecutor(1) as beside:
            old = beside.submit(self.task, "old")
            try:
                wait(lambda: old.done() or server.held() > 0)
                yield server.held() > 0
            finally:
                server.release()
        server.set_faults()

    def _stopped(self, point: Point) -> Iterator[bool]:
        trace = self.folder / "trace"
        trace.write_bytes(b"")
        stop = f"inject={point.call}:signal=STOP:when={point.number}"
        strace, env = self.traced("-o", str(trace), "-e", f"trace={point.call}", "-e", stop)
        with subprocess.Popen(strace, env=env, cwd="/", stderr=subprocess.DEVNULL) as process:
            try:
                wait(lambda: process.poll() is not None or b"--- stopped by SIGSTOP" in trace.read_bytes())
                yield process.poll() is None
                self._signal(process, signal.SIGCONT)
                process.wait(PATIENCE_S)
            finally:
                self._signal(process, signal.SIGKILL)

    def _signal(self, strace: subprocess.Popen[bytes], number: signal.Signals) -> None:
        """Send a signal to the process under strace, whose number begins each line of the trace."""
        if strace.poll() is None:
            os.kill(int((self.folder / "trace").read_text().split()[0]), number)

    def kill_at(self, point: Point) -> None:
        """Run the old attempt until SIGKILL ends it at a system call."""
        kill = f"inject={point.call}:signal=KILL:when={point.number}"
        strace, env = self.traced("-o", "/dev/null", "-e", f"trace={point.call}", "-e", kill)
        subprocess.run(strace, env=env, cwd="/", capture_output=True, timeout=PATIENCE_S)

    # ---- Judging it ----

    def broken(self) -> list[str]:
        """What is wrong now that both attempts have ended: nothing, if each promise holds."""
        record = json.loads(self.storage.read(f"{self.place}/run/completions/00001.json"))
        outputs = self.outputs()
        recorded = {one["path"]: one for one in record["outputs"]}
        wrong = [f"{path} is visible, and not in the record" for path in outputs.keys() - recorded.keys()]
        wrong += [f"{path} is in the record, and not there" for path in recorded.keys() - outputs.keys()]
        for path in outputs.keys() & recorded.keys():
            if len(outputs[path]) != recorded[path]["bytes"]:
                wrong.append(f"{path} has {len(outputs[path])} bytes, {recorded[path]['bytes']} in the record")
        for unit in {self.unit(path) for path in outputs}:
            mine = {path: data for path, data in outputs.items() if self.unit(path) == unit}
            if mine not in [self.of_unit(self.expected[who], unit) for who in ("old", "new")]:
                wrong.append(f"the files of {unit} are not those of one attempt: {writers(mine)}")
        if record["attempt"] == "1r1" and self.commit == "rank" and outputs != self.expected["new"]:
            wrong.append("the record is by the new attempt, the files are not")
        total = sum(one["records"] for one in record["outputs"])
        if record["records_out"] != total or record["bytes_out"] != sum(map(len, outputs.values())):
            wrong.append("the sums in the record are not those of its outputs")
        wrong += [f"{name} is left over" for name in self.files() if "/." in name]
        return wrong

    def unit(self, path: str) -> str:
        """What one commit covers: the rank, or a shard."""
        return os.path.basename(path)[0] if self.commit == "shard" else "rank 1"

    def of_unit(self, files: Mapping[str, bytes], unit: str) -> dict[str, bytes]:
        return {path: data for path, data in files.items() if self.unit(path) == unit}


def writers(files: Mapping[str, bytes]) -> str:
    """Which attempt wrote each plain file."""
    plain = {os.path.basename(path): data.split(b"\n")[0] for path, data in files.items() if data[:1] == b"{"}
    return ", ".join(f"{name} by {json.loads(line)['text'][:3]}" for name, line in sorted(plain.items()))


def wait(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s"
        time.sleep(0.01)


def round_of(scene: Scene, point: Point) -> list[str] | None:
    """One round: freeze, complete, wake, judge. Returns what is broken; None if the old attempt never froze."""
    with scene.frozen(point) as froze:
        if froze:
            scene.attempt("new")
    wrong = scene.broken() if froze else None
    scene.reset()
    return wrong
