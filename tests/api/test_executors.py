"""Executors in Python, with functions, lambdas and instances as steps, also those of datatrove."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from datatrove.pipeline.filters import LambdaFilter, RegexFilter

from stagger import LocalExecutor, ReadJsonl, RunFailed, SlurmExecutor, StaggerError, WriteJsonl
from tests.conftest import output_ids
from tests.kit.runs import EVERYTHING


def test_lambdas_closures_and_instances(tmp_path: Path, shards: Path) -> None:
    keep = {f"doc-{i}" for i in range(0, 600, 7)}
    executor = LocalExecutor(
        pipeline=[
            ReadJsonl(str(shards)),
            lambda data, rank, world_size: (document for document in data if document.id in keep),
            WriteJsonl(str(tmp_path / "out")),
        ],
        tasks=5,
        workers=2,
        run_dir=str(tmp_path / "run"),
    )
    assert executor.run().status().done == 5
    assert output_ids(tmp_path / "out") == sorted(keep)
    (pickle,) = tmp_path.glob("run/launches/1/pipeline.pkl")
    assert stat.S_IMODE(pickle.stat().st_mode) == 0o600
    executor.run()
    assert not (tmp_path / "run" / "launches" / "2").exists()


def test_datatroves_filters_run_unchanged(tmp_path: Path, shards: Path) -> None:
    LocalExecutor(
        [
            ReadJsonl(str(shards)),
            LambdaFilter(lambda document: document.id.endswith("7")),
            RegexFilter(r"document 1\d\d "),
            WriteJsonl(str(tmp_path / "out")),
        ],
        tasks=3,
        run_dir=str(tmp_path / "run"),
    ).run()
    assert output_ids(tmp_path / "out") == sorted(
        i for i in EVERYTHING if re.search("7$", i) and not re.search(r"-1\d\d$", i)
    )


def test_failures_raise_and_name_the_ranks(tmp_path: Path, shards: Path) -> None:
    flag = tmp_path / "flag"

    def fail(data: Any, rank: int, world_size: int) -> Any:
        if rank in (1, 2) and not flag.exists():
            raise RuntimeError("no")
        yield from data

    executor = LocalExecutor(
        [ReadJsonl(str(shards)), fail, WriteJsonl(str(tmp_path / "out"))],
        tasks=4,
        run_dir=str(tmp_path / "run"),
        name="job",
    )
    with pytest.raises(RunFailed) as raised:
        executor.run()
    assert raised.value.failed_ranks == {"job": [1, 2]}
    flag.touch()
    executor.run()
    assert output_ids(tmp_path / "out") == EVERYTHING


def test_a_killed_worker_is_noticed_on_old_kernels_too(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 5.3 there is no pidfd_open."""

    def missing(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    def kill(data: Any, rank: int, world_size: int) -> Any:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from data

    monkeypatch.setattr(os, "pidfd_open", missing)
    with pytest.raises(RunFailed) as raised:
        LocalExecutor([ReadJsonl(str(shards)), kill], tasks=4, workers=2, run_dir=str(tmp_path / "run")).run()
    assert raised.value.failed_ranks == {"pipeline": [1]}


def test_a_changed_pickle_is_not_loaded(tmp_path: Path, shards: Path) -> None:
    def fail(data: Any, rank: int, world_size: int) -> Any:
        raise RuntimeError("no")

    executor = LocalExecutor([ReadJsonl(str(shards)), fail], tasks=1, run_dir=str(tmp_path / "run"))
    with pytest.raises(RunFailed):
        executor.run()
    (pickle,) = tmp_path.glob("run/launches/1/pipeline.pkl")
    pickle.write_bytes(b"cos\nsystem\n(S'touch evil'\ntR.")
    subprocess.run(
        [sys.executable, "-m", "stagger", "retry", tmp_path / "run"], cwd=tmp_path, check=False, capture_output=True
    )
    assert not (tmp_path / "evil").exists()
    assert "is not the pipeline that was launched" in (tmp_path / "run" / "logs" / "00000" / "2.log").read_text()


def test_a_run_from_a_file_pickles_nothing(tmp_path: Path, shards: Path) -> None:
    from tests.conftest import Cli, PipelineFiles

    Cli(tmp_path)("launch", PipelineFiles(tmp_path, shards)(), check=0)
    assert not list(tmp_path.rglob("*.pkl"))


TWICE = WriteJsonl("out")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"tasks": 0}, r"LocalExecutor: tasks: expected a whole number from 1 to"),
        ({"workers": 0}, r"LocalExecutor: workers: expected a whole number of at least 1, not the number 0"),
        ({"name": "a b"}, "LocalExecutor: name: expected a name of .*, not 'a b'"),
        ({"storage_options": {"s3": {"secret": "x"}}}, "a secret in clear"),
        ({"storage_options": {"s3": {"endpoint_url": "http://me:pass@host"}}}, "a secret in clear"),
        (
            {"pipeline": [ReadJsonl("in", on_bad_record="raise")]},  # type: ignore[arg-type]
            r"Step 1 \(ReadJsonl\): on_bad_record: expected fail or skip",
        ),
        ({"backend_limit": float("inf")}, "backend_limit: expected a number greater than 0, not the number inf"),
        ({"tasks": "8,000"}, "LocalExecutor: tasks: .*, not '8,000'; write tasks=8000"),
        ({"tasks": True}, "LocalExecutor: tasks: .*, not True"),
        ({"partition": "cpu"}, "LocalExecutor: partition: this is an argument of SlurmExecutor; leave it out"),
        ({"pipeline": []}, "pipeline: expected a list of steps, not an empty list"),
        ({"pipeline": "read_jsonl"}, "pipeline: expected a list of steps, not 'read_jsonl'"),
        ({"pipeline": [ReadJsonl]}, r"Step 1 is the class ReadJsonl; pass an instance: ReadJsonl\(\.\.\.\)"),
        ({"run_dir": ""}, "LocalExecutor: run_dir: '' is not a path"),
        ({"retry_seconds": float("nan")}, "retry_seconds: .*, not the number nan"),
        ({"pipeline": [ReadJsonl("in"), TWICE, TWICE]}, "Step 3 is the same object as an earlier step"),
    ],
)
def test_wrong_arguments_are_said(tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(StaggerError, match=said):
        LocalExecutor(**{"pipeline": [print], "run_dir": str(tmp_path / "run"), **arguments})


@pytest.mark.parametrize("limit", [0, -1, True, "3", 1.5])
def test_a_limit_that_is_no_number_of_ranks_launches_nothing(tmp_path: Path, limit: Any) -> None:
    with pytest.raises(StaggerError, match=r"LocalExecutor\.run: limit: expected a whole number of at least 1, not"):
        LocalExecutor([print], run_dir=str(tmp_path / "run")).run(limit=limit)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gpus", "gpus: unknown argument; did you mean 'gpus_per_task'"),
        ("mem", "mem: unknown argument; did you mean 'mem_per_cpu_gb'"),
        ("constraint", r"it is an option of sbatch: pass sbatch=\{'constraint': \.\.\.\}"),
        ("backendlimit", "unknown argument; did you mean 'backend_limit'"),
    ],
)
def test_an_argument_of_other_tools_is_translated(name: str, said: str) -> None:
    arguments: dict[str, Any] = {name: 3}
    with pytest.raises(StaggerError, match=said):
        SlurmExecutor([print], run_dir="run", **arguments)


def test_a_step_that_cannot_be_sent_is_said(tmp_path: Path, shards: Path) -> None:
    lock = threading.Lock()
    steps: list[Any] = [ReadJsonl(str(shards)), lambda data, rank, world_size: lock]
    with pytest.raises(StaggerError, match=r"cannot be sent to its tasks.*Open files, locks"):
        LocalExecutor(steps, tasks=1, run_dir=str(tmp_path / "run")).run()
    assert not (tmp_path / "run").exists()
