"""What a block of datatrove counts and measures is in the records of its rank, and right when it is merged."""

from __future__ import annotations

import random
from pathlib import Path
from statistics import variance
from typing import Any

import pytest
from datatrove.pipeline.filters import LambdaFilter
from datatrove.pipeline.filters.base_filter import BaseFilter

from stagger import LocalExecutor, ReadJsonl, WriteJsonl
from stagger.datatrove.statistics import statistics_of
from stagger.pipeline import OTHERS
from stagger.pipeline.statistics import Statistics, merged
from stagger.status.step_totals import StepTotals
from tests.kit.runs import completions


class Short(BaseFilter):  # type: ignore[misc]
    """Drops documents by two reasons and without one, and measures what it keeps."""

    name = "short"

    def filter(self, doc: Any) -> bool | tuple[bool, str]:
        number = int(doc.id.partition("-")[2])
        self.stat_update("size", value=number * number - 100, unit="part")
        return (False, "third") if number % 8 == 2 else number % 4 != 0


def measured(values: list[float]) -> Statistics:
    block = LambdaFilter(lambda document: True)
    for value in values:
        block.stat_update("size", value=value)
    return statistics_of(block)


def test_merged_metrics_are_those_of_all_values() -> None:
    chosen = random.Random(1)
    values = [chosen.gauss(10**6, 1) for _ in range(1000)]
    parts = [values[:1], values[1:1], values[1:300], values[300:]]
    whole = Statistics()
    totals = StepTotals("step")
    for part in parts:
        whole = merged(whole, measured(part))
        totals.add(measured(part))
    metric: Any = whole["metrics"]["size"]
    assert metric["m2"] / 999 == pytest.approx(variance(values), rel=1e-6)
    assert (metric["n"], metric["min"], metric["max"]) == (1000, min(values), max(values))
    assert (metric["sum"], metric["mean"]) == (pytest.approx(sum(values)), pytest.approx(sum(values) / 1000))
    assert totals.document()["metrics"]["size"]["variance"] == pytest.approx(variance(values), rel=1e-6)


def test_a_name_that_only_some_ranks_count_by_ones_is_a_metric_of_all() -> None:
    both = merged(measured([1, 1, 1]), measured([5]))
    metric: Any = both["metrics"]["size"]
    assert "counts" not in both
    assert (metric["n"], metric["sum"], metric["mean"], metric["m2"]) == (4, 8, 2.0, 12.0)


def test_blocks_that_a_function_makes_count_for_its_step(tmp_path: Path, shards: Path) -> None:
    def short(data: Any, rank: int, world_size: int) -> Any:
        from datatrove.pipeline.filters import RegexFilter
        from datatrove.pipeline.writers import JsonlWriter

        writer = JsonlWriter(str(tmp_path / "excluded"), "${rank}.jsonl", compression=None)
        fives = RegexFilter("^document [0-9]*5 ", exclusion_writer=writer)
        return Short().run(fives.run(data, rank, world_size), rank, world_size)

    steps: list[Any] = [ReadJsonl(str(shards)), short, WriteJsonl(str(tmp_path / "out"))]
    state = LocalExecutor(steps, run_dir=tmp_path / "run", tasks=2, workers=1).run().status()["pipeline"]
    assert state.dropped["no reason given"] + state.dropped["third"] == 600 - state.records_out
    assert state.steps[1]["metrics"]["size"]["n"] == 540
    assert "dropped" not in state.steps[2]


def test_values_that_json_cannot_hold_are_counted_and_names_are_bounded() -> None:
    assert measured([1.5, float("nan")]) == {"counts": {"size: not finite": 2}}
    block = LambdaFilter(lambda document: True)
    block.stat_update(*(f"dropped_{number}" for number in range(1000)))
    found = statistics_of(block)["dropped"]
    assert (len(found), sum(found.values()), found[OTHERS]) == (100, 1000, 901)


def test_reasons_and_metrics_of_blocks_reach_every_view_of_a_run(tmp_path: Path, shards: Path) -> None:
    steps = [ReadJsonl(str(shards)), LambdaFilter(lambda document: not document.id.endswith("7")), Short()]
    run = LocalExecutor([*steps, WriteJsonl(str(tmp_path / "out"))], run_dir=tmp_path / "run", tasks=3, workers=1).run()
    state = run.status()["pipeline"]
    by_lambda, by_short = state.steps[1], state.steps[2]
    assert by_lambda["dropped"] == {"no reason given": state.records_in - by_lambda["records"]}
    assert sum(by_short["dropped"].values()) == by_lambda["records"] - by_short["records"]
    assert state.dropped == {
        name: by_lambda["dropped"].get(name, 0) + by_short["dropped"].get(name, 0) for name in state.dropped
    }
    assert by_short["metrics"]["size"]["n"] == by_lambda["records"]
    assert by_short["metrics"]["size"]["min"] == -100
    assert by_short["metrics"]["size"]["unit"] == "part"
    assert all(record["steps"][2]["metrics"] for record in completions(tmp_path / "run"))
