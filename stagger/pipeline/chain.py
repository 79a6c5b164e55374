"""Turns the steps of a plan into a running pipeline: a chain of iterators, each step pulling from the one before."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

from stagger.pipeline import RUNNERS
from stagger.pipeline.hooks import Writer
from stagger.pipeline.names import resolve
from stagger.storage.storage import expand_variables

#: `(data, rank, world_size) -> iterator`: datatrove's contract. `data` is None for the first step.
Step = Callable[[Any, int, int], "Iterable[Any] | None"]


def build(use: str, params: dict[str, Any]) -> Step:
    """A step ready to run: an instance of a class, or a function with `params` filled in.

    `${NAME}` in `params` is replaced from the environment, and the objects that they describe are made (objects.py).
    Raises StaggerError, naming the key, when a variable is not set, or an object cannot be made.
    """
    target = resolve(use)
    params = cast("dict[str, Any]", expand_variables(params, (use,)))
    if any(isinstance(value, (dict, list)) for value in params.values()):
        from stagger.pipeline.objects import arguments  # Imported late: few steps have such parameters.

        params = arguments(target, params)
    step: Step = target(**params) if isinstance(target, type) else functools.partial(target, **params)
    return step


class Removal(Writer):
    """What writes the documents that a step removes (steps/removed.py)."""

    #: How many others hold each document while it is in the step.
    other_holders: int = 0

    def around(self, step: Step, data: Any, rank: int, world_size: int) -> Iterable[Any]:
        """Call a step in place of the chain. Returns what it yields."""
        raise NotImplementedError


@dataclass
class StepCount:
    """One step's work in one rank: the records it yielded, the seconds this took, and what it counted by name."""

    name: str
    records: int = 0
    seconds: float = 0.0
    error: BaseException | None = None
    counts: dict[str, int] = field(default_factory=dict)
    #: Calls the step in place of the chain, and writes what does not come out.
    removal: Removal | None = field(default=None, repr=False)


def chain(
    steps: list[Step],
    counts: list[StepCount],
    rank: int,
    world_size: int,
    check: Callable[[], None],
    part: range | None = None,
    data: Iterable[Any] | None = None,
) -> Iterable[Any]:
    """Connect the steps. Iterating over the result runs them, and updates `counts`, which has one entry per step.

    `check` is called for each record of the first step, and raises when the task has to stop. With `part`, only these
    steps are connected, and the first of them gets `data`.
    """
    for index in part or range(len(steps)):
        step, count, before = steps[index], counts[index], data
        started = time.perf_counter()
        try:
            removal = count.removal
            data = step(data, rank, world_size) if removal is None else removal.around(step, data, rank, world_size)
        except BaseException as error:
            count.error = error
            raise
        finally:
            count.seconds += time.perf_counter() - started  # Some steps do all their work within this call.
        if data is None:
            if index + 1 < len(steps):
                raise TypeError(
                    f"step {index + 1} ({count.name}) returned None; only the last step may: return an iterator"
                )
            return before or ()  # A final step may return None. If it did not exhaust its input, the caller will.
        data = _counted(data, count, check if index == 0 else None)
    return data or ()


def _counted(data: Iterable[Any], count: StepCount, check: Callable[[], None] | None) -> Iterator[Any]:
    clock = time.perf_counter
    records, seconds, started = 0, 0.0, clock()
    try:
        for record in data:
            seconds += clock() - started
            records += 1
            if check is not None:
                check()
            yield record
            started = clock()
        seconds += clock() - started
    except GeneratorExit:  # A later step stopped early.
        raise
    except BaseException as error:
        count.error = error
        raise
    finally:
        count.records += records
        count.seconds += seconds


RUNNERS.update({chain.__code__: "count", _counted.__code__: "count"})


def own_seconds(counts: list[StepCount]) -> list[StepCount]:
    """The counts with each step's own seconds: those of `chain` include the steps that it pulled from."""
    before = [0.0, *(count.seconds for count in counts)]
    return [
        replace(count, seconds=max(0.0, count.seconds - pulled)) for count, pulled in zip(counts, before, strict=False)
    ]
