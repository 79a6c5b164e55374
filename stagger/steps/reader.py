"""The base of all readers: finds the shards at launch, and reads a rank's share of them in its task."""

from __future__ import annotations

import codecs
import copy
import io
import os
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, BinaryIO, ClassVar, Literal, cast

from stagger.errors import BadInput, BadRecord, StaggerError, counted
from stagger.pipeline import Document, Shard
from stagger.pipeline.compression import PIECE_BYTES, Content, LongLine, ReadCodec, buffered, codec_of
from stagger.pipeline.hooks import Reader
from stagger.pipeline.task_context import TaskContext
from stagger.storage import Entry
from stagger.storage.local_files import open_version
from stagger.storage.storage import Storage, absolute, is_local, join

#: First bytes of a file in which a NUL means that it is no text in UTF-8, or a strange one.
HEAD_BYTES = 512

#: First characters of most text files. No other format's files begin with them, unless a NUL follows.
PLAIN = (b"{", b"[", b'"')

#: Why a document without text is left out.
NO_TEXT = "empty text"

#: The error for a file that is a single line, with carriage returns in it.
CR_ONLY = "the lines end with CR alone: convert the line ends to LF or CRLF"


class OpenShard:
    """A shard being read: its content, and the reader's position in it.

    `name` is relative to the reader's folder, and so does not depend on where the input lies. `record` counts from 0;
    `byte` is the offset of a bad record in the content, -1 while unknown. `ahead` has a thread decompress the content.
    """

    def __init__(
        self,
        name: str,
        path: str,
        codec: ReadCodec | None,
        pieces: Iterator[bytes],
        check: Callable[[], None] = lambda: None,
        planned: Shard | None = None,
        *,
        ahead: bool = False,
    ) -> None:
        self.name = name
        self.path = path
        self.planned = planned or Shard(name, -1)
        self.codec = codec
        self.record = -1
        self.byte = -1
        self._pieces = pieces
        self._check = check
        self._ahead = ahead
        self._taken = 0
        self._content: Content | None = None
        self._stream: io.BufferedReader | None = None

    @property
    def content(self) -> Content:
        """The decompressed content, unbuffered."""
        if self._content is None:
            if self.codec is None:
                self._content = Content(self._pieces, self._check)
            else:
                from stagger.pipeline.decompression import decompressed

                self._content = decompressed(self._pieces, self.codec, self._check)
                if self._ahead:
                    from stagger.pipeline.codec_threads import DecompressedAhead

                    self._content = DecompressedAhead(self._content, self._check)
        return self._content

    @property
    def stream(self) -> io.BufferedReader:
        """The decompressed content. Its end is reached only if the file is complete."""
        if self._stream is None:
            self._stream = buffered(self.content)
        return self._stream

    def text_stream(self, max_line_bytes: int = sys.maxsize) -> io.BufferedReader:
        """The content of a text file after its byte order mark. Reading it raises LongLine before a longer line.

        Raises BadInput when the content is not text in UTF-8, by its first bytes.
        """
        if self._stream is not None:
            return self._stream
        start = self.content.beginning()
        if not start.startswith(PLAIN) or b"\0" in start[:HEAD_BYTES]:
            from stagger.pipeline.signatures import recognized

            if what := recognized(start):
                raise BadInput(f"the file is not text in UTF-8, but {what}")
        self._stream = buffered(self.content, max_line_bytes)
        if start.startswith(codecs.BOM_UTF8):
            self._stream.read(len(codecs.BOM_UTF8))
        return self._stream

    def pass_line(self, quote: bytes = b"", quoted: bool = False) -> bool:
        """Read past the rest of a long line, and past line ends within quotes; whether the quotes were then closed.

        `quoted` is whether the rest begins within quotes.
        """
        limit, self.content.line_limit = self.content.line_limit, sys.maxsize
        while piece := self.stream.readline(PIECE_BYTES):
            quoted ^= bool(quote) and bool(piece.count(quote) % 2)
            if piece.endswith(b"\n") and not quoted:
                break
        self.content.line_limit = limit
        return not quoted

    def as_file(self) -> BinaryIO:
        """The file as stored, seekable: a remote file is first downloaded whole to a temporary file on this machine."""
        if is_local(self.path):
            return open_version(self.path, self.planned.size, self.planned.version)
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
        """Set the file's size in bytes, if the file was not read to its end through `stream`."""
        self._taken = size
        self._stream = self._content = None

    @property
    def taken(self) -> int:
        """Bytes of the stored file that have been read."""
        return self._taken if self._content is None else self._content.taken

    def place(self) -> str:
        """The bad record's number, counted from 1, and its byte offset in the content if that is known."""
        if self.byte >= 0:
            return f"record {self.record + 1}, byte {self.byte}"
        if self._content is None:
            return f"record {max(self.record, 0) + 1}"
        # The content broke off while the next record was being read.
        return f"record {self.record + 2}, byte {self._content.line_start}"


@dataclass(kw_only=True)
class ShardReader(Reader):
    """Reads the files below `path` that match `glob`; each rank reads the shards that the plan assigns to it.

    Names that begin with `_` or `.` are not input, because other programs give them to files that are not data
    (`_SUCCESS`, `_metadata`, `_temporary/`); nor are folder markers, checksums (`.crc`) and unfinished copies. A launch
    counts and names what it leaves out. A glob that names them reads them: `_*.jsonl`, `_delta_log/*.json`, `*.crc`.

    Args:
        path: a folder or a file, on any storage.
        glob: pattern of the files to read, matched against a file's name or, if it contains a `/`, against the path
            below `path`.
        recursive: whether to search folders below `path` too.
        paths_file: a file that lists the input instead: one path per line, absolute or relative to `path`.
        compression: gzip, zstd, bz2, xz, or null for none; by default inferred from the file's name.
        limit: maximum number of documents that a rank reads.
        skip: number of documents that a rank leaves out at the beginning of its input.
        shuffle_seed: a number that decides the order of the shards, by chance; by default they are in the order of
            their names. The same number gives the same order.
        add_source: whether to add the shard's path and the document's number in it to the metadata, as `shard` and
            `position`.
        default_metadata: metadata that every document gets, unless it has another value for the key.
        adapter: makes the document of each record: a function, or `module:name` in a pipeline file. It is called as
            `adapter(reader, record, path, number)`: the record as a dict, its file and its number there. It returns a
            dict with the keys text and id, perhaps also media and metadata, or None to leave the record out.
        skip_empty_text: whether documents without text are left out, and counted. By default they are if the run has
            steps of datatrove, whose readers leave them out, and whose steps may number documents.
        on_bad_record: whether a record that cannot be read fails the rank, or is skipped and counted. A truncated file
            always fails it, and so does a damaged one, unless its reader knows where the next record begins (WARC).
        max_bad_records: number of bad records that a rank skips before it fails.
        max_record_bytes: size in bytes above which a record (in the file, decompressed) is a bad record. It is not held
            in memory beyond that. The memory for a record is several times its size.
        allow_empty: whether a file of zero bytes counts as a shard without documents, not as damaged.
    """

    path: str = field(kw_only=False)
    glob: str = "*"
    recursive: bool = False
    paths_file: str | None = None
    compression: ReadCodec | Literal["auto"] | None = "auto"
    limit: int | None = None
    skip: int = 0
    shuffle_seed: int | None = None
    add_source: bool = False
    default_metadata: dict[str, Any] | None = None
    adapter: Any = None
    skip_empty_text: bool | None = None
    on_bad_record: Literal["fail", "skip"] = "fail"
    max_bad_records: int = 100
    max_record_bytes: int = 2**30
    allow_empty: bool = False
    _task: TaskContext | None = field(default=None, init=False, repr=False)
    _adapt: Callable[..., Any] | None = field(default=None, init=False, repr=False)
    _leaves_out_empty: bool = field(default=False, init=False, repr=False)

    #: Whether `read` calls the adapter, with the records as they are in the file.
    adapts_records: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.path = absolute(os.fspath(self.path))
        if self.paths_file is not None:
            self.paths_file = absolute(os.fspath(self.paths_file))
        for name in ("limit", "skip", "max_bad_records"):
            if (getattr(self, name) or 0) < 0:
                raise StaggerError(f"{name} is {getattr(self, name)}; give 0 or more.")
        if self.max_record_bytes < 1:
            raise StaggerError(f"max_record_bytes is {self.max_record_bytes}; give a size in bytes, at least 1.")
        if self.adapter is not None:
            from stagger.steps.adapter import function_of

            self._adapt = function_of(self.adapter)

    def find_shards(self, storage: Storage) -> Sequence[Shard]:
        """Every shard of the input, sorted by name or shuffled, from a single listing made at launch.

        Raises StaggerError when nothing matches, and for a link to a missing file.
        """
        shards = self._found_shards(storage)
        if self.shuffle_seed is None:
            return shards
        from stagger.pipeline.shard_table import shuffled  # Only a launch shuffles.

        return shuffled(shards, self.shuffle_seed)

    def _found_shards(self, storage: Storage) -> Sequence[Shard]:
        if self.paths_file is not None:
            return self._listed_shards(storage, self.paths_file)
        from stagger.steps.listing import input_files, unread_folders  # Only a launch lists.

        shards, left_out = input_files(storage, self.path, self.glob, recursive=self.recursive)
        if -1 in shards.sizes:
            raise StaggerError(
                f"{join(self.path, shards[shards.sizes.index(-1)].name)} links to a missing file; restore the file or"
                " remove the link."
            )
        if not shards and (entry := storage.entry(self.path)) is not None:
            return [Shard(self.path, entry.size, entry.version)]
        if not shards:
            raise StaggerError(
                f"Nothing in {self.path} matches {self.glob!r}"
                f"{'' if self.recursive else ' (set recursive: true to search the folders below it)'};"
                f" correct path or glob.{f' {left_out}.' if left_out else ''}"
            )
        unread = "" if self.recursive or "/" in self.glob else unread_folders(self.path, self.glob, len(shards))
        for said in (f"{self.path}: {left_out}" if left_out else "", unread):
            if said:
                from stagger.terminal import logger

                logger.info(said)
        return shards

    def _listed_shards(self, storage: Storage, paths_file: str) -> list[Shard]:
        """The shards that `paths_file` lists, in its order."""
        try:
            lines = storage.read(paths_file).decode("utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise StaggerError(f"paths_file {paths_file} cannot be read: {error}.") from error
        names = [self._named(line.strip()) for line in lines if line.strip()]
        if not names:
            raise StaggerError(f"paths_file {paths_file} is empty; list one path per line.")
        paths = [join(self.path, name) for name in names]
        if twice := [path for path, count in Counter(paths).items() if count > 1]:
            raise StaggerError(f"paths_file {paths_file} lists {twice[0]} twice; remove the duplicate.")
        found = storage.entries(paths)
        for name, entry in zip(names, found, strict=True):
            if entry is None:
                raise StaggerError(f"{join(self.path, name)}, listed in {paths_file}, does not exist.")
        return [Shard(name, e.size, e.version) for name, e in zip(names, cast("list[Entry]", found), strict=True)]

    def _named(self, line: str) -> str:
        """The one name of a listed file: relative if the file is below `path`, absolute otherwise."""
        if not is_local(self.path) or not is_local(line):
            return line.removeprefix(f"{self.path}/")
        path = os.path.normpath(join(self.path, line.removeprefix("file://")))
        return path.removeprefix(f"{self.path}/")

    def leave_out_empty(self) -> None:
        """Called at launch in a run with steps of datatrove: documents without text are left out by default."""
        self._leaves_out_empty = True

    @property
    def leaves_out_empty(self) -> bool:
        """Whether documents without text are left out."""
        return self._leaves_out_empty if self.skip_empty_text is None else self.skip_empty_text

    def bind(self, task: TaskContext) -> None:
        self._task = task

    def __call__(self, data: Iterable[Document] | None, rank: int, world_size: int) -> Iterator[Document]:
        assert self._task is not None, "a reader is bound to its task before it is called"
        shards = map(partial(self._documents, self._task), self._task.shards)
        # No generator here: each one that a document passes through costs time.
        bounded = self.limit is not None or self.skip > 0
        documents = self._bounded(self._task, shards) if bounded else chain.from_iterable(shards)
        return documents if data is None else chain(data, documents)

    def _bounded(self, task: TaskContext, shards: Iterator[Generator[Document, None, None]]) -> Iterator[Document]:
        """The documents of the shards, without the first `skip` of the rank, and at most `limit`."""
        # A rank that resumes goes on counting: with `commit: shard`, it gets the notes of its earlier attempts.
        seen: dict[str, int] = task.notes.setdefault("documents", {"skipped": 0, "read": 0})
        limit = sys.maxsize if self.limit is None else self.limit
        for documents in shards:
            while seen["read"] < limit and (document := next(documents, None)) is not None:
                if seen["skipped"] < self.skip:
                    seen["skipped"] += 1
                    leave_out(task, "skip")
                else:
                    seen["read"] += 1
                    yield document
            if seen["read"] >= limit:
                documents.close()
                return

    @property
    def input_folder(self) -> str:
        """Where all shards lie: `path`, unless a list names paths that may be anywhere."""
        return self.path if self.paths_file is None else ""

    def path_of(self, shard: Shard) -> str:
        """The path of a shard. A name from a listing is always below `path`: an object's key can look like any path."""
        if self.paths_file is not None or shard.name == self.path:
            return join(self.path, shard.name)
        return f"{self.path.rstrip('/')}/{shard.name}"

    def _documents(self, task: TaskContext, shard: Shard) -> Generator[Document, None, None]:
        """The documents of one shard. Raises BadInput naming the shard and the position of the damage."""
        task.circumstances.stop.check()
        path = self.path_of(shard)
        name = shard.name.rpartition("/")[2] if path == shard.name else shard.name
        codec = codec_of(shard.name) if self.compression == "auto" else self.compression
        if not shard.size:
            if not self.allow_empty:
                raise BadInput(
                    f"{path}, record 1, byte 0: the file is empty; if it is not input, leave it out with glob (with"
                    " allow_empty: true, it is a shard without documents)"
                )
            return
        check = task.circumstances.stop.check
        ahead = codec is not None and task.decompresses_ahead(shard)
        pieces = task.stream(shard, self.path_of)
        source = OpenShard(name, path, codec, pieces, check, planned=shard, ahead=ahead)
        try:
            while True:
                documents = self.read(source)
                adapts = self._adapt is not None and not self.adapts_records
                if adapts or self.leaves_out_empty or self.default_metadata or self.add_source:
                    documents = self._finished(documents, source, task)
                try:
                    yield from documents
                    break
                except LongLine:
                    self._pass_line(source)
        except FileNotFoundError:
            raise BadInput(f"{path} is gone: it was there when the plan was made") from None
        except BadInput as error:
            raise BadInput(f"{path}, {source.place()}: {error}") from error
        except OSError as error:
            raise BadInput(f"{path}, {source.place()}: {type(error).__name__}: {error.strerror or error}") from error
        if source.taken != shard.size:
            raise BadInput(
                f"{path} has changed: {counted(source.taken, 'byte')} now, {shard.size:,} when the plan was made"
            )

    def _finished(self, documents: Iterator[Document], shard: OpenShard, task: TaskContext) -> Iterator[Document]:
        """The documents, adapted, with their default metadata and their source; without empty ones if so wanted."""
        adapts = self._adapt is not None and not self.adapts_records
        default = self.default_metadata or {}
        nested = any(isinstance(value, (dict, list)) for value in default.values())
        for document in documents:
            if adapts:
                made = self.adapted(shard, {"text": document.text, "id": document.id, **document.metadata})
                if made is None:
                    continue
                document = made
            if self.leaves_out_empty and not document.text:
                leave_out(task, NO_TEXT)
                continue
            if default:  # A later step may change a nested value, of this document only.
                document.metadata = {**(copy.deepcopy(default) if nested else default), **document.metadata}
            if self.add_source:
                document.metadata["shard"] = shard.path
                document.metadata["position"] = shard.record
            yield document

    def adapted(self, shard: OpenShard, record: dict[str, Any]) -> Document | None:
        """The document that the adapter makes of the record `shard.record`; None if it makes none, or a bad record."""
        from stagger.steps.adapter import document_of

        assert self._adapt is not None
        assert self._task is not None
        try:
            own_id = default_id(shard.name, shard.record)
            document = document_of(self._adapt, self, record, shard.name, shard.record, own_id)
        except BadRecord as error:
            self.bad(shard, error.kind, str(error))
            return None
        if document is None:
            leave_out(self._task, "adapter")
        return document

    def bad(self, shard: OpenShard, kind: str, reason: str) -> None:
        """Handle the unreadable record at `shard.byte`: count it if bad records are skipped, else raise BadRecord.

        Raises BadInput when the rank has more than `max_bad_records`, and Interrupted when the task has to stop.
        """
        if self.on_bad_record != "skip":
            raise BadRecord(kind, reason)
        assert self._task is not None
        self._task.circumstances.stop.check()
        count = self._task.skipped(shard.path, shard.record + 1, shard.byte, kind, reason)
        if count > self.max_bad_records:
            raise BadInput(
                f"{reason}; this rank now has {counted(count, 'bad record')}, more than max_bad_records"
                f" ({self.max_bad_records:,})"
            )
        shard.byte = -1

    def _pass_line(self, shard: OpenShard) -> None:
        """Handle the line that is being read, which is too long, as a bad record, and read past it."""
        shard.record += 1
        shard.byte = shard.content.line_start
        self.bad(shard, "size", self.too_long("line"))
        shard.pass_line()

    def too_long(self, what: str) -> str:
        """The reason for a bad record of the kind `size`."""
        return f"the {what} is longer than max_record_bytes ({self.max_record_bytes}); raise it if memory permits"

    def read(self, shard: OpenShard) -> Iterator[Document]:
        """The documents of one shard after `shard.record`; called again after a line that was too long."""
        raise NotImplementedError


def leave_out(task: TaskContext, reason: str) -> None:
    """Count a document that a reader leaves out."""
    task.left_out[reason] = task.left_out.get(reason, 0) + 1


def default_id(name: str, index: int) -> str:
    """The id of a document without one: its shard's relative name and its number, the same wherever the input lies."""
    return f"{name}/{index}"
