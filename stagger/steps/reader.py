"""What all readers share: finding their shards at launch, and reading the rank's share of them in a task."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from stagger.document import Document
from stagger.errors import BadInput, StaggerError
from stagger.formats import codec_of, decompressed
from stagger.sharding import Shard
from stagger.storage import Storage, absolute, join
from stagger.task_context import TaskContext


class ShardReader:
    """Reads the files below `path` that match `glob`; a rank reads those that the plan gives it.

    `path` may also be a single file. Hidden files and folders (`.name`) are never input: temporary files look so.
    """

    def __init__(self, path: str, glob: str = "*", recursive: bool = False) -> None:
        self.path = absolute(path)
        self.glob = glob
        self.recursive = recursive
        self._task: TaskContext | None = None

    def find_shards(self, storage: Storage) -> list[Shard]:
        """Every shard of the input, sorted by name: one listing, made once, at launch.

        Raises StaggerError when nothing matches.
        """
        found = storage.walk(self.path) if self.recursive else storage.list(self.path)
        whole = "/" in self.glob
        matches = re.compile(path_pattern(self.glob) if whole else fnmatch.translate(self.glob)).match
        shards = sorted(
            Shard._make(entry)
            for entry in found
            if matches(entry.name if whole else entry.name.rpartition("/")[2]) and not is_hidden(entry.name)
        )
        if shards and (gone := min(shards, key=lambda shard: shard.size)).size < 0:
            raise StaggerError(f"{join(self.path, gone.name)} is a link to a file that is gone; restore or remove it.")
        if not shards and (size := storage.size(self.path)) is not None:
            shards = [Shard(self.path, size)]
        if not shards:
            raise StaggerError(
                f"Nothing in {self.path} matches {self.glob!r}"
                f"{'' if self.recursive else ' (folders below it are searched with recursive: true)'};"
                " correct path or glob."
            )
        return shards

    def bind(self, task: TaskContext) -> None:
        self._task = task

    def __call__(self, data: Iterable[Document] | None, rank: int, world_size: int) -> Iterator[Document]:
        if data is not None:
            yield from data
        assert self._task is not None, "a reader is bound to its task before it is called"
        for shard in self._task.shards:
            yield from self._read(self._task, shard)

    def _read(self, task: TaskContext, shard: Shard) -> Iterator[Document]:
        """The documents of one shard. Raises BadInput naming the shard and the record where it is not whole."""
        path = join(self.path, shard.name)
        name = shard.name.rpartition("/")[2] if path == shard.name else shard.name
        count = 0
        task.mark_read()
        try:
            with task.storage.open(path) as raw, decompressed(raw, codec_of(shard.name)) as stream:
                for document in self.read(name, stream):
                    yield document
                    count += 1
                size = raw.tell()
        except FileNotFoundError:
            raise BadInput(f"{path} is gone: it was there when the plan was made") from None
        except BadInput as error:
            raise BadInput(f"{path}, after {count} documents: {error}") from error
        if size != shard.size:
            raise BadInput(f"{path} has changed: {size} bytes now, {shard.size} when the plan was made")

    def read(self, name: str, stream: BinaryIO) -> Iterator[Document]:
        """The documents of one open shard."""
        raise NotImplementedError


def path_pattern(glob: str) -> str:
    """A regular expression for a glob over whole paths: `*` stays within a folder, `**/` is any number of folders."""
    from fsspec.utils import glob_translate

    return str(glob_translate(glob))


def is_hidden(name: str) -> bool:
    return name.startswith(".") or "/." in name


def default_id(name: str, index: int) -> str:
    """An id for a document that has none: the same wherever the input lies, since `name` is relative to its folder."""
    return f"{name}/{index}"
