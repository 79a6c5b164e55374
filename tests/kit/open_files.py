"""The files that processes have open, as /proc shows them: the process of a rank has its log."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path


def open_files(process: int) -> list[str]:
    """The paths of a process's open files; none if it has ended."""
    found: list[str] = []
    with contextlib.suppress(OSError):  # It has ended.
        for path in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # It was closed meanwhile.
                found.append(os.readlink(path))
    return found


def process_with(is_wanted: Callable[[str], bool]) -> int:
    """The process that has a wanted file open. Raises AssertionError if there is none."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and any(map(is_wanted, open_files(int(folder.name)))):
            return int(folder.name)
    raise AssertionError("no process has the file open: nobody is at work there")
