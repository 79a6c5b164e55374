"""What the steps of a rank counted and measured: into its completion record, and into its log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from stagger.datatrove.statistics import is_counting, statistics_of
from stagger.pipeline import COUNTS
from stagger.pipeline.chain import Step, StepCount
from stagger.pipeline.statistics import merged, statistics, summed

#: Most names in a line of the log.
SHOWN = 10


def add_statistics(
    record: dict[str, Any], counts: Sequence[StepCount], steps: Sequence[Step], made: Sequence[tuple[Any, Any]] = ()
) -> None:
    """Add to a completion record what each step counted and measured, and the sums over the steps of what was dropped
    by reason, and of what was counted with `count`. `made` are blocks that steps made, with the counts of these.
    """
    ours = [statistics(count.counts) for count in counts]
    elsewhere = statistics(COUNTS)
    totals: dict[str, dict[str, int]] = {"dropped": elsewhere.get("dropped", {}), "counts": elsewhere.get("counts", {})}
    for entry, own, step, count in zip(record["steps"], ours, steps, counts, strict=True):
        every = own
        for block in (step, *(block for place, block in made if place is count.counts)):
            if is_counting(block):
                every = merged(every, statistics_of(block))
        entry.update(every)
        totals["dropped"] = summed(totals["dropped"], every.get("dropped", {}))
        totals["counts"] = summed(totals["counts"], own.get("counts", {}))
    record.update({key: numbers for key, numbers in totals.items() if numbers})


def lines(record: dict[str, Any]) -> Iterator[str]:
    """What the steps of a completion record dropped and counted, a line for each step."""
    for number, step in enumerate(record["steps"], 1):
        found = {"dropped": step.get("dropped"), "counted": step.get("counts")}
        said = [f"{word} {_largest(numbers)}" for word, numbers in found.items() if numbers]
        if said:
            yield f"step {number} ({step['name']}): {'; '.join(said)}"


def _largest(numbers: dict[str, int]) -> str:
    most = sorted(numbers.items(), key=lambda item: -item[1])
    return ", ".join(f"{number:,} {name}" for name, number in most[:SHOWN])
