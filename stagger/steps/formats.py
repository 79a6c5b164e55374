"""Which reader reads a file, by its name."""

from __future__ import annotations

import os
from typing import Any

from stagger.errors import StaggerError
from stagger.pipeline.compression import EXTENSIONS
from stagger.pipeline.names import BUILTIN, resolve

#: Ending of a name, without that of the codec -> the step that reads such files.
READERS = {
    ".jsonl": "read_jsonl",
    ".ndjson": "read_jsonl",
    ".json": "read_jsonl",
    ".parquet": "read_parquet",
    ".arrow": "read_arrow",
    ".arrows": "read_arrow",
    ".feather": "read_arrow",
    ".csv": "read_csv",
    ".tsv": "read_csv",
    ".warc": "read_warc",
    ".txt": "read_text",
}


def reader_name(path: str) -> str | None:
    """The step that reads a file of this name; None if no ending says it.

    >>> reader_name("a/b.jsonl.zst"), reader_name("x.WARC.gz"), reader_name("x.gz")
    ('read_jsonl', 'read_warc', None)
    """
    root, ending = os.path.splitext(path.lower())
    if ending in EXTENSIONS:
        ending = os.path.splitext(root)[1]
    return READERS.get(ending)


def reader_of(path: str, text_key: str | None = None) -> Any:
    """A reader of this file alone. Raises StaggerError for a name whose ending is unknown."""
    name = reader_name(path)
    if name is None:
        raise StaggerError(
            f"{path}: its ending does not say how to read it; known are {', '.join(READERS)}, also compressed"
            f" ({', '.join(EXTENSIONS)})."
        )
    kind = resolve(BUILTIN[name])
    return kind(path, **({"text_key": text_key} if text_key is not None and hasattr(kind, "text_key") else {}))
