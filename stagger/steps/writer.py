"""The base of all writers: names the files, splits them by size, and removes those of earlier attempts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast

from stagger.errors import StaggerError, counted
from stagger.pipeline import Document, Shard
from stagger.pipeline.compression import EXTENSIONS, LEVELS, Codec, check_level, codec_of, extension_of
from stagger.pipeline.hooks import Writer
from stagger.pipeline.task_context import OutputFile, TaskContext
from stagger.storage.storage import absolute, join

if TYPE_CHECKING:
    from stagger.steps.split_files import SplitFiles, Waiting

#: File endings that name a format; they do not belong to a file's stem.
FORMATS = (".jsonl", ".ndjson", ".json", ".txt", ".csv", ".tsv", ".parquet", ".warc")

FIELDS = ("rank", "stem", "part")


@dataclass(kw_only=True)
class ShardWriter(Writer):
    """Writes files below `path`, and passes the documents on.

    A file appears under its name when its rank is done. A rank without documents writes no file. A rank that runs
    again replaces or removes all files that its earlier attempts wrote.

    Args:
        path: the folder for the output, on any storage.
        filename: the files' names. `{rank}` is the zero-padded rank. `{stem}` is the name of the input shard without
            its endings; the steps then run once per shard, and each shard gets its own output. `{part}` numbers the
            files of a rank or shard if `max_bytes` is set. Any other field is a key of the metadata, as in
            `{language}/{rank}.jsonl`, or of an object in it (`{source.name}`): each value has its own files.
        filename_default: the value for documents that lack a key of `filename`, or have null or an empty text there;
            by default they are an error.
        max_open_files: number of files that a rank holds open if `filename` has keys of the metadata. Each takes about
            3 MB of memory for zstd at its default level. If there are more values, files are compressed in several
            frames.
        max_bytes: size in bytes at which a file is full; the next document starts another file.
        adapter: makes the record of each document: a function, or `module:name` in a pipeline file. It is called as
            `adapter(writer, document)`, and returns a dict.
    """

    path: str = field(kw_only=False)
    filename: str = field(kw_only=False)
    max_bytes: int | None = None
    adapter: Any = None
    filename_default: str | None = None
    max_open_files: int = 32
    _task: TaskContext | None = field(default=None, init=False, repr=False)
    _shard: Shard | None = field(default=None, init=False, repr=False)
    _file: OutputFile | None = field(default=None, init=False, repr=False)
    _part: int = field(default=0, init=False, repr=False)
    _adapt: Callable[..., Any] | None = field(default=None, init=False, repr=False)
    _fields: list[Any] = field(default_factory=list, init=False, repr=False)
    _split: Any = field(default=None, init=False, repr=False)

    #: The codec's ending, appended to `filename`; and those that other settings would append.
    extension: ClassVar[str] = ""
    extensions: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        self.path = absolute(os.fspath(self.path))
        parts = re.split(r"\{([^{}]*)\}", self.filename)  # Odd ones are fields.
        used = parts[1::2]
        if any(name not in FIELDS for name in used):
            from stagger.steps.file_names import fields_of  # Few writers have such fields.

            self._fields = fields_of(self.filename, FIELDS)
        elif "/" in self.filename:
            raise StaggerError(f"filename {self.filename!r} contains a '/'; set the folder in `path`.")
        if self.max_open_files < 1:
            raise StaggerError(f"max_open_files is {self.max_open_files}; give 1 or more.")
        plain = "x".join(parts[::2])
        if not plain or plain.startswith(".") or len(plain) > 150 or not {"{", "}", "\0"}.isdisjoint(plain):
            raise StaggerError(
                f"filename {self.filename!r} is not a valid file name: use 1 to 150 characters, no leading '.', and no"
                " braces except those of fields, such as {rank}."
            )
        if self.max_bytes is not None and self.max_bytes < 1:
            raise StaggerError(f"max_bytes is {self.max_bytes}; give the size of a file in bytes, at least 1.")
        if "part" in used and self.max_bytes is None:
            raise StaggerError(
                f"filename {self.filename!r} contains {{part}}, but max_bytes is not set; set it, or remove {{part}}."
            )
        if self.max_bytes is not None and "part" not in used:
            self.filename = with_part(self.filename)
        if self.adapter is not None:
            from stagger.steps.adapter import function_of

            self._adapt = function_of(self.adapter)
        if "{part}" in self.filename and re.search(r"[}\d]\{part\}|\{part\}[{\d]", self.filename):
            raise StaggerError(
                f"filename {self.filename!r}: put a letter or a hyphen between {{part}} and the next digit or field."
            )

    @property
    def output_folder(self) -> str:
        """The folder for the output: a launch creates it, and removes what killed attempts left there."""
        return self.path

    @property
    def output_names(self) -> list[str]:
        """Templates of the files' names: those of now, then those with another `max_bytes` or codec.

        Each key of the metadata is `{*}` there.
        """
        filename = re.sub(r"\{[^{}]*\}", lambda one: one[0] if one[0][1:-1] in FIELDS else "{*}", self.filename)
        plain = filename.replace("-{part}", "")
        names = dict.fromkeys((filename, *((plain, with_part(plain)) if "{part}" not in plain else ())))
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

        Keys of the metadata stay in the paths as they are: only the documents have their values.

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

    def adapted(self, document: Document) -> dict[str, Any]:
        """The record that the adapter makes of a document."""
        from stagger.steps.adapter import record_of

        assert self._adapt is not None
        return record_of(self._adapt, self, document)

    def media_records(self, document: Document, *, with_bytes: bool) -> list[Any]:
        """The document's media as values that JSON has. Counts those that are written without their bytes."""
        from stagger.pipeline.media import records_of

        records, left_out = records_of(document.media, with_bytes=with_bytes)
        if left_out and self._task is not None:
            self._task.count("media_bytes_left_out", left_out)
        return records

    def _name(self, stem: str, rank: int, part: int) -> str:
        return _filled(self.filename + self.extension, stem, rank, part)

    @property
    def _stem(self) -> str:
        """The stem of the current shard, if the outputs are named after shards."""
        if not self.shard_by_shard:
            return ""
        assert self._shard is not None, "a writer is told which shard begins"
        return stem_of(self._shard.name)

    def open_file(self) -> OutputFile:
        """Open the next file of the rank, or of the current shard."""
        assert self._task is not None
        path = join(self.path, self._name(self._stem, self._task.rank, self._part))
        self._part += 1
        return self.new_output(path)

    def new_output(self, path: str) -> OutputFile:
        assert self._task is not None
        return self._task.open_output(path, one_of_many=bool(self._fields))

    @property
    def split(self) -> SplitFiles:
        """The files of a writer whose `filename` has keys of the metadata."""
        if self._split is None:
            from stagger.steps.split_files import SplitFiles

            default, most = self.filename_default, self.max_open_files
            self._split = SplitFiles(self._fields, default, most, self.max_bytes, self._open_split)
        return cast("SplitFiles", self._split)

    def _open_split(self, values: dict[str, str], part: int) -> tuple[OutputFile, Waiting]:
        """Open the file for documents with these values."""
        assert self._task is not None
        named = re.sub(r"\{([^{}]*)\}", lambda one: values.get(one[1], one[0]), self.filename + self.extension)
        file = self.new_output(join(self.path, _filled(named, self._stem, self._task.rank, part)))
        return file, self.waiting_of(file)

    def waiting_of(self, file: OutputFile) -> Waiting:
        """What of a file waits in memory."""
        return file

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

    def begin_shard(self, shard: Shard) -> None:
        self._shard = shard

    def end_shard(self) -> None:
        """Finish the outputs named after a shard, once the steps have run for it.

        The attempt calls this, because a later step may stop early and leave this one suspended.
        """
        if self.shard_by_shard:
            self.close_file()
            self._part = 0
            if self._split is not None:
                self._split.close()

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
        named = codec_of(self.filename)
        if named is not None and named != self.compression:
            raise StaggerError(
                f"filename {self.filename!r} ends like a file of {named}, but compression is"
                f" {self.compression or 'null'}; correct one of them."
            )
        if named is not None:
            self.filename = self.filename[: -len(self.extension)]
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
        return self._task.open_output(path, self.compression, self.level, one_of_many=bool(self._fields))

    def write(self, documents: Iterable[Document]) -> Iterator[Document]:
        return self._write_split(documents) if self._fields else self._write(documents)

    def _write_split(self, documents: Iterable[Document]) -> Iterator[Document]:
        split = self.split
        for document in documents:
            record = self.encode(document)
            series = split.series_for(document, len(record) if self.compression is None else 0)
            assert series.file is not None
            before = series.file.waiting
            series.file.write(record)
            split.wrote(series, before)
            yield document

    def _write(self, documents: Iterable[Document]) -> Iterator[Document]:
        encode = self.encode
        for document in documents:
            record = encode(document)
            self.file_for(len(record) if self.compression is None else 0).write(record)
            yield document

    def encode(self, document: Document) -> bytes:
        """One record, including its end mark."""
        raise NotImplementedError


def strings_of(document: Document) -> tuple[str, str]:
    """The text and the id of a document as strings: an integer id is written as its digits.

    Raises StaggerError when one of them is anything else.
    """
    text: Any = document.text
    id_: Any = document.id
    for name, value, kinds in (("text", text, str), ("id", id_, (str, int))):
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise StaggerError(
                f"The {name} of the document {id_!r} is not a string, but {type(value).__name__}; correct the reader or"
                " the step that made it."
            )
    return str(text), str(id_)


def with_part(filename: str) -> str:
    """The name with a field for the number of the part, before its endings."""
    folder, slash, name = filename.rpartition("/")
    stem = re.match(r"(?:\{[^{}]*\}|[^.])*", name)
    end = stem.end() if stem else 0
    return f"{folder}{slash}{name[:end]}-{{part}}{name[end:]}"


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
