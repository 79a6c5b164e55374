"""The modules that a task imports, in one file: a start opens this file instead of two hundred.

A launch makes the file with the Python of its tasks, and puts it beside their settings (`cache.py`, `make.py`). A task
runs from it (`boot.py`, `loader.py`). Where the file is missing, damaged, older than what it was made from, or another
Python's, the task imports the same modules one by one.
"""

from __future__ import annotations

import os

#: Ends the name of the file. The rest is that of the settings beside it, without `.json`.
SUFFIX = ".bundle"

#: In place of a bundle: the first task that starts shall make it, with the modules that follow (`first.py`).
REQUEST = b"to make\n"

#: Ends the name of a request while a task makes the bundle.
MAKING = ".making"


def bundle_path(settings: str) -> str:
    """The path of the bundle beside the settings of a launch."""
    return settings.removesuffix(".json") + SUFFIX


def task_arguments() -> list[str]:
    """The arguments of Python that run a task from the bundle beside its settings, or else from its own files.

    The paths of the settings and the ranks follow.
    """
    with open(os.path.join(os.path.dirname(__file__), "boot.py")) as file:
        return ["-I", "-S", "-c", file.read(), "stagger.task"]
