"""Runs a rank's steps where some are called once per shard and others once per rank.

A step that may keep something from one record to the next, such as a number or an open file, gets the records of all
shards in one call. Before it, each record is noted with its shard. After it, the record itself shows from which shard
it came, even if the step has pulled others ahead. The steps behind it are called once per shard again.

A record that did not go into the step has no shard: StaggerError, and never a guess.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from stagger.errors import StaggerError
from stagger.pipeline.chain import Step, StepCount, chain
from stagger.pipeline.hooks import Writer, writers
from stagger.pipeline.task_context import TaskContext

#: (number of the shard in the rank, record).
Placed = tuple[int, Any]

#: Number of noted records from which on those that no step holds any more are forgotten.
FEWEST_NOTED = 64

#: The shard of an object that was a record of several shards, such as the text "a".
SEVERAL = -1


@dataclass(frozen=True)
class RankSteps:
    """The steps of a rank. `repeatable` holds for each of them whether it may be called once per shard."""

    steps: list[Step]
    repeatable: Sequence[bool]
    counts: list[StepCount]
    task: TaskContext
    check: Callable[[], None]

    def run(self) -> None:
        """Exhaust the last step. Raises StaggerError when the shard of a record cannot be known."""
        placed: Iterator[Placed] | None = None
        before = range(0)
        for repeatable, numbers in groupby(range(len(self.steps)), key=self.repeatable.__getitem__):
            part = range(before.stop, before.stop + len(list(numbers)))
            placed = self._once_per_shard(part, placed, before) if repeatable else self._once(part, placed)
            before = part
        for _ in placed or ():
            pass
        for writer in self._writers(range(len(self.steps))):
            writer.end_shard()  # A step behind it may have stopped early.

    def _writers(self, part: range) -> list[Writer]:
        """The writers among a part of the steps, and what writes the documents that one of them removes."""
        removals = (count.removal for count in self.counts[part.start : part.stop])
        steps = writers(self.steps[part.start : part.stop])
        return [*steps, *(removal for removal in removals if removal is not None)]

    def _once_per_shard(self, part: range, placed: Iterator[Placed] | None, before: range) -> Iterator[Placed]:
        """The records of a part of the steps, which is called for each shard, also for one without records."""
        shards = self.task.shard_by_shard() if placed is None else iter(self.task.all_shards)
        groups = None if placed is None else Groups(placed, lambda: self._out_of_order(before))
        named = self._writers(part)
        for number, shard in enumerate(shards):
            for writer in named:
                writer.begin_shard(shard)
            for record in self._chain(part, None if groups is None else groups.of(number)):
                yield number, record
            for writer in named:
                writer.end_shard()
            if groups is not None:
                groups.pass_over(number)

    def _once(self, part: range, placed: Iterator[Placed] | None) -> Iterator[Placed]:
        """The records of a part of the steps, which is called once. Each must be one of those that went in."""
        origins = Origins()
        for count in self.counts[part.start : part.stop]:
            if count.removal is not None:
                count.removal.other_holders = 1  # The note of its shard, as long as it is inside.
        for record in self._chain(part, origins.noted(placed or iter(()))):
            number = origins.of(record)
            if number is None:
                raise self._unknown(part)
            yield number, record

    def _chain(self, part: range, data: Iterable[Any] | None) -> Iterable[Any]:
        return chain(self.steps, self.counts, self.task.rank, self.task.world_size, self.check, part, data)

    def _unknown(self, part: range) -> StaggerError:
        return self._failed(
            part,
            "yields a record that did not go into it, so the shard for {stem} is unknown",
        )

    def _out_of_order(self, part: range) -> StaggerError:
        return self._failed(
            part,
            "yields a record of an earlier shard after one of a later shard, but the outputs for {stem} are written one"
            " after another",
        )

    def _failed(self, part: range, what: str) -> StaggerError:
        names = [f"step {number + 1} ({self.counts[number].name})" for number in part]
        error = StaggerError(
            f"{'One of ' if len(names) > 1 else ''}{', '.join(names)} {what}. If a step keeps nothing from one call to"
            " the next, declare it (`stateless: true` beside the step in the pipeline file, or @stagger.stateless above"
            " its function or class), and it is called once per shard; otherwise put {rank} into the filename in place"
            " of {stem}."
        )
        self.counts[part.stop - 1].error = error
        return error


class Groups:
    """Divides a stream of records into those of one shard after another."""

    def __init__(self, placed: Iterator[Placed], out_of_order: Callable[[], StaggerError]) -> None:
        self._placed = placed
        self._out_of_order = out_of_order
        self._next: Placed | None = None

    def of(self, number: int) -> Iterator[Any]:
        """The records of a shard. Raises StaggerError for one of an earlier shard."""
        while (placed := self._next or next(self._placed, None)) is not None:
            self._next = None
            if placed[0] > number:
                self._next = placed
                return
            if placed[0] < number:
                raise self._out_of_order()
            yield placed[1]

    def pass_over(self, number: int) -> None:
        """Drop the records of a shard that were not asked for."""
        for _ in self.of(number):
            pass


class Origins:
    """The shards of records on their way through steps. A record is known as the same object.

    It is noted as long as a step holds it: an object that is gone could leave its identity to a new one.
    """

    def __init__(self) -> None:
        self._noted: dict[int, Placed] = {}
        self._most = FEWEST_NOTED
        self._unheld = next(sys.getrefcount(placed[1]) for placed in [(0, object())])

    def noted(self, placed: Iterator[Placed]) -> Iterator[Any]:
        """Note the records on their way in."""
        for number, record in placed:
            if len(self._noted) >= self._most:
                self._forget()
            known = self._noted.get(id(record))
            self._noted[id(record)] = (number if known is None or known[0] == number else SEVERAL, record)
            yield record

    def of(self, record: Any) -> int | None:
        """The number of a record's shard; None if it did not come in, or came in from several shards."""
        number, _ = self._noted.get(id(record), (SEVERAL, None))
        return None if number == SEVERAL else number

    def _forget(self) -> None:
        """Forget the records that no step holds any more."""
        self._noted = {key: placed for key, placed in self._noted.items() if sys.getrefcount(placed[1]) > self._unheld}
        self._most = max(FEWEST_NOTED, 2 * len(self._noted))
