"""From the steps of a plan to a running pipeline: a chain of iterators, each step pulling from the one before it."""

from __future__ import annotations

import functools
import importlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from stagger.errors import StaggerError

#: Name in a pipeline file -> where the step is. A step's module is imported when a pipeline names it.
BUILTIN = {
    "read_csv": "stagger.steps.csv:ReadCsv",
    "read_jsonl": "stagger.steps.jsonl:ReadJsonl",
    "read_parquet": "stagger.steps.parquet:ReadParquet",
    "read_text": "stagger.steps.text:ReadText",
    "read_warc": "stagger.steps.warc:ReadWarc",
    "write_jsonl": "stagger.steps.jsonl:WriteJsonl",
    "write_parquet": "stagger.steps.parquet_writer:WriteParquet",
}

#: `(data, rank, world_size) -> iterator`, datatrove's contract. `data` is None for the first step.
Step = Callable[[Any, int, int], "Iterable[Any] | None"]


def resolve(use: str) -> Any:
    """The object that a step's name stands for: a built-in's class, or whatever `module:name` holds.

    Raises StaggerError when it cannot be imported, with the reason.
    """
    module, colon, name = BUILTIN.get(use, use).partition(":")
    if not colon:
        import difflib

        close = difflib.get_close_matches(use, BUILTIN, n=1)
        raise StaggerError(
            f"There is no step {use!r}{f'; did you mean {close[0]!r}?' if close else '.'} The built-in ones are"
            f" {', '.join(BUILTIN)}; others are written module:name."
        )
    try:
        target: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # The module is the user's: importing it can raise anything.
        raise StaggerError(f"The step {use!r} cannot be imported: {type(error).__name__}: {error}.") from error
    for part in name.split("."):
        if not hasattr(target, part):
            raise StaggerError(f"The step {use!r} cannot be imported: {module} has no {part!r}.")
        target = getattr(target, part)
    return target


def build(use: str, params: dict[str, Any]) -> Step:
    """A step ready to run: an instance of a class, or a function with `params` filled in."""
    target = resolve(use)
    step: Step = target(**params) if isinstance(target, type) else functools.partial(target, **params)
    return step


def add_import_path(folders: Iterable[str]) -> None:
    """Make modules in `folders` importable, after everything that is installed."""
    for folder in folders:
        if folder and folder not in sys.path:
            sys.path.append(folder)


@dataclass
class StepCount:
    """What one step did in one rank: the records it gave, and the seconds it took to give them."""

    name: str
    records: int = 0
    seconds: float = 0.0
    error: BaseException | None = None


def chain(
    steps: list[Step], counts: list[StepCount], rank: int, world_size: int, check: Callable[[], None]
) -> Iterable[Any]:
    """Connect the steps. Iterating over the result runs them; `counts` has one entry a step, and grows with it.

    `check` is called for every record that the first step gives: it raises when the task has been told to stop.
    """
    data: Iterable[Any] | None = None
    for index, (step, count) in enumerate(zip(steps, counts, strict=True)):
        before = data
        try:
            data = step(data, rank, world_size)
        except BaseException as error:
            count.error = error
            raise
        if data is None:
            if index + 1 < len(steps):
                raise TypeError(f"step {index + 1} ({count.name}) returned None; a step returns an iterator")
            return before or ()  # A sink has read it to its end; one that did not must not leave it unread.
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
    except GeneratorExit:  # A later step wants no more.
        raise
    except BaseException as error:
        count.error = error
        raise
    finally:
        count.records += records
        count.seconds += seconds


def own_seconds(counts: list[StepCount]) -> list[StepCount]:
    """The counts with each step's own time: what `chain` measured includes the steps that it pulled from."""
    before = [0.0, *(count.seconds for count in counts)]
    return [
        StepCount(count.name, count.records, max(0.0, count.seconds - pulled))
        for count, pulled in zip(counts, before, strict=False)
    ]
