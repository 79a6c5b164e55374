"""What all readers share: finding their shards at launch, and reading the rank's share of them in a task."""

from __future__ import annotations

import codecs
import io
import os
import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Literal, cast

from stagger.errors import BadInput, BadRecord, StaggerError
from stagger.pipeline.compression import ReadCodec, codec_of, content
from stagger.pipeline.document import Document, Shard
from stagger.pipeline.task_context import TaskContext
from stagger.storage import Entry
from stagger.storage.storage import Storage, absolute, is_local, join

#: What compressed files begin with, and no text.
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zX": "xz"}


class OpenShard:
    """A shard that is being read: its content, and which record the reader is at.

    `name` is the same wherever the input lies: relative to the reader's folder. `record` counts from 0.
    """

    def __init__(self, name: str, path: str, codec: ReadCodec | None, pieces: Iterator[bytes]) -> None:
        self.name = name
        self.path = path
        self.codec = codec
        self.record = -1
        self.byte = -1
        self._pieces = pieces
        self._taken = 0
        self._stream: io.BufferedReader | None = None

    @property
    def stream(self) -> io.BufferedReader:
        """The content, decompressed; its end is reached only if the file is whole."""
        if self._stream is None:
            self._stream = content(self._pieces, self.codec)
        return self._stream

    @property
    def text_stream(self) -> io.BufferedReader:
        """The content of a text file, behind its byte order mark. Raises BadInput for one that is compressed."""
        start = self.stream.peek(4)[:4]
        if start.startswith(codecs.BOM_UTF8):
            self.stream.read(len(codecs.BOM_UTF8))
        for magic, codec in MAGIC.items():
            if start.startswith(magic):
                raise BadInput(f"the content is {codec}, which the file's name does not say: set compression")
        return self.stream

    def as_file(self) -> BinaryIO:
        """The file as it is stored, to be read at any place: a remote one is fetched whole, to this machine's disk."""
        if is_local(self.path):
            return open(self.path, "rb")
        import tempfile

        file = tempfile.TemporaryFile(prefix="stagger-")  # noqa: SIM115 # Handed on.
        try:
            for piece in self._pieces:
                file.write(piece)
            self._taken = file.tell()
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return cast("BinaryIO", file)

    def took(self, size: int) -> None:
        """Note the file's size, where it was not read through `stream`."""
        self._taken = size

    @property
    def taken(self) -> int:
        """Bytes of the file that have been read."""
        return self._taken if self._stream is None else cast("int", self._stream.raw.taken)  # type: ignore[attr-defined]

    def place(self) -> str:
        """Which record is bad, counted from 1, and where it begins in the content, as far as that is known."""
        if self.byte >= 0:
            return f"record {self.record + 1}, byte {self.byte}"
        if self._stream is None:
            return f"record {max(self.record, 0) + 1}"
        # It broke off while the next record was being read.
        return f"record {self.record + 2}, byte {self._stream.raw.line_start}"  # type: ignore[attr-defined]


@dataclass(kw_only=True)
class ShardReader:
    """Reads the files below `path` that match `glob`; a rank reads those that the plan gives it.

    Hidden files and folders (`.name`) are never input: temporary files look so.

    Args:
        path: a folder or a file, on any storage.
        glob: which files of the folder; matched against the name, or against the path below `path` if it has a `/`.
        recursive: whether folders below `path` are searched too.
        paths_file: a file that lists the input instead, a path a line, relative to `path` or whole.
        compression: gzip, zstd, bz2, xz, or null for none; by default what the file's name says.
        limit: how many documents a rank reads at most.
        add_source: whether documents get their shard's path and their number in it, as `shard` and `position` in the
            metadata.
        on_bad_record: whether a record that cannot be read fails the rank, or is skipped and counted. A truncated or
            damaged file always fails it.
        max_bad_records: how many a rank skips before it fails.
        allow_empty: whether a file of no bytes is taken for one without documents, and not for a damaged one.
    """

    path: str = field(kw_only=False)
    glob: str = "*"
    recursive: bool = False
    paths_file: str | None = None
    compression: ReadCodec | Literal["auto"] | None = "auto"
    limit: int | None = None
    add_source: bool = False
    on_bad_record: Literal["fail", "skip"] = "fail"
    max_bad_records: int = 100
    allow_empty: bool = False
    _task: TaskContext | None = field(default=None, init=False, repr=False)
    _given: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        self.path = absolute(os.fspath(self.path))
        if self.paths_file is not None:
            self.paths_file = absolute(os.fspath(self.paths_file))
        for name in ("limit", "max_bad_records"):
            if (getattr(self, name) or 0) < 0:
                raise StaggerError(f"{name} is {getattr(self, name)}; it counts, and cannot be negative.")

    def find_shards(self, storage: Storage) -> list[Shard]:
        """Every shard of the input, sorted by name: one listing, made once, at launch.

        Raises StaggerError when nothing matches.
        """
        import fnmatch  # Only a launch lists.

        if self.paths_file is not None:
            return self._listed_shards(storage, self.paths_file)
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
        if not shards and (entry := storage.entry(self.path)) is not None:
            shards = [Shard(self.path, entry.size, entry.version)]
        if not shards:
            raise StaggerError(
                f"Nothing in {self.path} matches {self.glob!r}"
                f"{'' if self.recursive else ' (folders below it are searched with recursive: true)'};"
                " correct path or glob."
            )
        return shards

    def _listed_shards(self, storage: Storage, paths_file: str) -> list[Shard]:
        """The shards that a file names, in its order."""
        try:
            lines = storage.read(paths_file).decode("utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise StaggerError(f"paths_file {paths_file} cannot be read: {error}.") from error
        names = [self._named(line.strip()) for line in lines if line.strip()]
        if not names:
            raise StaggerError(f"paths_file {paths_file} is empty; list a path on each line.")
        paths = [join(self.path, name) for name in names]
        if twice := [path for path, count in Counter(paths).items() if count > 1]:
            raise StaggerError(f"paths_file {paths_file} names {twice[0]} twice; its documents would be read twice.")
        found = storage.entries(paths)
        for name, entry in zip(names, found, strict=True):
            if entry is None:
                raise StaggerError(f"{join(self.path, name)}, which {paths_file} names, does not exist.")
        return [Shard(name, e.size, e.version) for name, e in zip(names, cast("list[Entry]", found), strict=True)]

    def _named(self, line: str) -> str:
        """One name for each file: relative where it is below `path`."""
        if not is_local(self.path) or not is_local(line):
            return line.removeprefix(f"{self.path}/")
        path = os.path.normpath(join(self.path, line.removeprefix("file://")))
        return path.removeprefix(f"{self.path}/")

    def bind(self, task: TaskContext) -> None:
        self._task = task

    def __call__(self, data: Iterable[Document] | None, rank: int, world_size: int) -> Iterator[Document]:
        if data is not None:
            yield from data
        assert self._task is not None, "a reader is bound to its task before it is called"
        for shard in self._task.shards:
            documents = self._documents(self._task, shard)
            if self.limit is None:
                yield from documents
                continue
            while self._given < self.limit and (document := next(documents, None)) is not None:
                self._given += 1
                yield document
            if self._given >= self.limit:
                documents.close()
                return

    def path_of(self, shard: Shard) -> str:
        """Where a shard lies. A listed name is always below `path`: a key of an object store may look like anything."""
        if self.paths_file is not None or shard.name == self.path:
            return join(self.path, shard.name)
        return f"{self.path.rstrip('/')}/{shard.name}"

    def _documents(self, task: TaskContext, shard: Shard) -> Generator[Document, None, None]:
        """The documents of one shard. Raises BadInput naming the shard and the place where it is not whole."""
        path = self.path_of(shard)
        name = shard.name.rpartition("/")[2] if path == shard.name else shard.name
        codec = codec_of(shard.name) if self.compression == "auto" else self.compression
        if not shard.size:
            if not self.allow_empty:
                raise BadInput(
                    f"{path}, record 1, byte 0: the file is empty, which no whole file is unless allow_empty says so"
                )
            return
        source = OpenShard(name, path, codec, task.stream(shard, self.path_of))
        try:
            documents = self.read(source)
            if self.add_source:
                documents = with_source(documents, source)
            yield from documents
        except FileNotFoundError:
            raise BadInput(f"{path} is gone: it was there when the plan was made") from None
        except BadInput as error:
            raise BadInput(f"{path}, {source.place()}: {error}") from error
        except OSError as error:
            raise BadInput(f"{path}, {source.place()}: {type(error).__name__}: {error.strerror or error}") from error
        if source.taken != shard.size:
            raise BadInput(f"{path} has changed: {source.taken} bytes now, {shard.size} when the plan was made")

    def bad(self, shard: OpenShard, kind: str, reason: str) -> None:
        """The record at `shard.byte` cannot be read: note it when bad records are skipped, else raise BadRecord."""
        if self.on_bad_record != "skip":
            raise BadRecord(kind, reason)
        assert self._task is not None
        count = self._task.skipped(shard.path, shard.record + 1, shard.byte, kind, reason)
        if count > self.max_bad_records:
            raise BadInput(
                f"{reason}; with it {count} records of this rank are bad, more than max_bad_records"
                f" ({self.max_bad_records})"
            )
        shard.byte = -1

    def read(self, shard: OpenShard) -> Iterator[Document]:
        """The documents of one shard."""
        raise NotImplementedError


def with_source(documents: Iterator[Document], shard: OpenShard) -> Iterator[Document]:
    for document in documents:
        document.metadata["shard"] = shard.path
        document.metadata["position"] = shard.record
        yield document


def path_pattern(glob: str) -> str:
    """A regular expression for a glob over whole paths: `*` stays within a folder, `**/` is any number of folders."""
    from fsspec.utils import glob_translate

    return str(glob_translate(glob))


def is_hidden(name: str) -> bool:
    return name.startswith(".") or "/." in name


def default_id(name: str, index: int) -> str:
    """An id for a document that has none: the same wherever the input lies, since `name` is relative to its folder."""
    return f"{name}/{index}"
