"""Whatever is damaged in the records of a run, each command says so in a sentence that names the file."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.conftest import Cli, PipelineFiles
from tests.kit.preloaded import preloaded

#: Values that a field never has, or that break a computation: types, extremes, and texts that a terminal would obey.
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 0.5, -7.25, 1e300, 10**18, 2**63, "", "x", "\x1b[2J\n\u202e", "0-99999999999", "9" * 400),
    *([], [[]], [None], [1, "x"], {}, {"x": None}, {"x": {"y": []}}),
)

#: Contents that are no record at all. None stands for a folder of that name.
BROKEN = (b"", b"{", b"[]", b"null", b"7", b'"text"', b"\xff\xfe{}", b"\x00" * 64, b'{"a":' * 2000, None)

COMMANDS = (
    ("status",),
    ("status", "--json"),
    ("logs",),
    ("logs", "--failed"),
    ("logs", "--rank", "0"),
    ("cancel",),
    ("retry", "--failed-only"),
    ("retry",),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each value within a JSON document."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value[:2]):
            yield from places(item, (*path, index))


def damages(data: bytes, random: random.Random, count: int) -> Iterator[tuple[str, bytes | None]]:
    """(what was done, the damaged content): `count` wrong values and missing keys, then every kind of broken file."""
    record = json.loads(data)
    every = [(path, odd) for path in places(record) for odd in (*ODD, "missing")]
    for path, odd in random.sample(every, min(count, len(every))):
        changed = copy.deepcopy(record)
        place = changed
        for key in path[:-1]:
            place = place[key]
        if odd == "missing":
            del place[path[-1]]
        else:
            place[path[-1]] = odd
        yield f"{path} = {odd!r}", json.dumps(changed).encode()
    yield "truncated", data[: len(data) // 2]
    for broken in BROKEN:
        yield repr(broken), broken


@pytest.fixture
def local(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> Path:
    """A local run of three ranks, of which rank 1 failed. A process that has ended holds the lock."""
    (tmp_path / "more_steps.py").write_text(FAILS)
    cli("launch", pipeline_file(tasks=3, steps=("more_steps:fails_on_rank_1",)), check=1)
    run = tmp_path / "run"
    holder = {"host": os.uname().nodename, "pid": 2**22 + 1, "process_started": 5, "user": "me", "time": 1.0}
    (run / "lock").write_text(json.dumps(holder))
    (run / "launches" / "1" / "running.json").write_text('{"time": 1.0, "running": "0-1"}')
    return run


FAILS = """
def fails_on_rank_1(data, rank, world_size):
    for document in data:
        if rank == 1:
            raise ValueError("as it should")
        yield document
"""


@pytest.fixture
def on_slurm(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: Path
) -> Path:
    """A Slurm run of three ranks, one done and one running, with stand-ins for Slurm's commands."""
    place = tmp_path / "bin"
    place.mkdir()
    for name, script in SLURM.items():
        (place / name).write_text(f"#!/bin/bash\n{script.replace('FOLDER', str(tmp_path))}\n")
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    executor = {"type": "slurm", "partition": "cpu", "time": "10", "mem_per_cpu_gb": 1}
    file = pipeline_file(tasks=3, run_dir=str(tmp_path / "slurm"), output=str(tmp_path / "out"), executor=executor)
    cli("launch", file, check=0, PATH=os.environ["PATH"])
    run = tmp_path / "slurm"
    launch = json.loads((run / "launches" / "1" / "launch.json").read_text())
    (tmp_path / "queue").write_text(f"9001|1|RUNNING|1:00|N/A|None|{launch['arrays'][0]['name']}|(null)\n")
    end = {
        "by": "end job 9002 on n1",
        "started": 1.5,
        "ended": 2.5,
        "said": ["ranks 2 are not done"],
        "left": [],
        "error": "",
    }
    (run / "launches" / "1" / "end.json").write_text(json.dumps(end))
    (run / "completions").mkdir()
    shutil.copy(local / "completions" / "00000.json", run / "completions")
    return run


SLURM = {
    "sbatch": "echo Submitted batch job 9001",
    "scontrol": "echo 'MaxArraySize = 1001'; echo 'MaxJobCount = 10000'",
    "squeue": "cat FOLDER/queue",
    "sacct": "echo '9001_2|FAILED|1:0|n1'",
    "sacctmgr": "exit 1",
    "scancel": "true",
    "srun": "true",
}


@pytest.mark.parametrize(
    ("record", "count"),
    [
        ("run.json", 16),
        ("launches/1/launch.json", 16),
        ("launches/1/running.json", 6),
        ("completions/00000.json", 48),
        ("failures/00001.1.json", 12),
        ("lock", 12),
    ],
)
def test_in_a_local_run(local: Path, record: str, count: int) -> None:
    if record == "launches/1/running.json":  # It is read only while its launch runs.
        launch = json.loads((local / "launches" / "1" / "launch.json").read_text())
        holder = json.loads((local / "lock").read_text())
        holder.update(host="elsewhere", pid=launch["pid"])
        (local / "lock").write_text(json.dumps(holder))
    check_all(local, record, count)


@pytest.mark.parametrize(
    ("record", "count"),
    [("run.json", 16), ("launches/1/launch.json", 32), ("launches/1/end.json", 16), ("completions/00000.json", 12)],
)
def test_in_a_slurm_run(on_slurm: Path, record: str, count: int) -> None:
    check_all(on_slurm, record, count)


def check_all(run: Path, record: str, count: int) -> None:
    """Damage a record in many ways, and run a command, in turn, after each."""
    whole = run.rename(run.with_name("whole"))
    commands = (*COMMANDS, None)
    bad: list[str] = []
    for number, (what, data) in enumerate(damages((whole / record).read_bytes(), random.Random(record), count)):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run, symlinks=True)
        path = run / record
        path.unlink()
        path.mkdir() if data is None else path.write_bytes(data)
        for command in (("status",), commands[number % len(commands)]):
            ran = asked(run, *command) if command else ended(run, whole)
            if wrong := faults(ran, record):
                bad.append(f"{what}: {command}: {wrong}, exit {ran.returncode}: {ran.stderr[-400:]}")
    assert not bad, "\n".join([f"{len(bad)} wrong", *bad[:20]])


def asked(run: Path, command: str, *options: str) -> CompletedProcess[str]:
    return preloaded().run([command, str(run), *options], run.parent, dict(os.environ))


def ended(run: Path, whole: Path) -> CompletedProcess[str]:
    """The end job of the run's only stage."""
    (stage,) = json.loads((whole / "run.json").read_text())["spec"]["stages"]
    arguments = [str(run), stage["name"], "{}"]
    return preloaded().run(arguments, run.parent, dict(os.environ), "stagger.launch.finalize")


def faults(ran: CompletedProcess[str], record: str) -> str:
    """What is wrong about an answer; empty if nothing is."""
    said = ran.stdout + ran.stderr
    if ran.returncode not in (0, 1, 2, 3) or "Traceback" in ran.stderr:
        return "no sentence"
    if "\x1b" in said or "\u202e" in said or "\n\u202e" in said:
        return "raw characters"
    if " is damaged" in ran.stderr and record not in ran.stderr:
        return "the file is not named"
    return ""
