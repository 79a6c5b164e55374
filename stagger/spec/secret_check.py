"""Rejects secrets that are written in clear text in a pipeline file."""

from __future__ import annotations

import re
from typing import Any

from stagger.errors import StaggerError
from stagger.spec.messages import Place
from stagger.spec.yaml_file import Path

SECRET = re.compile(r"secret|password|token|customer_?key|account_?key|connection_?string|sas_", re.IGNORECASE)

#: A URL that contains a password.
IN_URL = re.compile(r"://[^/@\s]*:[^/@\s$]+@")


def check_secrets(value: Any, place: Place, path: Path = ("storage_options",)) -> None:
    """Raise StaggerError for a secret in clear text: the run directory and the job scripts keep these options."""
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        named = isinstance(item, str) and SECRET.search(str(key)) and item and not item.startswith("${")
        if named or (isinstance(item, str) and IN_URL.search(item)):
            raise StaggerError(
                f"{place.of((*path, key))}: a secret in clear text would be stored with the run; write ${{NAME}} and"
                " export NAME, or use the usual AWS variables and files."
            )
        check_secrets(item, place, (*path, key))
