"""Optional methods of a step besides `__call__(data, rank, world_size)`; stagger finds each hook by its name.

A step may have any of them. These protocols serve readers and type checkers: no step inherits from them. `Reader` and
`Writer` list the hooks of the readers and writers in stagger/steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from stagger.pipeline import Shard
    from stagger.pipeline.task_context import TaskContext
    from stagger.storage.storage import Storage


class Bound(Protocol):
    """A step that needs the context of its task."""

    def bind(self, task: TaskContext) -> None:
        """Called in the task, once per rank, before the step itself."""


class Costly(Protocol):
    """A step whose creation takes long or needs what only compute nodes have, such as a model on a GPU."""

    @property
    def costly(self) -> bool:
        """True, as an attribute of the class: a launch checks how the step is called, but creates none."""


class Reader(Bound, Protocol):
    """The first step of a pipeline whose input consists of shards."""

    @property
    def allow_empty(self) -> bool:
        """Whether empty shards are valid; if not, a launch warns of them, and reading one fails."""

    @property
    def input_folder(self) -> str:
        """The folder that all its shards lie in, or the path of its only one; empty if they may lie anywhere. A launch
        compares the paths of shards with those of outputs only if outputs lie there too.
        """

    def find_shards(self, storage: Storage) -> Sequence[Shard]:
        """Called at launch: every shard of the input, sorted by name. Raises StaggerError when nothing matches."""

    def path_of(self, shard: Shard) -> str:
        """Called at launch: the whole path of a shard, to check that no output would overwrite an input."""


class Writer(Bound, Protocol):
    """A step that writes files with `TaskContext.open_output`."""

    @property
    def output_folder(self) -> str:
        """The folder of its files. A launch creates it, and removes what killed attempts left there."""

    @property
    def output_names(self) -> list[str]:
        """Templates of the names that its files may have below `output_folder`, whatever its settings: names with the
        fields `{rank}`, `{part}` and `{stem}`. A launch refuses files with such names that its run has not written.
        """

    @property
    def shard_by_shard(self) -> bool:
        """Whether the steps run once per shard, so that each output can be traced to its input."""

    def check_tasks(self, tasks: int) -> None:
        """Called at launch. Raises StaggerError when several of the `tasks` ranks would write the same file."""

    def planned_outputs(self, ranks: Sequence[Sequence[Shard]]) -> Iterator[tuple[str, str]]:
        """Called at launch: (path, source of the output) for each file that the stage would write.

        `ranks[r]` holds the shards of rank r. The launch is rejected if two paths are equal, or one is an input.
        """

    def end_shard(self) -> None:
        """Called in the task after the steps have run for one shard, or for the whole rank."""
