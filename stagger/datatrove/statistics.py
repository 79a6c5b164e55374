"""Reads the statistics that a block of datatrove has gathered with its `stat_update`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from stagger.pipeline.statistics import (
    DROPPED,
    NO_REASON,
    Metric,
    Signed,
    Statistics,
    bounded,
    bounded_metrics,
    is_finite,
    statistics,
)

#: The name under which a block counts the documents that it drops, whatever the reason.
ALL_DROPPED = "dropped"

#: The unit of a metric to which its block gave none.
DEFAULT_UNIT = "doc"


def is_counting(step: Any) -> bool:
    """Whether a step gathers statistics as a block of datatrove does."""
    return hasattr(step, "stat_update") and hasattr(step, "stats")


def statistics_of(step: Any) -> Statistics:
    """What a block has counted and measured so far.

    A block only adds numbers to names: as in datatrove, a name to which it has added nothing but ones is a count. A
    metric with a value that is infinite or not a number is left out, as JSON cannot hold it, and counted.
    """
    found = getattr(step.stats, "stats", None)
    counts: dict[str, int] = {}
    metrics: dict[str, Metric] = {}
    for name, values in found.items() if isinstance(found, Mapping) else ():
        metric = _metric(values)
        if metric is None or not metric["n"]:
            continue
        if {metric["min"], metric["max"]} == {Signed(1)}:
            counts[str(name)] = metric["n"]
        elif is_finite(metric):
            metrics[str(name)] = metric
        else:
            counts[f"{name}: not finite"] = metric["n"]
    unexplained = counts.get(ALL_DROPPED, 0) - sum(n for name, n in counts.items() if name.startswith(DROPPED))
    if unexplained > 0:
        counts[f"{DROPPED}{NO_REASON}"] = unexplained
    parts = statistics(counts, bounded_metrics(metrics))
    return cast("Statistics", {**parts, **{key: bounded(parts[key]) for key in ("dropped", "counts") if key in parts}})


def _metric(values: Any) -> Metric | None:
    """The metric of a datatrove `MetricStats`; None for anything else."""
    try:
        n, mean, unit = int(values.n), float(values.mean), str(values.unit)
        total, least, most = (
            number.item() if hasattr(number, "item") else number + 0
            for number in (values.total, values.min, values.max)
        )
        m2 = float(values.variance) * max(n - 1, 0)
    except (AttributeError, TypeError, ValueError):
        return None
    metric = {"n": n, "sum": total, "min": least, "max": most, "mean": mean, "m2": m2}
    return cast("Metric", {**metric, "unit": "" if unit == DEFAULT_UNIT else unit})
