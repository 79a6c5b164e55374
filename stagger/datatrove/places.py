"""Where datatrove's blocks write, and whether a rank can commit what they write there."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from stagger.errors import StaggerError, counted


def place_of(folder: Any, path: str = "", s3_options: Mapping[str, Any] | None = None) -> str:
    """The path of a file in a `DataFolder`, or of the folder itself; empty if no rank can commit what lies there.

    A rank commits files on mounted file systems, and on S3 if the folder has no options of its own, or those of the
    run: `s3_options`. (None: any.)
    """
    files = getattr(folder, "fs", None)
    protocols = getattr(files, "protocol", ())
    names = (protocols,) if isinstance(protocols, str) else tuple(protocols)
    if "file" in names or "local" in names:
        return str(os.path.abspath(folder._join(path)))
    own = dict(getattr(files, "storage_options", {}))
    if "s3" not in names or (own and s3_options is not None and own != s3_options):
        return ""
    return f"s3://{folder._join(path)}".rstrip("/")


def check_name(template: str, tasks: int) -> None:
    """Raise StaggerError when several of `tasks` ranks would write the same file of a datatrove writer."""
    if tasks > 1 and not re.search(r"\$(\{(rank|id)\}|(rank|id)\b)", template):
        raise StaggerError(
            f"output_filename {template!r} is the same for all {counted(tasks, 'rank')}, which would overwrite each"
            " other's output; put ${rank} into it (in a pipeline file: $${rank})."
        )
