"""A step that may keep state gets a rank's records in one call; the steps around it are called once per shard."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from stagger.errors import StaggerError
from stagger.pipeline import Shard
from stagger.pipeline.chain import Step, StepCount
from stagger.pipeline.hooks import Reader, Writer, stateless
from stagger.pipeline.shard_boundaries import FEWEST_NOTED, RankSteps
from stagger.pipeline.task_context import TaskContext
from stagger.storage.storage import Storage

SHARDS = [Shard(name, 1) for name in "abc"]


class Record:
    """Neither equal to another, nor a constant."""

    def __init__(self, name: str) -> None:
        self.name = name


class Source(Reader):
    """Four records for each shard: `a0` to `a3`, and so on."""

    def bind(self, task: TaskContext) -> None:
        self.task = task

    def __call__(self, data: None, rank: int, world_size: int) -> Iterator[Record]:
        for shard in self.task.shards:
            yield from (Record(f"{shard.name}{number}") for number in range(4))


class Sink(Writer):
    """What it got, by shard."""

    shard_by_shard = True

    def __init__(self) -> None:
        self.got: dict[str, list[str]] = {}
        self.shard: str | None = None

    def begin_shard(self, shard: Shard) -> None:
        self.shard = shard.name
        self.got[shard.name] = []

    def end_shard(self) -> None:
        self.shard = None

    def __call__(self, data: Iterable[Record], rank: int, world_size: int) -> Iterator[Record]:
        for record in data:
            assert self.shard is not None
            self.got[self.shard].append(record.name)
            yield record


def run(*steps: Step, repeatable: Callable[[Any], bool] = lambda step: False) -> list[StepCount]:
    source = Source()
    task = TaskContext(Storage(), 0, 1, SHARDS, "tag")
    source.bind(task)
    every: list[Any] = [source, *steps]
    counts = [StepCount(str(number)) for number in range(len(every))]
    may = [isinstance(step, (Reader, Writer)) or repeatable(step) for step in every]
    RankSteps(every, may, counts, task, lambda: None).run()
    return counts


def every(name: str) -> list[str]:
    return [f"{name}{number}" for number in range(4)]


def counting(data: Iterable[Record], rank: int, world_size: int) -> Iterator[Record]:
    """Drops every fifth record that it gets."""
    for number, record in enumerate(data):
        if number % 5:
            yield record


def in_batches(data: Iterable[Record], rank: int, world_size: int) -> Iterator[Record]:
    records = iter(data)
    while batch := list(itertools.islice(records, 7)):
        yield from batch


def test_a_step_that_counts_gets_all_records_of_the_rank_in_one_call() -> None:
    sink = Sink()
    counts = run(counting, sink)
    assert sink.got == {"a": ["a1", "a2", "a3"], "b": ["b0", "b2", "b3"], "c": ["c0", "c1", "c3"]}
    assert [count.records for count in counts] == [12, 9, 9]


def test_a_step_that_pulls_ahead_moves_no_boundary() -> None:
    first, second = Sink(), Sink()
    run(first, in_batches, counting, in_batches, second)
    assert first.got == {name: every(name) for name in "abc"}
    assert second.got == {"a": ["a1", "a2", "a3"], "b": ["b0", "b2", "b3"], "c": ["c0", "c1", "c3"]}


def test_each_shard_begins_and_ends_though_nothing_is_left_of_it() -> None:
    sink = Sink()
    run(lambda data, rank, world_size: (record for record in data if record.name[0] == "b"), sink)
    assert sink.got == {"a": [], "b": every("b"), "c": []}


def test_a_record_that_is_passed_on_twice_is_of_its_shard_twice() -> None:
    sink = Sink()
    run(lambda data, rank, world_size: (one for record in data for one in (record, record)), sink)
    assert sink.got["c"] == ["c0", "c0", "c1", "c1", "c2", "c2", "c3", "c3"]


def test_steps_that_stop_early_get_no_more() -> None:
    sink = Sink()
    run(lambda data, rank, world_size: itertools.islice(data, 6), sink)
    assert sink.got == {"a": every("a"), "b": ["b0", "b1"], "c": []}
    sink, calls = Sink(), []

    def first(data: Iterable[Record], rank: int, world_size: int) -> Iterator[Record]:
        calls.append(1)
        return itertools.islice(data, 1)

    run(counting, sink, first, repeatable=lambda step: step is first)
    assert len(calls) == 3
    assert [names[0] for names in sink.got.values()] == ["a1", "b0", "c0"]


def copies(data: Iterable[Record], rank: int, world_size: int) -> Iterator[Record]:
    yield from (Record(record.name) for record in data)


ONE = Record("one")


def constants(data: Iterable[Record], rank: int, world_size: int) -> Iterator[Record]:
    """The same object from each shard."""
    yield from (ONE for _ in data)


def test_a_record_whose_shard_nobody_knows_is_refused() -> None:
    with pytest.raises(StaggerError, match=r"step 2 \(1\) yields a record that did not.*stateless: true.*put \{rank\}"):
        run(copies, Sink())
    with pytest.raises(StaggerError, match=r"One of step 3 \(2\), step 4 \(3\) yields a record that did not"):
        run(Sink(), counting, copies, Sink())
    with pytest.raises(StaggerError, match="yields a record that did not"):
        run(constants, counting, Sink(), repeatable=lambda step: step is constants)


def test_a_step_that_declares_it_is_called_once_per_shard_and_may_make_records() -> None:
    sink = Sink()
    run(copies, sink, repeatable=lambda step: True)
    assert sink.got == {name: every(name) for name in "abc"}
    sink = Sink()
    run(copies, counting, sink, repeatable=lambda step: step is copies)
    assert sink.got["a"] == ["a1", "a2", "a3"]


def test_records_of_a_shard_after_those_of_a_later_one_are_refused() -> None:
    with pytest.raises(StaggerError, match=r"step 2 \(1\) yields a record of an earlier shard"):
        run(lambda data, rank, world_size: reversed(list(data)), Sink())

    def within(data: Iterable[Record], rank: int, world_size: int) -> Iterator[Record]:
        yield from sorted(data, key=lambda record: (record.name[0], -int(record.name[1])))

    sink = Sink()
    run(within, sink)
    assert sink.got["b"] == every("b")[::-1]


def test_a_dropped_record_is_not_kept_in_memory() -> None:
    alive: list[weakref.ref[Record]] = []

    def many(data: Iterable[Record], rank: int, world_size: int) -> Iterator[Record]:
        for record in data:
            for number in range(500):
                copy = Record(f"{record.name}-{number}")
                alive.append(weakref.ref(copy))
                yield copy
                assert sum(one() is not None for one in alive[-1000:]) <= FEWEST_NOTED + 8

    def none(data: Iterable[Record], rank: int, world_size: int) -> Iterator[Record]:
        yield from (record for record in data if record.name == "nobody")

    run(many, none, Sink(), repeatable=lambda step: step is many)
    assert len(alive) == 6000


def test_only_the_last_step_may_return_nothing() -> None:
    def nothing(data: Iterable[Record], rank: int, world_size: int) -> None:
        list(data)

    with pytest.raises(TypeError, match=r"step 2 \(1\) returned None"):
        run(nothing, Sink())
    sink = Sink()
    run(sink, nothing)
    assert sink.got["c"] == every("c")


def test_what_a_step_raises_is_noted_at_the_step() -> None:
    def fails(data: Iterable[Record], rank: int, world_size: int) -> Iterator[Record]:
        for record in data:
            if record.name == "b2":
                raise ValueError("no")
            yield record

    sink = Sink()
    with pytest.raises(ValueError, match="no"):
        run(fails, sink)
    assert sink.got == {"a": every("a"), "b": ["b0", "b1"]}


def test_declarations_are_of_the_class_itself() -> None:
    from functools import partial

    from stagger.pipeline.hooks import is_stateless

    @stateless
    class Mine:
        pass

    class Sub(Mine):
        pass

    @stateless
    def function() -> None:
        pass

    assert [is_stateless(one) for one in (Mine, Mine(), Sub, Sub(), function, partial(function), partial(print))] == [
        True,
        True,
        False,
        False,
        True,
        True,
        False,
    ]
    with pytest.raises(TypeError, match="takes no attributes"):
        stateless(object())
