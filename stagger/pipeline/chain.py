"""Turns the steps of a plan into a running pipeline: a chain of iterators, each step pulling from the one before."""

from __future__ import annotations

import functools
import importlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

from stagger.errors import StaggerError
from stagger.pipeline import RUNNERS
from stagger.pipeline.hooks import Writer
from stagger.storage.storage import expand_variables

#: Name in a pipeline file -> module and class of the step. The module is imported when a pipeline names the step.
BUILTIN = {
    "filter": "stagger.steps.filter:Filter",
    "read_csv": "stagger.steps.csv:ReadCsv",
    "read_jsonl": "stagger.steps.jsonl:ReadJsonl",
    "read_parquet": "stagger.steps.parquet:ReadParquet",
    "read_text": "stagger.steps.text:ReadText",
    "read_warc": "stagger.steps.warc:ReadWarc",
    "write_jsonl": "stagger.steps.jsonl:WriteJsonl",
    "write_parquet": "stagger.steps.parquet_writer:WriteParquet",
}

#: `(data, rank, world_size) -> iterator`: datatrove's contract. `data` is None for the first step.
Step = Callable[[Any, int, int], "Iterable[Any] | None"]


def resolve(use: str) -> Any:
    """The class or function that a step's name refers to: a built-in name, or `module:name`.

    Raises StaggerError with the reason when it cannot be imported.
    """
    module, colon, name = BUILTIN.get(use, use).partition(":")
    if not colon:
        raise _unknown(use)
    try:
        target: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # The module is the user's: its import can raise anything.
        raise StaggerError(f"The step {use!r} cannot be imported: {type(error).__name__}: {error}.") from error
    for part in name.split("."):
        if not hasattr(target, part):
            import difflib

            close = difflib.get_close_matches(part, [one for one in vars(target) if not one.startswith("_")], n=1)
            meant = f"; did you mean {close[0]!r}?" if close else "."
            raise StaggerError(f"The step {use!r} cannot be imported: {module} has no {part!r}{meant}")
        target = getattr(target, part)
    return target


def _unknown(use: str) -> StaggerError:
    """The error for a name without a colon that no built-in step has."""
    import difflib

    known = {name.replace("_", ""): name for name in BUILTIN}
    close = difflib.get_close_matches(use.lower().replace("_", ""), known, n=1)
    module, dot, name = use.removesuffix(".py").rpartition(".")
    if close:
        meant = f"; did you mean {known[close[0]]!r}?"
    elif dot and name.isidentifier():
        meant = f"; did you mean '{module}:{name}', with a colon?"
    else:
        meant = "."
    return StaggerError(
        f"There is no step {use!r}{meant} The built-in steps are {', '.join(BUILTIN)}; write any other step as"
        " module:name."
    )


def build(use: str, params: dict[str, Any]) -> Step:
    """A step ready to run: an instance of a class, or a function with `params` filled in.

    `${NAME}` in `params` is replaced from the environment. Raises StaggerError, naming the key, when one is not set.
    """
    target = resolve(use)
    params = cast("dict[str, Any]", expand_variables(params, (use,)))
    step: Step = target(**params) if isinstance(target, type) else functools.partial(target, **params)
    return step


def add_import_path(folders: Iterable[str]) -> None:
    """Make modules in `folders` importable, with lower priority than installed ones."""
    for folder in folders:
        if folder and folder not in sys.path:
            sys.path.append(folder)


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
        try:
            removal = count.removal
            data = step(data, rank, world_size) if removal is None else removal.around(step, data, rank, world_size)
        except BaseException as error:
            count.error = error
            raise
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
