"""Waits for local files that a network file system shows late. Imported only when a file is missing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

#: Seconds to wait for a file that must exist. For up to 60 s NFS may not see a new file (acdirmax, nfs(5)); submitit
#: waits as long for its results.
LATE_S = 60.0

#: Seconds between two looks: the first, the longest, and the growth.
FIRST_S, LONGEST_S, GROWTH = 0.1, 2.0, 1.5

#: Files that did not appear: the other ranks of a job do not wait for them, too.
_missing: set[str] = set()


def appears(path: str, check: Callable[[], None] = lambda: None) -> bool:
    """Wait up to LATE_S seconds until there is a file at a local path; whether there is one.

    Calls `check` between two looks, which may raise to stop the wait. The file is whole when it appears: files of the
    run directory are renamed into place.
    """
    deadline = time.monotonic() + (0 if path in _missing else LATE_S)
    nap = FIRST_S
    while True:
        list_nearest(os.path.dirname(path))
        if os.path.exists(path):
            return True
        if time.monotonic() >= deadline:
            _missing.add(path)
            return False
        check()
        time.sleep(nap)
        nap = min(LONGEST_S, nap * GROWTH)


def list_nearest(folder: str) -> None:
    """List a folder, or the nearest existing one above it: this makes NFS look at the server again."""
    while True:
        try:
            with os.scandir(folder or ".") as entries:
                next(entries, None)
            return
        except OSError:
            parent = os.path.dirname(folder)
            if parent == folder:
                return
            folder = parent
