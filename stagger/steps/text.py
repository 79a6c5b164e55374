"""Plain text files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Literal

from stagger.document import Document
from stagger.errors import BadInput
from stagger.steps.reader import ShardReader, default_id


class ReadText(ShardReader):
    """Reads UTF-8 text: plain, .gz or .zst by file name.

    Args:
        path: a folder or a file, on any storage.
        glob: which files of the folder; matched against the name, or against the path below `path` if it has a `/`.
        recursive: whether folders below `path` are searched too.
        document: whether each line is a document (empty lines are left out), or each file.
    """

    def __init__(
        self, path: str, glob: str = "*", recursive: bool = False, document: Literal["line", "file"] = "line"
    ) -> None:
        super().__init__(path, glob, recursive)
        self.document = document

    def read(self, name: str, stream: BinaryIO) -> Iterator[Document]:
        if self.document == "file":
            yield Document(_decode(stream.read(), "the file"), name)
            return
        for index, line in enumerate(stream):
            text = _decode(line, f"line {index + 1}").rstrip("\r\n")
            if text:
                yield Document(text, default_id(name, index))


def _decode(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"{what} is not UTF-8: byte {data[error.start]:#04x} at its position {error.start}") from error
