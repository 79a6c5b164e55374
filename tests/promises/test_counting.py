"""What steps count is in the completion record of its rank, and its sum in every view of the run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stagger import count
from stagger.pipeline import COUNTS, MOST_NAMES, OTHERS
from stagger.pipeline.chain import StepCount, chain
from tests.conftest import Cli, PipelineFiles
from tests.kit.runs import completions, status

STEPS = """
import os
import stagger
@stagger.stateless
def short(data, rank, world_size, fail_on=None, flag=""):
    for number, document in enumerate(data):
        if len(document.text) < 100:
            stagger.count("too_short")
            stagger.count("dropped_short" if number % 2 else "dropped_thin")
        if number == 70 and rank == fail_on and not os.path.exists(flag):
            raise ValueError("not yet")
        yield document
@stagger.stateless
class Words(stagger.BoundStep):
    def bind(self, task):
        self.task = task
    def __call__(self, data, rank, world_size):
        for document in data:
            self.task.count("words", document.text.count("word"))
            yield document
"""


def expected() -> dict[str, int]:
    texts = [f"document {i} " + "word " * (i % 50) for i in range(600)]
    return {"words": sum(text.count("word") for text in texts), "too_short": sum(len(text) < 100 for text in texts)}


def counted_by(found: dict[str, Any], step: str) -> dict[str, int]:
    counts: dict[str, int] = next(one for one in found["steps"] if one["name"] == step)["counts"]
    return counts


@pytest.mark.parametrize("commit", ["rank", "shard"])
def test_each_record_is_counted_once_also_after_a_failure(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, commit: str
) -> None:
    (tmp_path / "team_steps.py").write_text(STEPS)
    flag = tmp_path / "flag"
    steps = ({"team_steps:short": {"fail_on": 1, "flag": str(flag)}}, "team_steps:Words")
    writer = {"filename": "{stem}.jsonl"} if commit == "shard" else None
    file = pipeline_file(steps=steps, commit=commit, writer=writer)
    if commit == "rank":
        cli("launch", file, check=1)
        flag.touch()
        cli("retry", tmp_path / "run", check=0)
    else:  # Each call of the step is for one shard of 50 records, and none of them fails.
        cli("launch", file, check=0)
    found = status(cli, tmp_path / "run")
    assert found["counts"] == expected()
    assert sum(found["dropped"].values()) == expected()["too_short"]
    assert found["dropped"].keys() == {"short", "thin"}
    assert counted_by(found, "team_steps:short") == {"too_short": expected()["too_short"]}
    assert counted_by(found, "team_steps:Words") == {"words": expected()["words"]}
    assert json.loads((tmp_path / "run" / "stats.json").read_text())["counts"] == expected()
    assert (
        f"counted: {expected()['words']:,} words, {expected()['too_short']:,} too_short"
        in cli("status", tmp_path / "run").out
    )
    assert f"dropped: {max(found['dropped'].values()):,} " in cli("status", tmp_path / "run").out
    assert "counted: too_short" in (tmp_path / "run" / "report.html").read_text()
    assert all(record["counts"]["words"] for record in completions(tmp_path / "run"))


def test_a_count_cannot_fall() -> None:
    with pytest.raises(ValueError, match="cannot fall"):
        count("words", -1)


def run_steps(*steps: Any) -> list[StepCount]:
    counts = [StepCount(f"step {number}") for number in range(len(steps))]
    for _ in chain(list(steps), counts, 0, 1, lambda: None):
        pass
    return counts


def test_a_step_that_counts_by_document_does_not_fill_the_records() -> None:
    counts = run_steps(lambda data, rank, size: range(1000), by_name)[1].counts
    assert len(counts) == MOST_NAMES + 1
    assert counts[OTHERS] == 1000 - MOST_NAMES


def by_name(data: Iterable[int], rank: int, world_size: int) -> Iterator[int]:
    for number in data:
        count(f"id {number}")
        yield number


def test_each_step_has_its_own_counts_and_a_thread_those_of_the_rank() -> None:
    COUNTS.clear()

    def first(data: Any, rank: int, world_size: int) -> Iterator[int]:
        count("started")
        yield from range(3)

    def last(data: Iterable[int], rank: int, world_size: int) -> None:
        for _ in data:
            count("seen")
        thread = threading.Thread(target=count, args=("elsewhere",))
        thread.start()
        thread.join()

    one, other = run_steps(first, last)
    assert (one.counts, other.counts, COUNTS) == ({"started": 1}, {"seen": 3}, {"elsewhere": 1})
    COUNTS.clear()
