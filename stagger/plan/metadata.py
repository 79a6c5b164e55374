"""Counts the metadata operations of a start: file-system calls that name a path, up to the task's first read.

On a parallel file system a metadata server answers each of them. `stagger doctor --measure-start` counts them for this
installation; otherwise the known figure counts, which a test holds (tests/architecture/test_imports.py).
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import platformdirs

from stagger import __version__
from stagger.spec.executors import SlurmSpec

#: Calls of one start from a bundle of modules: at most, on the Pythons that stagger is tested on.
KNOWN_CALLS = 200


def calls_of_start() -> tuple[int, bool]:
    """Calls of one start, and whether they were measured for this Python and this version of stagger."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        calls = json.loads(record_path().read_text())[sys.executable][__version__]
        if isinstance(calls, int) and calls > 0:
            return calls, True
    return KNOWN_CALLS, False


def keep_calls(calls: int) -> Path:
    """Record the measured calls of one start. Returns the path of the record. Raises OSError."""
    path = record_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {}
    with contextlib.suppress(OSError, ValueError):
        record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, sys.executable: {__version__: calls}}))
    return path


def record_path() -> Path:
    return Path(platformdirs.user_cache_dir("stagger")) / "start.json"


def operations_per_start(executor: SlurmSpec, ranks: int) -> int:
    """Metadata operations of a job's start: those of all processes that it starts at once."""
    at_once = min(executor.most_at_once, executor.ranks_per_job, ranks)
    return calls_of_start()[0] * (at_once * executor.nodes_per_task + executor.has_crew)
