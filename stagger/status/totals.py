"""Sums over the completion records of a stage, for `stagger status`, stats.json and the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from stagger.pipeline.statistics import bounded
from stagger.pipeline.task_context import EXAMPLES
from stagger.rundir.completion_table import CompletionTable, StepColumns
from stagger.start.account import start_account
from stagger.status.step_totals import StepTotals, add

#: Sums over a million ranks are below this; Python's dates and floats can hold it.
LARGEST_SUM = 10**18


@dataclass(frozen=True)
class Totals:
    """Sums over the completed ranks of a stage; `peak_rss_mb` is the maximum of any rank.

    `bytes_in` counts the bytes of shards, `bytes_out` those of outputs. `cpu_s` is in CPU seconds, `retry_waited_s` in
    seconds, `peak_rss_mb` in MiB. `starts` is the result of `start_account`. `steps` holds what each step did.
    """

    shards: int
    bytes_in: int
    records_in: int
    records_out: int
    bytes_out: int
    bad_records: dict[str, int]
    bad_examples: list[dict[str, Any]]
    left_out: dict[str, int]
    dropped: dict[str, int]
    counts: dict[str, int]
    retried: dict[str, int]
    retry_waited_s: float
    cpu_s: float
    peak_rss_mb: int
    starts: dict[str, Any]
    steps: list[dict[str, Any]]


def totals(table: CompletionTable) -> Totals:
    """The sums over the ranks of `table`."""
    records_in, records_out, bytes_out = sum(table.records_in), sum(table.records_out), sum(table.bytes_out)
    retry_waited_s = sum(table.waited_s)
    if not all(0 <= number < LARGEST_SUM for number in (records_in, records_out, bytes_out, retry_waited_s)):
        raise OverflowError("the completion records have negative or impossible numbers")
    bad_records = [one for one in table.bad_records if one]
    examples = (example for one in bad_records for example in one["examples"])
    return Totals(
        shards=sum(table.shards),
        bytes_in=sum(table.bytes_in),
        records_in=records_in,
        records_out=records_out,
        bytes_out=bytes_out,
        bad_records=counted(one["skipped"] for one in bad_records),
        bad_examples=list(islice(examples, EXAMPLES)),
        left_out=counted(table.left_out),
        dropped=dict(Counter(bounded(counted(table.dropped))).most_common()),
        counts=dict(Counter(bounded(counted(table.counts))).most_common()),
        retried=counted(table.requests),
        retry_waited_s=round(retry_waited_s, 3),
        cpu_s=round(sum(table.cpu_s), 6),
        peak_rss_mb=max(table.peak_rss_mb, default=0),
        starts=start_account(table.attempts(), table.script_started, table.delay_s),
        steps=[step_totals(step).document() for step in table.steps],
    )


def counted(column: Iterable[Mapping[str, int] | None]) -> dict[str, int]:
    """The sum of the counts by kind in a column, the largest first."""
    sums: Counter[str] = Counter()
    add(sums, column)
    return dict(sums.most_common())


def step_totals(step: StepColumns) -> StepTotals:
    """The sums over the ranks of one step."""
    sums = StepTotals(step.name, sum(step.records), sum(step.seconds))
    for statistics in filter(None, step.statistics):
        sums.add(statistics)
    return sums
