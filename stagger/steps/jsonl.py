"""JSON Lines: one document per line, `{"text": ..., "id": ..., "metadata": {...}}`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from stagger.errors import BadInput, BadRecord, StaggerError
from stagger.pipeline.document import Document
from stagger.steps.reader import OpenShard, ShardReader, default_id
from stagger.steps.writer import CompressedWriter


@dataclass(kw_only=True)
class ReadJsonl(ShardReader):
    """Reads JSON Lines. All other keys of a record go into the metadata too.

    Args:
        text_key: the key that holds the text.
        id_key: the key that holds the id; documents without one get `<file>/<line number>`.
        metadata_key: the key that holds an object of metadata.
    """

    text_key: str = "text"
    id_key: str = "id"
    metadata_key: str = "metadata"

    def read(self, shard: OpenShard) -> Iterator[Document]:
        loads, text_key, id_key, metadata_key = orjson.loads, self.text_key, self.id_key, self.metadata_key
        stream = shard.text_stream
        for shard.record, line in enumerate(stream):
            try:
                record = loads(line)
                text = record.pop(text_key)
                id_ = record.pop(id_key, None)
                media = record.pop("media", None)
                metadata = record.pop(metadata_key, None)
                if media is not None and type(media) is not list:
                    record["media"], media = media, None
                if record:
                    metadata = record if metadata is None else merged(metadata, record)
                if type(text) is str and (metadata is None or type(metadata) is dict):
                    if type(id_) is not str:
                        id_ = default_id(shard.name, shard.record) if id_ is None else whole_number(id_)
                    yield Document(text, id_, media or [], metadata or {})
                    continue
            except (ValueError, AttributeError, TypeError, KeyError, IndexError, BadRecord):
                pass
            if not line.isspace():
                shard.byte = stream.tell() - len(line)
                self.bad(shard, *self._why(line))

    def _why(self, line: bytes) -> tuple[str, str]:
        """The kind of a bad line, and the reason. Raises BadInput for a line that the end of the file cuts off."""
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            return why_not_json(line, error)
        if not isinstance(record, dict):
            return "json", "not a JSON object"
        if self.text_key not in record:
            return "text", f"there is no key {self.text_key!r}; set text_key to the key that holds the text"
        if not isinstance(text := record[self.text_key], str):
            return "text", f"{self.text_key!r} holds {type(text).__name__}, not a string"
        metadata = record.get(self.metadata_key)
        if metadata is not None and not isinstance(metadata, dict):
            return "json", f"{self.metadata_key!r} holds {type(metadata).__name__}, not an object"
        known = {self.text_key, self.id_key, self.metadata_key}
        metadata = metadata or {}
        if twice := [key for key in metadata.keys() & record.keys() - known if metadata[key] != record[key]]:
            return "json", f"{twice[0]!r} has one value in the record and another in its {self.metadata_key!r}"
        return "id", f"{self.id_key!r} is neither a string nor a 64-bit integer"


def merged(metadata: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """The two objects merged. Raises BadRecord when they hold different values for one key."""
    if any(metadata[key] != record[key] for key in metadata.keys() & record.keys()):
        raise BadRecord("json", "two values")
    return {**metadata, **record}


def why_not_json(line: bytes, error: ValueError) -> tuple[str, str]:
    """The kind of a line that is not JSON, and the reason. Raises BadInput if the end of the file cuts it off."""
    if not line.endswith(b"\n"):
        raise BadInput(f"the last line breaks off: the file is truncated ({error})") from error
    try:
        line.decode()
    except UnicodeDecodeError as wrong:
        return "utf-8", f"not UTF-8: byte {line[wrong.start]:#04x} at position {wrong.start} of the record"
    return "json", f"not JSON: {error}"


def whole_number(value: Any) -> str:
    """A numeric id as a string. Raises BadRecord for a float: the parser turns integers beyond 64 bits into floats."""
    if type(value) is int:
        return str(value)
    raise BadRecord("id", "not an id")


@dataclass(kw_only=True)
class WriteJsonl(CompressedWriter):
    """Writes JSON Lines, and passes the documents on.

    Args:
        text_key: the key for the text.
        id_key: the key for the id.
        metadata_key: the key for the metadata object; null puts each key of the metadata beside the text.
    """

    filename: str = field(default="{rank}.jsonl", kw_only=False)
    text_key: str = "text"
    id_key: str = "id"
    metadata_key: str | None = "metadata"

    def __post_init__(self) -> None:
        super().__post_init__()
        keys = [self.text_key, self.id_key, *([] if self.metadata_key is None else [self.metadata_key]), "media"]
        if len(set(keys)) < len(keys):
            raise StaggerError(
                f"text_key {self.text_key!r}, id_key {self.id_key!r} and metadata_key {self.metadata_key!r} must differ"
                " from each other and from 'media', or one value would overwrite another."
            )

    def encode(self, document: Document) -> bytes:
        record: dict[str, Any] = {self.text_key: document.text, self.id_key: document.id}
        if self.metadata_key is None:
            own = {*record, "media"} if document.media else record.keys()
            if taken := own & document.metadata.keys():
                raise StaggerError(
                    f"The metadata of {document.id} has the key {min(taken)!r}, which the record uses already; set"
                    " metadata_key."
                )
            record |= document.metadata
        else:
            record[self.metadata_key] = document.metadata
        if document.media:
            record["media"] = document.media
        if type(document.text) is not str or type(document.id) is not str:
            raise StaggerError(
                f"The text or the id of the document {document.id!r} is not a string; correct the step that set it."
            )
        try:
            return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        except TypeError as error:
            raise StaggerError(f"The document {document.id!r} cannot be written as JSON: {error}.") from error
