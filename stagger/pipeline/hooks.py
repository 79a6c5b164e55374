"""What a step can have besides `__call__(data, rank, world_size)`: hooks, and what it declares of itself.

Hooks are methods that stagger calls on objects of classes which inherit from `BoundStep`, `Reader` or `Writer`, and on
no others: a class of another library may have a method or an attribute of the same name with another meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from stagger.pipeline import Shard
    from stagger.pipeline.task_context import TaskContext
    from stagger.storage.storage import Storage

Declared = TypeVar("Declared")

#: The attributes that `stateless`, `costly` and `kept` set.
STATELESS, COSTLY, KEPT = "__stagger_stateless__", "__stagger_costly__", "__stagger_kept__"


class BoundStep:
    """A step that needs the context of its task, or checks at launch how many ranks it has."""

    def bind(self, task: TaskContext) -> None:
        """Called in the task, once per rank, before the step itself."""

    def check_tasks(self, tasks: int) -> None:
        """Called at launch. Raises StaggerError when the step cannot be part of a stage of `tasks` ranks, such as when
        several of them would write the same file.
        """

    def check_uses(self, uses: Mapping[str, Any]) -> None:
        """Called once for each launch, before `check_launch`. Raises StaggerError when the step needs other servers.

        `uses` holds the swarms of block servers that the stage uses: name -> its key `blocks`.
        """

    def alone(self, uses: Mapping[str, Any]) -> Mapping[str, Any]:
        """The parameters that replace the step's where none of these servers runs, as in a rehearsal."""
        return {}

    def check_launch(self, storage: Storage) -> None:
        """Called once for each launch, before anything is written. Raises StaggerError when what the step needs beside
        its input, such as the files of a model, is missing or does not suit its parameters.
        """

    def start_requests(self, storage: Storage) -> int:
        """Called at launch: the requests to remote storage that a process makes for what the step needs beside its
        input, before it reads that. `backend_limit` counts them.
        """
        return 0


class Reader(BoundStep):
    """The first step of a pipeline whose input consists of shards. It yields the records of `task.shards`: of all the
    rank's shards, or of one, in several calls.
    """

    #: Whether empty shards are valid; if not, a launch warns of them, and reading one fails.
    allow_empty: bool = True

    @property
    def input_folder(self) -> str:
        """The folder that all its shards lie in, or the path of its only one; empty if they may lie anywhere. A launch
        compares the paths of shards with those of outputs only if outputs lie there too.
        """
        return ""

    def find_shards(self, storage: Storage) -> Sequence[Shard]:
        """Called at launch: every shard of the input, sorted by name. Raises StaggerError when nothing matches."""
        raise NotImplementedError

    def path_of(self, shard: Shard) -> str:
        """Called at launch: the whole path of a shard, to check that no output would overwrite an input."""
        return shard.name


class Writer(BoundStep):
    """A step that writes files with `TaskContext.open_output`."""

    @property
    def output_folder(self) -> str:
        """The folder of its files. A launch creates it, and removes what killed attempts left there."""
        raise NotImplementedError

    @property
    def output_names(self) -> list[str]:
        """Templates of the names that its files may have below `output_folder`, whatever its settings: names with the
        fields `{rank}`, `{part}` and `{stem}`. A launch refuses files with such names that its run has not written.
        """
        return []

    @property
    def shard_by_shard(self) -> bool:
        """Whether the step is called once per shard, between `begin_shard` and `end_shard`, with the records that came
        from it, so that each output can be traced to its input.
        """
        return False

    def planned_outputs(self, ranks: Sequence[Sequence[Shard]]) -> Iterable[tuple[str, str]]:
        """Called at launch: (path, source of the output) for each file that the stage would write.

        `ranks[r]` holds the shards of rank r. The launch is rejected if two paths are equal, or one is an input.
        """
        return ()

    def begin_shard(self, shard: Shard) -> None:
        """Called in the task before the step is called for one shard."""

    def end_shard(self) -> None:
        """Called in the task after the steps have run for one shard, or for the whole rank."""


def bound_steps(steps: Iterable[Any]) -> list[BoundStep]:
    """The steps that have hooks."""
    return [step for step in steps if isinstance(step, BoundStep)]


def writers(steps: Iterable[Any]) -> list[Writer]:
    """The steps that have the hooks of writers."""
    return [step for step in steps if isinstance(step, Writer)]


def stateless(step: Declared) -> Declared:
    """Declare that a step keeps nothing from one call to the next: a decorator for a function or a class, or a call for
    an object: `stateless(RegexFilter(...))`.

    Such a step may be called once for each shard of a rank, in any attempt. Any other step is called once in a rank.
    Subclasses declare it themselves. Raises TypeError for an object that takes no attributes, such as a bound method.
    """
    return _declared(step, STATELESS)


def costly(step: Declared) -> Declared:
    """Declare that the objects of a class take long to create, or need what only compute nodes have, such as a GPU: a
    launch checks how the step is called, but creates none.
    """
    return _declared(step, COSTLY)


def kept(*names: str) -> Callable[[type[Declared]], type[Declared]]:
    """Declare attributes whose values never change once they are set, and depend on nothing but the parameters of a
    step, such as a list that it loads: `@kept("blocked")`. A decorator for a class.

    A process that runs several ranks makes the steps of each anew. Once a rank is done, it hands these values on to the
    steps of the next rank, which need not load them again. Subclasses declare it themselves.
    """

    def declare(kind: type[Declared]) -> type[Declared]:
        setattr(kind, KEPT, names)
        return kind

    return declare


def kept_names(step: Any) -> tuple[str, ...]:
    """The attributes that the class of a step declares as `kept`."""
    names: tuple[str, ...] = vars(type(step)).get(KEPT, ())
    return names


def is_stateless(step: Any) -> bool:
    """Whether a step, or its class or function, is declared `stateless`."""
    if isinstance(step, partial):
        return STATELESS in vars(step) or is_stateless(step.func)
    kind = step if isinstance(step, type) else type(step)
    return STATELESS in getattr(step, "__dict__", {}) or STATELESS in vars(kind)


def is_costly(step: Any) -> bool:
    """Whether a class is declared `costly`, or one that it inherits from."""
    return getattr(step, COSTLY, False) is True


def _declared(step: Declared, mark: str) -> Declared:
    try:
        setattr(step, mark, True)
    except AttributeError:
        raise TypeError(f"{step!r} cannot be declared: it takes no attributes; use a function or a class") from None
    return step
