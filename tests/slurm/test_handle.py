"""The daily loop through the handle of a run: launched, watched, explained, mended, retried, verified."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stagger import LocalExecutor, ReadJsonl, Run, RunFailed, SlurmExecutor, WriteJsonl
from stagger.launch import follow
from tests.conftest import output_ids
from tests.kit.runs import EVERYTHING


@pytest.fixture
def on_the_cluster(slurm_conf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process submit to the cluster of the tests."""
    monkeypatch.setenv("SLURM_CONF", slurm_conf)


@pytest.mark.usefixtures("on_the_cluster")
def test_two_stages_are_run_to_their_end_through_the_handle(tmp_path: Path, shards: Path) -> None:
    flag = tmp_path / "flag"

    def fail(data: Any, rank: int, world_size: int) -> Iterator[Any]:
        if not flag.exists():
            if rank in (1, 2):
                raise KeyError("language")
            if rank == 3:
                raise ValueError("no such shard")
            if rank == 4:
                os.kill(os.getpid(), signal.SIGKILL)
        yield from data

    def shout(data: Any, rank: int, world_size: int) -> Iterator[Any]:
        for document in data:
            document.text = document.text.upper()
            yield document

    middle, end = str(tmp_path / "middle"), str(tmp_path / "end")
    where: dict[str, Any] = {"run_dir": tmp_path / "run", "partition": "cpu", "time": 10, "randomize_start_duration": 0}
    clean = SlurmExecutor([ReadJsonl(str(shards)), fail, WriteJsonl(middle)], tasks=6, name="clean", **where)
    final = SlurmExecutor([ReadJsonl(middle), shout, WriteJsonl(end)], tasks=2, name="final", depends=clean, **where)

    run = final.run(wait=False)
    first_jobs = run.job_ids
    assert len(first_jobs) == 2
    with pytest.raises(TimeoutError):
        run.wait(timeout=0)
    with pytest.raises(RunFailed, match="'language'") as raised:
        run.wait()
    assert raised.value.failed_ranks == {"clean": [1, 2, 3, 4]}
    state = run.status()["clean"]
    assert [(group.ranks, group.where[:15]) for group in state.failures] == [
        ((1, 2), "test_handle.py:"),
        ((3,), "test_handle.py:"),
        ((4,), ""),
    ]
    assert [
        word in group.sentence for group, word in zip(state.failures, ("language", "shard", "SIGKILL"), strict=True)
    ]
    assert run.status()["final"].pending == 2
    assert "no such shard" in run.logs(3, stage="clean")

    flag.touch()
    run = Run.open(tmp_path / "run").retry()
    assert run.wait().complete  # The end job of the first stage has launched the second.
    assert len(run.job_ids) == 6
    assert run.job_ids[:2] == first_jobs
    undisturbed = output_ids(Path(end))
    assert undisturbed == EVERYTHING

    Path(run.outputs()[0]).unlink()
    assert run.status(verify=True)["final"].lost_ranks == (0,)
    run.retry(lost=True)
    assert run.wait() == run.status(verify=True)
    assert output_ids(Path(end)) == undisturbed


@pytest.mark.usefixtures("on_the_cluster")
def test_waiting_starts_the_stages_that_no_end_job_starts(tmp_path: Path, shards: Path) -> None:
    where: dict[str, Any] = {"run_dir": tmp_path / "run", "randomize_start_duration": 0, "tasks": 2}
    slurm: dict[str, Any] = {**where, "partition": "cpu", "time": 10}
    folders = [str(tmp_path / name) for name in "abc"]
    first = SlurmExecutor([ReadJsonl(str(shards)), WriteJsonl(folders[0])], name="a", **slurm)
    here = LocalExecutor([ReadJsonl(folders[0]), WriteJsonl(folders[1])], name="b", depends=first, **where)
    last = SlurmExecutor([ReadJsonl(folders[1]), WriteJsonl(folders[2])], name="c", depends=here, **slurm)
    run = last.run(wait=False)
    of_the_first = run.job_ids
    assert run.wait().complete
    assert (len(of_the_first), len(run.job_ids)) == (2, 4)
    assert output_ids(tmp_path / "c") == EVERYTHING


@pytest.mark.usefixtures("on_the_cluster")
def test_ranks_that_can_never_start_are_said_cancelled_and_mended(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "STUCK_S", 0.0)
    steps: list[Any] = [ReadJsonl(str(shards)), WriteJsonl(str(tmp_path / "out"))]
    where: dict[str, Any] = {"run_dir": tmp_path / "run", "partition": "cpu", "time": 10}
    run = SlurmExecutor(steps, tasks=2, randomize_start_duration=0, cpus_per_task=5000, **where).run(wait=False)
    with pytest.raises(RunFailed, match="can never start"):
        run.wait()
    (why,) = run.status()["pipeline"].waiting
    assert (why.ranks, why.starts) == ((0, 1), "never")
    assert run.cancel()
    run.retry(set={"executor.cpus_per_task": 1}, wait=True)
    assert run.status().complete
    assert output_ids(tmp_path / "out") == EVERYTHING
