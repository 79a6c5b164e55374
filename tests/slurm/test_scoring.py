"""An array that scores documents with a model, and whose jobs end in each of the ways that Slurm has for it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from stagger.launch.launch import Wishes, launch
from stagger.spec.load import load_file
from tests.conftest import read_jsonl, until
from tests.kit.in_process import in_process
from tests.kit.runs import SLURM, completions, counts, launches, status
from tests.models.corpus import save_model
from tests.slurm.conftest import RECORDS, Life, restarted, slurm, visible

KILLED, STOPPED, REQUEUED = RANKS = range(3)


def file(life: Life, name: str, model: str, executor: dict[str, Any]) -> Path:
    """Each of three ranks scores four shards, and waits in its second one until the flag is there."""
    score = {"score_blocks": {"model": model, "engine": "stream", "tokens": 512, "per_token": True}}
    wait = {"my_steps:linger": {"first": 50 * len(RANKS), "flag": str(life.flag)}}
    return life.files(
        name,
        steps=(score, wait),
        executor=executor,
        compression=None,
        writer={"filename": "{stem}.jsonl"},
        commit="shard",
        tasks=len(RANKS),
        retries={"max": 2},
        randomize_start_duration=0,
    )


def test_scores_are_the_same_bytes_whatever_ends_the_jobs_in_between(life: Life) -> None:
    """One job is killed, one told that its time is over, and one requeued by hand, each behind its first shard."""
    life.cli.env["OMP_NUM_THREADS"] = "1"
    model = save_model(life.folder / "model")
    life.cli("launch", file(life, "run", model, {**SLURM, "mem_per_cpu_gb": 2}), check=0)
    for rank in RANKS:
        life.begun(rank)
    os.kill(life.pid(KILLED), signal.SIGKILL)
    slurm(life.cli, "scancel", "--batch", "--signal=USR2", f"{life.array}_{STOPPED}")
    slurm(life.cli, "scontrol", "requeue", f"{life.array}_{REQUEUED}")
    for rank in (STOPPED, REQUEUED):
        until(lambda rank=rank: restarted(life, rank), f"rank {rank} to start again")  # type: ignore[misc]
    life.flag.touch()
    until(lambda: counts(status(life.cli, life.run)) == (len(RANKS), 0, 0, 0), "all ranks to be done")

    with in_process():
        launch(load_file(str(file(life, "undisturbed", model, {"type": "local"}))), Wishes()).raise_if_failed()
    scored = life.folder / "run-output"
    assert visible(scored) == visible(life.folder / "undisturbed-output")
    records = [record["metadata"] for path in sorted(scored.glob("*.jsonl")) for record in read_jsonl(path)]
    assert len(records) == RECORDS
    assert all(len(record["logprobs"]) == record["tokens"] > 0 for record in records)
    assert [record["attempt"] for record in completions(life.run)] == ["2", "1r1", "1r1"]
    assert [one["ranks"] for one in launches(life.run)] == ["0-2", str(KILLED)]
    for rank, attempt in ((KILLED, "2"), (STOPPED, "1r1"), (REQUEUED, "1r1")):
        assert "resumes after 1 shard" in (life.run / "logs" / f"{rank:05d}" / f"{attempt}.log").read_text()
