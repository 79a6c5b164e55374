"""JSON Lines: one document per line, `{"text": ..., "id": ..., "metadata": {...}}`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO

import orjson

from stagger.document import Document
from stagger.errors import BadInput, StaggerError
from stagger.formats import Codec, extension_of
from stagger.steps.reader import ShardReader, default_id
from stagger.storage import absolute, join
from stagger.task_context import TaskContext


class ReadJsonl(ShardReader):
    """Reads JSON Lines: plain, .gz or .zst by file name.

    Args:
        path: a folder or a file, on any storage.
        glob: which files of the folder; matched against the name, or against the path below `path` if it has a `/`.
        recursive: whether folders below `path` are searched too.
        text_key: the key that holds the text.
        id_key: the key that holds the id; documents without it get `<file>/<number of the line>`.
    """

    def __init__(
        self, path: str, glob: str = "*", recursive: bool = False, text_key: str = "text", id_key: str = "id"
    ) -> None:
        super().__init__(path, glob, recursive)
        self.text_key = text_key
        self.id_key = id_key

    def read(self, name: str, stream: BinaryIO) -> Iterator[Document]:
        loads, text_key, id_key = orjson.loads, self.text_key, self.id_key
        for index, line in enumerate(stream):
            if line.isspace():
                continue
            try:
                record = loads(line)
                text = record.pop(text_key)
                id_ = record.pop(id_key, None)
                media = record.pop("media", None) or []
                metadata = {**(record.pop("metadata", None) or {}), **record}
            except orjson.JSONDecodeError as error:
                raise BadInput(f"line {index + 1} is not JSON: {error}") from error
            except (AttributeError, TypeError):
                raise BadInput(f"line {index + 1} is not a JSON object (or its metadata is none)") from None
            except KeyError:
                raise BadInput(
                    f"line {index + 1} has no {text_key!r}; text_key says which key holds the text"
                ) from None
            if not isinstance(text, str):
                raise BadInput(f"line {index + 1}: {text_key!r} holds {type(text).__name__}, not a string")
            if isinstance(id_, float):  # Also an integer of more than 64 bits, whose digits are lost by then.
                raise BadInput(f"line {index + 1}: {id_key!r} is neither a string nor an integer of 64 bits")
            yield Document(text, default_id(name, index) if id_ is None else str(id_), media, metadata)


class WriteJsonl:
    """Writes JSON Lines, one file per rank, and passes the documents on.

    Args:
        path: the folder for the output, on any storage.
        compression: zstd, gzip, or null for none.
        filename: the file's name; `{rank}` is replaced by the zero-padded rank.
        level: the codec's level; by default 3 for zstd, 2 for gzip (isal).
    """

    def __init__(
        self,
        path: str,
        compression: Codec | None = "zstd",
        filename: str = "{rank}.jsonl",
        level: int | None = None,
    ) -> None:
        self.path = absolute(path)
        self.compression = compression
        if "/" in filename:
            raise StaggerError(f"filename {filename!r} has a '/'; the folder is `path`.")
        self.filename = filename + extension_of(compression)
        self.level = level
        self._task: TaskContext | None = None

    @property
    def output_folder(self) -> str:
        """Where it writes: a launch makes the folder, and clears what killed attempts left there."""
        return self.path

    def check_tasks(self, tasks: int) -> None:
        """Raise StaggerError at launch when several ranks would write the same file."""
        if tasks > 1 and "{rank}" not in self.filename:
            raise StaggerError(
                f"filename {self.filename!r} is the same for all {tasks} ranks, and each would replace the others'"
                " output; put {rank} into it."
            )

    def bind(self, task: TaskContext) -> None:
        self._task = task

    def __call__(self, data: Iterable[Document] | None, rank: int, world_size: int) -> Iterator[Document]:
        assert self._task is not None, "a writer is bound to its task before it is called"
        path = join(self.path, self.filename.replace("{rank}", f"{rank:05d}"))
        # A rank without documents writes an empty file too: a rerun then replaces what an earlier attempt wrote.
        file = self._task.open_output(path, self.compression, self.level)
        for document in data or ():
            record = {"text": document.text, "id": document.id, "metadata": document.metadata}
            if document.media:
                record["media"] = document.media
            file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
            yield document
