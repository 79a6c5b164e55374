"""What a step may have beside `__call__(data, rank, world_size)`: each hook is looked for by its name.

All are optional, and a step may have any of them. These protocols are for reading and for types: no step inherits from
them. `Reader` and `Writer` list the hooks that the readers and writers of stagger/steps have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from stagger.pipeline.document import Shard
    from stagger.pipeline.task_context import TaskContext
    from stagger.storage.storage import Storage


class Bound(Protocol):
    """A step that wants to know the task it runs in."""

    def bind(self, task: TaskContext) -> None:
        """Called in the task, once per rank, before the step is called."""


class Reader(Bound, Protocol):
    """The first step of a pipeline, when its input can be divided into shards."""

    @property
    def allow_empty(self) -> bool:
        """Whether an empty shard has no documents; otherwise a launch warns of empty shards, and reading one fails."""

    def find_shards(self, storage: Storage) -> list[Shard]:
        """Called at launch: every shard of the input, sorted by name. Raises StaggerError when nothing matches."""

    def path_of(self, shard: Shard) -> str:
        """Called at launch: the whole path of a shard, so that no output replaces an input."""


class Writer(Bound, Protocol):
    """A step that writes files by `TaskContext.open_output`."""

    @property
    def output_folder(self) -> str:
        """The folder of its files. A launch makes it, and removes what killed attempts left there."""

    @property
    def shard_by_shard(self) -> bool:
        """Whether the steps run for each shard by itself, so that each output can be traced to its input."""

    def check_tasks(self, tasks: int) -> None:
        """Called at launch: raise StaggerError when `tasks` ranks would write the same file."""

    def planned_outputs(self, ranks: Sequence[Sequence[Shard]]) -> Iterator[tuple[str, str]]:
        """Called at launch: (path, what it is the output of) of each file that the stage would write.

        `ranks[r]` holds the shards of rank r. Two equal paths, or an input among them, refuse the launch.
        """

    def end_shard(self) -> None:
        """Called in the task after the steps have run for a shard, or for the whole rank."""
