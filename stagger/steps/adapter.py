"""Functions of users that make documents of records, and records of documents; imported where a step has one."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any

from stagger.errors import BadRecord, StaggerError
from stagger.pipeline import Document
from stagger.pipeline.names import resolve

#: The keys of what a reader's adapter returns.
KEYS = frozenset(("text", "id", "media", "metadata"))


def function_of(adapter: Any) -> Callable[..., Any]:
    """The adapter of a step: a function, or `module:name`. Raises StaggerError when it is neither."""
    if isinstance(adapter, str):
        if ":" not in adapter:
            raise StaggerError(f"adapter is {adapter!r}; give a function, written module:name.")
        try:
            found = resolve(adapter)
        except StaggerError as error:
            raise StaggerError(f"adapter: {error}") from error
    else:
        found = adapter
    if not callable(found):
        raise StaggerError(f"adapter is {adapter!r}, which cannot be called; give a function, written module:name.")
    return found  # type: ignore[no-any-return]


def document_of(
    adapt: Callable[..., Any], reader: Any, record: dict[str, Any], path: str, number: int, default_id: str
) -> Document | None:
    """The document that an adapter makes of a record, with `default_id` if it has no id; None if it makes none.

    Raises BadRecord when the adapter raises, or returns anything else.
    """
    try:
        made = adapt(reader, record, path, number)
    except Exception as error:  # The function is the user's.
        raise BadRecord("adapter", f"the adapter raised {type(error).__name__}: {error}{line_of(error)}") from error
    if made is None:
        return None
    if not isinstance(made, dict) or not made.keys() <= KEYS:
        what = f"the keys {', '.join(map(repr, made))}" if isinstance(made, dict) else type(made).__name__
        raise BadRecord("adapter", f"the adapter returned {what}; return a dict with text, id, media and metadata")
    text = made.get("text")
    id_ = made.get("id")
    media, metadata = made.get("media") or [], made.get("metadata") or {}
    if text is None:
        text = ""
    if id_ is None:
        id_ = default_id
    elif isinstance(id_, int) and not isinstance(id_, bool):
        id_ = str(id_)
    for key, value, kind in (
        ("text", text, str),
        ("id", id_, str),
        ("media", media, list),
        ("metadata", metadata, dict),
    ):
        if not isinstance(value, kind):
            raise BadRecord("adapter", f"the adapter returned {type(value).__name__} as {key}, not {kind.__name__}")
    if media:
        from stagger.pipeline.media import media_of

        media = media_of(media)
    return Document(text, id_, media, metadata)


def record_of(adapt: Callable[..., Any], writer: Any, document: Document) -> dict[str, Any]:
    """The record that an adapter makes of a document. Raises StaggerError when it raises, or returns no dict."""
    try:
        made = adapt(writer, document)
    except Exception as error:  # The function is the user's.
        raise StaggerError(
            f"The adapter raised {type(error).__name__} for the document {document.id!r}: {error}{line_of(error)}."
        ) from error
    if not isinstance(made, dict):
        raise StaggerError(
            f"The adapter returned {type(made).__name__} for the document {document.id!r}; return the record as a dict."
        )
    return made


def line_of(error: Exception) -> str:
    """Where the user's code raised an error, as ` (file.py:7)`."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    return f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
