"""Sums over the completion records of a stage, for `stagger status`, stats.json and the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagger.pipeline.task_context import EXAMPLES
from stagger.rundir.stage_folder import Completion
from stagger.start.account import start_account


@dataclass(frozen=True)
class Totals:
    """Sums over the completed ranks of a stage; `peak_rss_mb` is the maximum of any rank.

    `bytes_in` counts the bytes of shards, `bytes_out` those of outputs. `cpu_s` is in CPU seconds, `retry_waited_s` in
    seconds, `peak_rss_mb` in MiB. `starts` is the result of `start_account`.
    """

    shards: int
    bytes_in: int
    records_in: int
    records_out: int
    bytes_out: int
    bad_records: dict[str, int]
    bad_examples: list[dict[str, Any]]
    retried: dict[str, int]
    retry_waited_s: float
    cpu_s: float
    peak_rss_mb: int
    starts: dict[str, Any]


def totals(completions: Sequence[Completion]) -> Totals:
    """The sums over `completions`."""
    return Totals(
        shards=sum(record["shards"] for record in completions),
        bytes_in=sum(record["bytes_in"] for record in completions),
        records_in=sum(record["records_in"] for record in completions),
        records_out=sum(record["records_out"] for record in completions),
        bytes_out=sum(record["bytes_out"] for record in completions),
        bad_records=sum_by_kind(record["bad_records"]["skipped"] for record in completions),
        bad_examples=[example for record in completions for example in record["bad_records"]["examples"]][:EXAMPLES],
        retried=sum_by_kind(record["retried"]["requests"] for record in completions),
        retry_waited_s=round(sum(record["retried"]["waited_s"] for record in completions), 3),
        cpu_s=round(sum(record["cpu_s"] for record in completions), 6),
        peak_rss_mb=max((record["peak_rss_mb"] for record in completions), default=0),
        starts=start_account(completions),
    )


def sum_by_kind(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up several counts, and sort the result in descending order.

    >>> sum_by_kind([{"json": 1}, {"json": 1, "utf-8": 5}])
    {'utf-8': 5, 'json': 2}
    """
    total: dict[str, int] = {}
    for count in counts:
        for kind, number in count.items():
            total[kind] = total.get(kind, 0) + number
    return dict(sorted(total.items(), key=lambda item: -item[1]))
