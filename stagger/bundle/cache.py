"""Bundles that launches have made, one for each Python and set of modules, in the user's cache folder.

A launch makes a bundle anew when one of the files that it was made from has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import platformdirs

from stagger.bundle.loader import stamp
from stagger.bundle.make import MAKE
from stagger.storage.ownership import foreign, open_to_others

#: Seconds that the making of a bundle may take.
PATIENCE_S = 60.0


def bundle_of(python: str, modules: Sequence[str]) -> bytes | None:
    """The bundle of what every task imports, and of `modules`, for the interpreter `python`.

    None if it cannot be made.
    """
    key = hashlib.sha256("\0".join((python, *modules)).encode()).hexdigest()[:16]
    try:
        folder = Path(platformdirs.user_cache_dir("stagger")) / "bundles"
        path = folder / key
        found = kept(path)
        if found is None:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            command = [python, "-I", "-S", "-c", MAKE, str(path), *modules]
            subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
            found = kept(path)
    except (OSError, subprocess.SubprocessError):
        return None
    return found


def kept(path: Path) -> bytes | None:
    """A bundle that was made before; None if there is none, others could have written it, or a file has changed."""
    try:
        with path.open("rb") as file:
            info = os.fstat(file.fileno())
            if foreign(info) or open_to_others(info):
                return None
            data = file.read()
        manifest = json.loads(data[-8 - int.from_bytes(data[-8:], "little") : -8])
        stamps = {**manifest["files"], **manifest["folders"]}
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return data if all(stamp(name) == (old and tuple(old)) for name, old in stamps.items()) else None
