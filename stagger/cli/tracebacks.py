"""Shortens tracebacks of tasks to the frames of the user's own code. Pure."""

from __future__ import annotations

import re
from collections import Counter

from stagger.errors import counted

#: A frame in a traceback, with its file.
FRAME = re.compile(r'  File "([^"]*)"')

#: The file in which every attempt begins, in the folder of the task's stagger.
BEGINNING = re.compile(r'^  File "([^"]*/stagger)/task/attempt\.py"', re.MULTILINE)

#: What follows the beginning of a traceback that ends with an error of stagger's own, such as bad input.
OWN_ERROR = re.compile(r"(?:\n[ ].*)+\nstagger\.errors\.")

#: A file of an installed package, and one of Python itself.
PACKAGE = re.compile(r".*/(?:site|dist)-packages/([^/]+?)(?:\.py)?(?:/|$)")
PYTHON = re.compile(r".*/lib(?:64)?/python3[^/]*/|<frozen ")


def folded(trace: str) -> str:
    """A traceback in which neighbouring frames of stagger, of Python and of installed packages are one line.

    Without a frame of the user's own, those of installed packages stay: a step may come from one. Empty for an error of
    stagger's own without any: its sentence says all.
    """
    began = BEGINNING.search(trace)
    own_folder = f"{began[1]}/" if began else ""
    owners = [owner_of(path, own_folder) for path in FRAME.findall(trace)]
    keeps_packages = "" not in owners
    if keeps_packages and OWN_ERROR.match(trace.rpartition("Traceback (most recent call last):")[2]):
        return ""
    lines: list[str] = []
    hidden: Counter[str] = Counter()
    inside = False
    for line in [*trace.splitlines(), ""]:
        if frame := FRAME.match(line):
            owner = owner_of(frame[1], own_folder)
            inside = owner in ("stagger", "Python") or (owner != "" and not keeps_packages)
            hidden[owner] += inside
        elif not line.startswith("    "):
            inside = False
        if not inside:
            if count := hidden.total():
                names = ", ".join(owner for owner in hidden if hidden[owner])
                lines.append(f"  ... {counted(count, 'frame')} of {names}")
                hidden.clear()
            lines.append(line)
    return "\n".join(lines).rstrip("\n")


def owner_of(path: str, own_folder: str) -> str:
    """Whose code a file is: `stagger`, which lies in `own_folder`, `Python`, or a package's; empty for the user's own.

    >>> owner_of("/opt/lib/python3.11/site-packages/numpy/linalg.py", "/opt/stagger/"), owner_of("/me/stagger/a.py", "")
    ('numpy', '')
    """
    if own_folder and path.startswith(own_folder):
        return "stagger"
    if package := PACKAGE.match(path):
        return package[1]
    return "Python" if PYTHON.match(path) else ""
