"""What steps count and measure: its shape in records, and how it is merged over shards, attempts and ranks."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from typing import NewType, TypedDict, TypeVar, cast

from stagger.pipeline import MOST_NAMES, OTHERS

#: Begins the names of counts that are reasons why documents were dropped, as in datatrove.
DROPPED = "dropped_"

#: The reason of documents that a step dropped without giving one.
NO_REASON = "no reason given"

#: A number of a record that may be negative.
Signed = NewType("Signed", float)


class Metric(TypedDict):
    """Measured values: their number, sum, extremes and mean, and `m2`, the sum of their squared differences from the
    mean. Their variance is m2 / (n - 1).
    """

    n: int
    sum: Signed
    min: Signed
    max: Signed
    mean: Signed
    m2: float
    unit: str


class Statistics(TypedDict, total=False):
    """What a step counted and measured, by name. Empty parts are left out.

    dropped: the reason -> the documents that the step dropped for it.
    counts: anything else that it counted.
    metrics: the values that it measured, such as lengths of documents.
    """

    dropped: dict[str, int]
    counts: dict[str, int]
    metrics: dict[str, Metric]


def statistics(counts: Mapping[str, int], metrics: Mapping[str, Metric] | None = None) -> Statistics:
    """The statistics of a step from what it counted, reasons included, and measured."""
    parts = {
        "dropped": {name.removeprefix(DROPPED): n for name, n in counts.items() if name.startswith(DROPPED)},
        "counts": {name: n for name, n in counts.items() if not name.startswith(DROPPED)},
        "metrics": dict(metrics or {}),
    }
    return cast("Statistics", {key: part for key, part in parts.items() if part})


def merged(one: Statistics, other: Statistics) -> Statistics:
    """The statistics of both."""
    dropped = summed(one.get("dropped", {}), other.get("dropped", {}))
    counts = summed(one.get("counts", {}), other.get("counts", {}))
    ours, theirs = one.get("metrics", {}), other.get("metrics", {})
    metrics = {name: merged_metric(ours.get(name), theirs.get(name)) for name in {**ours, **theirs}}
    for name in metrics.keys() & counts.keys():  # It counted by ones in one of them, and measured in the other.
        metrics[name] = merged_metric(metrics[name], ones(counts.pop(name)))
    parts = {"dropped": dropped, "counts": counts, "metrics": bounded_metrics(metrics)}
    return cast("Statistics", {key: part for key, part in parts.items() if part})


def merged_metric(one: Metric | None, other: Metric | None) -> Metric:
    """The metric of the values of both. At least one must be given.

    T. F. Chan, G. H. Golub, R. J. LeVeque: Updating formulae and a pairwise algorithm for computing sample variances,
    1979, equation 2.1.
    """
    if one is None or other is None or not one["n"] or not other["n"]:
        return cast("Metric", one if other is None or (one is not None and one["n"]) else other)
    n = one["n"] + other["n"]
    apart = other["mean"] - one["mean"]
    return {
        "n": n,
        "sum": Signed(one["sum"] + other["sum"]),
        "min": min(one["min"], other["min"]),
        "max": max(one["max"], other["max"]),
        "mean": Signed(one["mean"] + apart * other["n"] / n),
        "m2": one["m2"] + other["m2"] + apart * apart * one["n"] * other["n"] / n,
        "unit": one["unit"] or other["unit"],
    }


def ones(number: int) -> Metric:
    """The metric of `number` values, each of them 1."""
    one = Signed(1)
    return {"n": number, "sum": Signed(number), "min": one, "max": one, "mean": one, "m2": 0.0, "unit": ""}


def variance(metric: Metric) -> float:
    """The sample variance of the values of a metric; 0 for a single one."""
    return metric["m2"] / (metric["n"] - 1) if metric["n"] > 1 else 0.0


def is_finite(metric: Metric) -> bool:
    """Whether JSON can hold the metric: no value was infinite or not a number."""
    return all(map(math.isfinite, (metric["sum"], metric["min"], metric["max"], metric["mean"], metric["m2"])))


def summed(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """The counts by name of both, bounded."""
    return bounded({name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}})


def bounded(counts: Mapping[str, int]) -> dict[str, int]:
    """The counts, of which the smallest are summed up under one name if there are more than MOST_NAMES names."""
    if len(counts) <= MOST_NAMES:
        return dict(counts)
    named = {name: number for name, number in counts.items() if name != OTHERS}
    kept = dict(heapq.nlargest(MOST_NAMES - 1, named.items(), key=lambda item: item[1]))
    return {**kept, OTHERS: sum(counts.values()) - sum(kept.values())}


Value = TypeVar("Value")


def bounded_metrics(metrics: Mapping[str, Value]) -> dict[str, Value]:
    """The first MOST_NAMES metrics: unlike counts, metrics of different units have no sum."""
    return dict(list(metrics.items())[:MOST_NAMES])
