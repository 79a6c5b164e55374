"""Checks the storage of a run directory: the requests of a run, and conditional writes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from stagger.doctor.check import Check
from stagger.errors import StaggerError
from stagger.progress import busy
from stagger.storage.storage import Storage, is_local, join

#: Writers that create one file at once.
CREATORS = 8


def storage_checks(folder: str, storage: Storage) -> Iterator[Check]:
    """Make the requests that a run makes to its run directory: write, read, create once, remove.

    Then check that of several that create at once, one succeeds: the lock of a run relies on it.
    """
    path = join(folder, f"stagger-doctor-{uuid.uuid4().hex[:12]}")
    took, started = "", time.monotonic()
    try:
        with busy(f"checking {folder}"):
            storage.check_writable(folder)
            if not is_local(folder):
                created = storage.create(path, b"stagger") and not storage.create(path, b"twice")
                same = storage.read(path) == b"stagger"
                storage.remove(path)
                took = f"; four requests took {time.monotonic() - started:.2f} s"
                lacks = "" if created and same else "conditional writes (If-None-Match)"
                lacks = lacks or creates_at_once(f"{path}-at-once", storage)
                if lacks:
                    text = (
                        f"{folder} does not support {lacks}: of several launches at once more than one would run. It"
                        " can hold input and output, but no run_dir: put that on a shared file system or another store."
                    )
                    yield Check("storage", "problem", text)
                    return
    except (StaggerError, OSError) as error:
        yield Check("storage", "problem", f"{error}")
        return
    yield Check("storage", "ok", f"{folder} can be written{took}")


def creates_at_once(path: str, storage: Storage) -> str:
    """Create one file from several threads at once: exactly one may succeed. Returns what the store lacks, or ""."""
    with ThreadPoolExecutor(CREATORS) as threads:
        contents = [f"stagger {number}".encode() for number in range(CREATORS)]
        won = list(threads.map(lambda content: storage.create(path, content), contents))
    kept = storage.read(path)
    storage.remove(path)
    if [content for content, first in zip(contents, won, strict=True) if first] == [kept]:
        return ""
    return f"conditional writes (If-None-Match) of several writers at once ({won.count(True)} of {CREATORS} succeeded)"
