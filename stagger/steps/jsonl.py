"""JSON Lines: one document per line, `{"text": ..., "id": ..., "metadata": {...}}`."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import orjson

from stagger.errors import BadInput, BadRecord, StaggerError
from stagger.pipeline import Document
from stagger.steps.reader import OpenShard, ShardReader, default_id
from stagger.steps.writer import CompressedWriter, strings_of

#: The least absolute value of a float that can stand for an integer: orjson has no larger ones.
BEYOND_64_BITS = 2.0**63

#: Raised for a record that orjson may not have parsed exactly.
INEXACT = BadRecord("json", "inexact")


@dataclass(kw_only=True)
class ReadJsonl(ShardReader):
    """Reads JSON Lines. All other keys of a record go into the metadata too. Integers of any size are exact.

    Entries of a list `media` with the fields of `Media` become that, their bytes decoded from base64.

    Args:
        text_key: the key that holds the text. A record of id, metadata and media alone has an empty text: that is how
            datatrove writes one.
        id_key: the key that holds the id; documents without one get `<file>/<line number>`.
        metadata_key: the key that holds an object of metadata, or a string with its JSON; null for none: all keys are
            metadata.
        missing_text: whether any other record without a text is a bad record, or has an empty text.
    """

    text_key: str = "text"
    id_key: str = "id"
    metadata_key: str | None = "metadata"
    missing_text: Literal["fail", "empty"] = "fail"

    adapts_records: ClassVar[bool] = True

    def read(self, shard: OpenShard) -> Iterator[Document]:
        return self._lines(shard) if self._adapt is None else self._adapted(shard)

    def _lines(self, shard: OpenShard) -> Iterator[Document]:
        stream, number = shard.text_stream(self.max_record_bytes), shard.record + 1
        loads, text_key, id_key, metadata_key = orjson.loads, self.text_key, self.id_key, self.metadata_key
        for shard.record, line in enumerate(stream, number):
            try:
                record = loads(line)
                text = record.pop(text_key)
                id_ = record.pop(id_key, None)
                metadata = record.pop(metadata_key, None)
                media = None
                if record:
                    media = record.pop("media", None)
                    if media is not None and (type(media) is not list or not is_exact(media)):
                        record["media"], media = media, None
                    if record:
                        metadata = record if metadata is None else merged(metadata, record)
                for value in () if metadata is None else metadata.values():
                    if type(value) is not str:
                        if is_exact(metadata.values()):
                            break
                        raise INEXACT
                if type(text) is str:
                    if type(id_) is not str:
                        id_ = default_id(shard.name, shard.record) if id_ is None else whole_number(id_)
                    if media:
                        media = media_of(media)
                    yield Document(text, id_, media or [], metadata or {})
                    continue
            except (ValueError, AttributeError, TypeError, KeyError, IndexError, RecursionError, BadRecord):
                pass
            if not line.isspace() and (document := self._unusual(shard, stream, line)) is not None:
                yield document

    def _adapted(self, shard: OpenShard) -> Iterator[Document]:
        """The documents that the adapter makes."""
        stream, number = shard.text_stream(self.max_record_bytes), shard.record + 1
        for shard.record, line in enumerate(stream, number):
            if line.isspace():
                continue
            shard.byte = stream.tell() - len(line)
            try:
                record = exact(line, first=shard.record == 0)
                if not isinstance(record, dict):
                    raise BadRecord("json", "not a JSON object")
            except BadRecord as error:
                self.bad(shard, error.kind, str(error))
                continue
            if (document := self.adapted(shard, record)) is not None:
                yield document
            shard.byte = -1

    def _unusual(self, shard: OpenShard, stream: io.BufferedReader, line: bytes) -> Document | None:
        """The document of a line that is not a plain one; None for a bad record that is skipped.

        Raises BadInput for a line that the end of the file cuts off.
        """
        shard.byte = stream.tell() - len(line)
        try:
            document = self._document(shard, exact(line, first=shard.record == 0))
        except BadRecord as error:
            self.bad(shard, error.kind, str(error))
            return None
        shard.byte = -1
        return document

    def _document(self, shard: OpenShard, record: Any) -> Document:
        """The document of a record. Raises BadRecord with the reason when it is none."""
        if not isinstance(record, dict):
            raise BadRecord("json", "not a JSON object")
        text = self._text(record)
        id_ = record.pop(self.id_key, None)
        if id_ is not None and type(id_) not in (str, int):
            raise BadRecord("id", f"{self.id_key!r} is neither a string nor an integer")
        metadata = {} if self.metadata_key is None else self._metadata(record.pop(self.metadata_key, None))
        media = media_of(record.pop("media")) if isinstance(record.get("media"), list) else []
        id_ = default_id(shard.name, shard.record) if id_ is None else str(id_)
        return Document(text, id_, media, merged(metadata, record))

    def _text(self, record: dict[str, Any]) -> str:
        """Take the text out of a record. Raises BadRecord when it has none."""
        if self.text_key not in record:
            written_empty = self.id_key in record and record.keys() <= {self.id_key, self.metadata_key, "media"}
            if written_empty or self.missing_text == "empty":
                return ""
            raise BadRecord(
                "text",
                f"there is no key {self.text_key!r}; set text_key to the key that holds the text, or missing_text:"
                " empty if records without it have none",
            )
        text = record.pop(self.text_key)
        if text is None and (self.leaves_out_empty or self.missing_text == "empty"):
            return ""
        if not isinstance(text, str):
            raise BadRecord("text", f"{self.text_key!r} holds {type(text).__name__}, not a string")
        return text

    def _metadata(self, value: Any) -> dict[str, Any]:
        """The metadata of a record, perhaps stored as a string. Raises BadRecord for anything but an object."""
        if isinstance(value, str) and (found := object_in(value)) is not None:
            value = found
        if value is not None and not isinstance(value, dict):
            raise BadRecord(
                "json",
                f"{self.metadata_key!r} holds {type(value).__name__}, not an object; metadata_key: null keeps it as any"
                " other key",
            )
        return value or {}


def media_of(entries: list[Any]) -> list[Any]:
    """The media of a record. Few documents have any."""
    from stagger.pipeline import media

    return media.media_of(entries)


def exact(line: bytes, *, first: bool) -> Any:
    """The JSON value of a line, with all integers exact. `first` is whether it is the first line of its file.

    Raises BadRecord when it is not JSON, and BadInput when that concerns the rest of the file too.
    """
    try:
        value = orjson.loads(line)
        if is_exact((value,)):
            return value
    except (ValueError, RecursionError):
        pass
    from stagger.steps.exact_json import parsed  # Rarely needed.

    return parsed(line, first)


def object_in(text: str) -> dict[str, Any] | None:
    """The JSON object in a string; None if it holds none."""
    try:
        value = exact(text.encode() + b"\n", first=False)
    except (BadInput, UnicodeEncodeError):
        return None
    return value if isinstance(value, dict) else None


def is_exact(values: Iterable[Any]) -> bool:
    """Whether no value, at any depth, is a float so large that it can stand for an integer beyond 64 bits."""
    for value in values:
        kind = type(value)
        if kind is str:
            continue
        if kind is float:
            if not -BEYOND_64_BITS < value < BEYOND_64_BITS:
                return False
        elif kind is dict:
            if not is_exact(value.values()):
                return False
        elif (
            kind is list and not (value and type(value[0]) is float and is_small_vector(value)) and not is_exact(value)
        ):
            return False
    return True


def is_small_vector(values: list[Any]) -> bool:
    """Whether the values are numbers, and obviously small: a quick test for long vectors."""
    import math  # Most tasks have no vectors.

    try:
        return math.hypot(*values) < BEYOND_64_BITS
    except (TypeError, OverflowError):
        return False


def merged(metadata: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """The two objects merged. Raises BadRecord when they hold different values for one key."""
    if twice := [key for key in metadata.keys() & record.keys() if metadata[key] != record[key]]:
        raise BadRecord("json", f"{twice[0]!r} has one value in the record and another in its metadata")
    return {**metadata, **record}


def whole_number(value: Any) -> str:
    """A numeric id as a string. Raises BadRecord for a float: orjson turns integers beyond 64 bits into floats."""
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
        save_media_bytes: whether the bytes of media are written, as base64. Otherwise they are left out, and the media
            without them counted.
    """

    filename: str = field(default="{rank}.jsonl", kw_only=False)
    text_key: str = "text"
    id_key: str = "id"
    metadata_key: str | None = "metadata"
    save_media_bytes: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        keys = [self.text_key, self.id_key, *([] if self.metadata_key is None else [self.metadata_key]), "media"]
        if len(set(keys)) < len(keys):
            raise StaggerError(
                f"text_key {self.text_key!r}, id_key {self.id_key!r} and metadata_key {self.metadata_key!r} must differ"
                " from each other and from 'media', or one value would overwrite another."
            )

    def encode(self, document: Document) -> bytes:
        record = self._record(document) if self._adapt is None else self.adapted(document)
        try:
            return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        except TypeError:
            return self._encode_exactly(document, record)

    def _record(self, document: Document) -> dict[str, Any]:
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
            record["media"] = self.media_records(document, with_bytes=self.save_media_bytes)
        if type(document.text) is not str or type(document.id) is not str:
            record[self.text_key], record[self.id_key] = strings_of(document)
        return record

    def _encode_exactly(self, document: Document, record: dict[str, Any]) -> bytes:
        from stagger.steps.exact_json import encoded  # Rarely needed.

        try:
            return encoded(record) + b"\n"
        except (TypeError, ValueError) as error:
            raise StaggerError(f"The document {document.id!r} cannot be written as JSON: {error}.") from error
