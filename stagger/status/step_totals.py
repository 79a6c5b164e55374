"""What each step of a stage did, counted and measured, summed up over ranks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, cast

from stagger.errors import counted
from stagger.pipeline.statistics import Metric, Statistics, bounded, bounded_metrics, merged_metric, ones, variance

#: Most names of counts in memory: each of a million ranks may have MOST_NAMES of its own.
TOGETHER = 10_000

#: Most names shown of a step on one line.
SHOWN = 6


class StepTotals:
    """The sums over the ranks of one step."""

    def __init__(self, name: str, records: int = 0, seconds: float = 0.0) -> None:
        self.name = name
        self.records = records
        self.seconds = seconds
        self.dropped: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.metrics: dict[str, Metric] = {}

    def add(self, statistics: Statistics) -> None:
        """Add what the step counted and measured in one rank."""
        add(self.dropped, [statistics.get("dropped")])
        add(self.counts, [statistics.get("counts")])
        for name, metric in statistics.get("metrics", {}).items():
            self.metrics[name] = merged_metric(self.metrics.get(name), metric)

    def document(self) -> dict[str, Any]:
        """The sums as a status and stats.json show them. Empty parts are left out."""
        counts = dict(bounded(self.counts))
        metrics = bounded_metrics(self.metrics)
        for name in metrics.keys() & counts.keys():  # Measured in some ranks; others added only ones to it.
            metrics[name] = merged_metric(metrics[name], ones(counts.pop(name)))
        parts: dict[str, dict[str, Any]] = {
            "dropped": dict(Counter(bounded(self.dropped)).most_common()),
            "counts": dict(Counter(counts).most_common()),
            "metrics": {name: shown(metric) for name, metric in metrics.items()},
        }
        plain = {"name": self.name, "records": self.records, "seconds": round(self.seconds, 6)}
        return {**plain, **{key: part for key, part in parts.items() if part}}


def shown(metric: Metric) -> dict[str, Any]:
    """A metric with its sample variance and standard deviation in place of m2."""
    spread = variance(metric)
    plain = {key: value for key, value in metric.items() if key not in ("m2", "unit")}
    unit = {"unit": metric["unit"]} if metric["unit"] else {}
    return {**plain, "variance": spread, "std_dev": math.sqrt(spread), **unit}


def add(counts: Counter[str], more: Iterable[Mapping[str, int] | None]) -> None:
    """Add many counts by kind. Counter.update checks its arguments each time, which takes three times as long."""
    for one in filter(None, more):
        for kind, number in one.items():
            counts[kind] += number
        if len(counts) > TOGETHER:
            largest = bounded(counts)
            counts.clear()
            counts.update(largest)


def lines(steps: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the steps dropped, by reason: a line for each step that dropped anything, named if several did."""
    dropping = [step for step in steps if step.get("dropped")]
    return [
        f"dropped{f' by {short_name(step)}' if len(dropping) > 1 else ''}: {numbers(step['dropped'])}"
        for step in dropping
    ]


def metric_lines(steps: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the steps measured: a line for each metric, as the last step that has it measured it."""
    last = {name: (metric, step) for step in steps for name, metric in step.get("metrics", {}).items()}
    return [f"{name}: {measured(metric)} ({short_name(step)})" for name, (metric, step) in last.items()]


def pace_lines(steps: Iterable[Mapping[str, Any]]) -> list[str]:
    """How fast the steps that run a model are: tokens per second of their own time, and the share of it
    in which they waited for weights.

    >>> counts = {"tokens": 400_000, "weight_bytes": 10**9, "weights_wait_ms": 25_000}
    >>> pace_lines([{"name": "read_jsonl"}, {"name": "score_blocks", "seconds": 200.0, "counts": counts}])
    ['score_blocks: 2,000 tokens/s in a rank, 12 % of its time waiting for weights']
    """
    said = []
    for step in steps:
        counts = step.get("counts", {})
        if "weights_wait_ms" in counts and step["seconds"]:
            rate = number(round(counts.get("tokens", 0) / step["seconds"]))
            waited = counts["weights_wait_ms"] / 1000 / step["seconds"]
            name = short_name(step)
            said.append(f"{name}: {rate} tokens/s in a rank, {100 * waited:.0f} % of its time waiting for weights")
    return said


def measured(metric: Mapping[str, Any]) -> str:
    """A metric in words.

    >>> measured({"n": 2, "sum": 3000, "min": 1000, "max": 2000, "mean": 1500.0})
    'sum 3,000, mean 1,500 of 2, from 1,000 to 2,000'
    """
    total, mean, least, most = (number(metric[key]) for key in ("sum", "mean", "min", "max"))
    return f"sum {total}, mean {mean} of {metric['n']:,}, from {least} to {most}"


def number(value: float) -> str:
    """A number for people.

    >>> number(1234567), number(0.25), number(1234.5678)
    ('1,234,567', '0.25', '1,234.57')
    """
    if isinstance(value, int):
        return f"{value:,}"
    return f"{round(value, 2):,.10g}" if abs(value) >= 1 else f"{value:.3g}"


def numbers(counts: Mapping[str, int]) -> str:
    """Counts on one line, the largest first.

    >>> numbers({"too_short": 1200, "no_stop_words": 4})
    '1,200 too_short, 4 no_stop_words'
    """
    most = Counter(counts).most_common()
    said = [f"{count:,} {name}" for name, count in most[:SHOWN]]
    more = most[SHOWN:]
    rest = f"{sum(count for _, count in more):,} under {counted(len(more), 'further name')}"
    return ", ".join([*said, *([rest] if more else [])])


def short_name(step: Mapping[str, Any]) -> str:
    """The name of a step without its module."""
    return cast("str", step["name"]).rpartition(":")[2]
