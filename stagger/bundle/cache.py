"""Bundles that launches have made, one for each Python and set of modules, in the user's cache folder.

A launch makes a bundle anew when one of the files that it was made from has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import tempfile
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
    path = Path(platformdirs.user_cache_dir("stagger")) / "bundles" / key
    if (found := kept(path)) is not None:
        return found
    try:
        with tempfile.TemporaryDirectory(prefix="stagger-") as folder:
            new = Path(folder) / key
            command = [python, "-I", "-S", "-c", MAKE, str(new), *modules]
            subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
            made = new.read_bytes()
    except (OSError, subprocess.SubprocessError):
        return None
    keep(path, made)
    return made


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


def keep(path: Path, data: bytes) -> None:
    """Keep a bundle for later launches, if the user's cache folder can be written."""
    if not path.is_absolute():  # The user has no home folder.
        return
    new = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
            os.replace(new, path)
        except OSError:
            new.unlink(missing_ok=True)
