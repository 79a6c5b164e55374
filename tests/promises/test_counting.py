"""What steps count is in the completion record of its rank, and its sum in every view of the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stagger import count
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
    assert json.loads((tmp_path / "run" / "stats.json").read_text())["counts"] == expected()
    assert (
        f"counted: {expected()['words']:,} words, {expected()['too_short']:,} too_short"
        in cli("status", tmp_path / "run").out
    )
    assert "counted: too_short" in (tmp_path / "run" / "report.html").read_text()
    assert all(record["counts"]["words"] for record in completions(tmp_path / "run"))


def test_a_count_cannot_fall() -> None:
    with pytest.raises(ValueError, match="cannot fall"):
        count("words", -1)
