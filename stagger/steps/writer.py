"""The base of all writers: names the files, splits them by size, and removes those of earlier attempts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from stagger.errors import StaggerError, counted
from stagger.pipeline import Document, Shard
from stagger.pipeline.compression import EXTENSIONS, LEVELS, Codec, check_level, extension_of
from stagger.pipeline.task_context import OutputFile, TaskContext
from stagger.storage.storage import absolute, join

#: File endings that name a format; they do not belong to a file's stem.
FORMATS = (".jsonl", ".ndjson", ".json", ".txt", ".csv", ".tsv", ".parquet", ".warc")

FIELDS = ("rank", "stem", "part")


@dataclass(kw_only=True)
class ShardWriter:
    """Writes files below `path`, and passes the documents on.

    A file appears under its name when its rank is done. A rank without documents writes no file. A rank that runs
    again replaces or removes all files that its earlier attempts wrote.

    Args:
        path: the folder for the output, on any storage.
        filename: the files' names. `{rank}` is the zero-padded rank. `{stem}` is the name of the input shard without
            its endings; the steps then run once per shard, and each shard gets its own output. `{part}` numbers the
            files of a rank or shard if `max_bytes` is set.
        max_bytes: size in bytes at which a file is full; the next document starts another file.
    """

    path: str = field(kw_only=False)
    filename: str = field(kw_only=False)
    max_bytes: int | None = None
    _task: TaskContext | None = field(default=None, init=False, repr=False)
    _file: OutputFile | None = field(default=None, init=False, repr=False)
    _part: int = field(default=0, init=False, repr=False)

    #: The codec's ending, appended to `filename`; and those that other settings would append.
    extension: ClassVar[str] = ""
    extensions: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        self.path = absolute(os.fspath(self.path))
        used = re.findall(r"\{([^{}]*)\}", self.filename)
        if unknown := [name for name in used if name not in FIELDS]:
            raise StaggerError(
                f"filename {self.filename!r}: there is no {{{unknown[0]}}}; valid are {{rank}}, {{stem}} and {{part}}."
            )
        if "/" in self.filename:
            raise StaggerError(f"filename {self.filename!r} contains a '/'; set the folder in `path`.")
        plain = re.sub(r"\{(rank|stem|part)\}", "x", self.filename)
        if not plain or plain.startswith(".") or len(plain) > 150 or re.search(r"[{}\0]", plain):
            raise StaggerError(
                f"filename {self.filename!r} is not a valid file name: use 1 to 150 characters, no leading '.', and no"
                " braces except those of {rank}, {stem} and {part}."
            )
        if self.max_bytes is not None and self.max_bytes < 1:
            raise StaggerError(f"max_bytes is {self.max_bytes}; give the size of a file in bytes, at least 1.")
        if "part" in used and self.max_bytes is None:
            raise StaggerError(
                f"filename {self.filename!r} contains {{part}}, but max_bytes is not set; set it, or remove {{part}}."
            )
        if self.max_bytes is not None and "part" not in used:
            self.filename = with_part(self.filename)
        if re.search(r"[}\d]\{part\}|\{part\}[{\d]", self.filename):
            raise StaggerError(
                f"filename {self.filename!r}: put a letter or a hyphen between {{part}} and the next digit or field."
            )

    @property
    def output_folder(self) -> str:
        """The folder for the output: a launch creates it, and removes what killed attempts left there."""
        return self.path

    @property
    def output_names(self) -> list[str]:
        """Templates of the files' names: those of now, then those with another `max_bytes` or codec."""
        plain = self.filename.replace("-{part}", "")
        names = dict.fromkeys((self.filename, *((plain, with_part(plain)) if "{part}" not in plain else ())))
        endings = dict.fromkeys((self.extension, *self.extensions))
        return [name + ending for name in names for ending in endings if name]

    @property
    def shard_by_shard(self) -> bool:
        """Whether the steps have to run once per shard, so that each output can be traced to its input."""
        return "{stem}" in self.filename

    def check_tasks(self, tasks: int) -> None:
        """Raise StaggerError at launch when several ranks would write the same file."""
        if tasks > 1 and not self.shard_by_shard and "{rank}" not in self.filename:
            raise StaggerError(
                f"filename {self.filename!r} is the same for all {counted(tasks, 'rank')}, which would overwrite"
                " each other's output; put {rank} into it."
            )

    def planned_outputs(self, ranks: Sequence[Sequence[Shard]]) -> Iterator[tuple[str, str]]:
        """(path, source of the output) for all files of a stage, for checks at launch; of split files, the first only.

        Raises StaggerError when the files are named after shards but the stage reads none.
        """
        if self.shard_by_shard and not any(ranks):
            raise StaggerError(f"filename {self.filename!r} has {{stem}}, but the first step reads no files.")
        for rank in range(len(ranks)):
            if not self.shard_by_shard:
                yield join(self.path, self._name("", rank, 0)), f"rank {rank}"
                continue
            for shard in ranks[rank]:
                stem = stem_of(shard.name)
                if not {"", ".", ".."}.isdisjoint(stem.split("/")):
                    raise StaggerError(
                        f"No output can be named after the shard {shard.name}; use {{rank}} in filename instead."
                    )
                yield join(self.path, self._name(stem, rank, 0)), f"shard {shard.name}"

    def bind(self, task: TaskContext) -> None:
        self._task = task

    def _name(self, stem: str, rank: int, part: int) -> str:
        return _filled(self.filename + self.extension, stem, rank, part)

    def open_file(self) -> OutputFile:
        """Open the next file of the rank, or of the current shard."""
        assert self._task is not None
        stem = stem_of(self._task.shards[0].name) if self.shard_by_shard else ""
        path = join(self.path, self._name(stem, self._task.rank, self._part))
        self._part += 1
        return self.new_output(path)

    def new_output(self, path: str) -> OutputFile:
        assert self._task is not None
        return self._task.open_output(path)

    def file_for(self, size: int) -> OutputFile:
        """The file for the next `size` bytes: the current one, or a new one if `max_bytes` would be exceeded."""
        if self._file is not None and self.max_bytes is not None and self._file.size + size > self.max_bytes:
            self.close_file()
        if self._file is None:
            self._file = self.open_file()
        return self._file

    def close_file(self) -> None:
        """Finish the current file; nothing more is written to it."""
        if self._file is not None:
            self._file.finish()
            self._file = None

    def end_shard(self) -> None:
        """Finish the outputs named after a shard, once the steps have run for it.

        The attempt calls this, because a later step may stop early and leave this one suspended.
        """
        if self.shard_by_shard:
            self.close_file()
            self._part = 0

    def __call__(self, data: Iterable[Document] | None, rank: int, world_size: int) -> Iterator[Document]:
        assert self._task is not None, "a writer is bound to its task before it is called"
        return self.write(data or ())

    def write(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Write the documents, and pass each on."""
        raise NotImplementedError


@dataclass(kw_only=True)
class CompressedWriter(ShardWriter):
    """Writes one bytes record per document, through a codec.

    Args:
        compression: zstd, gzip, or null for none.
        level: the codec's level; by default 3 for zstd, 2 for gzip (isal, whose highest level is 3).
    """

    compression: Codec | None = "zstd"
    level: int | None = None

    extensions: ClassVar[tuple[str, ...]] = tuple(map(extension_of, (None, *LEVELS)))

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            check_level(self.compression, self.level)
        except ValueError as error:
            raise StaggerError(f"{error}.") from error

    @property
    def extension(self) -> str:  # type: ignore[override]
        return extension_of(self.compression)

    def new_output(self, path: str) -> OutputFile:
        assert self._task is not None
        return self._task.open_output(path, self.compression, self.level)

    def write(self, documents: Iterable[Document]) -> Iterator[Document]:
        encode = self.encode
        for document in documents:
            record = encode(document)
            self.file_for(len(record) if self.compression is None else 0).write(record)
            yield document

    def encode(self, document: Document) -> bytes:
        """One record, including its end mark."""
        raise NotImplementedError


def with_part(filename: str) -> str:
    """The name with a field for the number of the part, before its endings."""
    stem, dot, ending = filename.partition(".")
    return f"{stem}-{{part}}{dot}{ending}"


def _filled(template: str, stem: str, rank: int, part: int) -> str:
    return template.replace("{rank}", f"{rank:05d}").replace("{part}", f"{part:05d}").replace("{stem}", stem)


def stem_of(name: str) -> str:
    """A shard's name without the endings of its codec and format; it keeps its folders below the reader's folder.

    >>> stem_of("2024/part-1.jsonl.gz"), stem_of("s3://bucket/a.warc.gz"), stem_of("v1.2")
    ('2024/part-1', 'a', 'v1.2')
    """
    if name.startswith("/") or "://" in name:
        name = name.rpartition("/")[2]
    root, ending = os.path.splitext(name)
    if ending.lower() in EXTENSIONS:
        name = root
        root, ending = os.path.splitext(name)
    return root if ending.lower() in FORMATS else name
