"""The keys of jobs that run ranks beside one another."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from stagger import SlurmExecutor
from stagger.spec.executors import SlurmSpec


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranks_at_once": 4}, "ranks_per_job is 1, but a job can run 4 ranks at once .* ranks_per_job to 4 or more"),
        ({"ranks_at_once": "auto"}, "set ranks_per_job to 2 or more"),
        ({"ranks_per_job": 7, "ranks_at_once": 4, "nodes_per_job": 2}, "set ranks_per_job to 8 or more"),
        ({"ranks_per_job": 8, "ranks_at_once": 4, "nodes_per_task": 2}, "ranks_at_once for several ranks on a node"),
        ({"ranks_per_job": 8, "nodes_per_job": 2, "nodes_per_task": 2}, "nodes_per_job for several ranks on a node"),
        ({"ranks_per_job": 8, "ranks_at_once": 0}, "greater than 0"),
        ({"ranks_per_job": 8, "ranks_at_once": "all"}, "auto"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SlurmSpec(type="slurm", **settings)


def test_python_takes_the_same_arguments() -> None:
    steps = [lambda data, rank, world_size: data]
    run = SlurmExecutor(steps, run_dir="run", ranks_per_job=512, ranks_at_once="auto", nodes_per_job=8)
    (stage,) = run.spec.stages
    assert isinstance(stage.executor, SlurmSpec)
    assert (stage.executor.ranks_at_once, stage.executor.nodes_per_job) == ("auto", 8)
