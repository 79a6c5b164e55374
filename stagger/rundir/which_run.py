"""Which run was meant, when a path is no run directory."""

from __future__ import annotations

import os
from collections.abc import Iterable

import orjson

from stagger.spec.nearest import close_to
from stagger.storage.storage import is_local, join

#: Most folders that are looked into for runs, and most runs that a message names.
LOOKED_AT, NAMED = 200, 5


def no_run(path: str) -> str:
    """What to say of a path that holds no run, with the run that was probably meant."""
    why = _why(path)
    return f"There is no run in {path}: {why}{'' if why.endswith('?') else '.'}"


def _why(path: str) -> str:
    if not is_local(path):
        return "it has no run.json; give the run_dir of a pipeline file"
    if around := _run_around(path):
        return f"it is a part of the run {around}; give that path"
    if inside := runs_in(path):
        names = ", ".join(inside[:NAMED])
        more = ", ..." if len(inside) > NAMED else ""
        return f"it holds {'the run' if len(inside) == 1 else 'runs:'} {names}{more}; give that path"
    near = [*runs_in(os.path.dirname(path)), *runs_in(os.getcwd()), *runs_in("runs")]
    for folder, what in ((path, "is an output folder"), (os.path.dirname(path), "lies in an output folder")):
        if of := next((run for run in near if folder in _outputs(run)), None):
            return f"it {what} of the run {of}; give that path"
    kind = "it does not exist" if not os.path.lexists(path) else "it has no run.json"
    names_of = {os.path.basename(run): run for run in reversed(near)}
    if close := close_to(os.path.basename(path), list(names_of)):
        return f"{kind}; did you mean {_short(names_of[close])}?"
    return f"{kind}; give the run_dir of a pipeline file"


def _run_around(path: str) -> str | None:
    """The run directory that a path lies in, or None."""
    while (parent := os.path.dirname(path)) != path:
        path = parent
        if os.path.isfile(join(path, "run.json")):
            return _short(path)
    return None


def runs_in(folder: str) -> list[str]:
    """The run directories that lie directly in a local folder, by name."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for _, entry in zip(range(LOOKED_AT), entries, strict=False))
    except OSError:
        return []
    paths = (os.path.join(folder, name) for name in names)
    return [_short(path) for path in paths if os.path.isfile(join(path, "run.json"))]


def _outputs(run: str) -> Iterable[str]:
    """The output folders of a run; none if its run.json cannot be read."""
    try:
        with open(join(run, "run.json"), "rb") as file:
            folders = orjson.loads(file.read())["outputs"].values()
        return [str(folder) for stage in folders for folder in stage]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _short(path: str) -> str:
    """A path as a person types it: relative if it lies in the current folder."""
    beside = os.path.relpath(path)
    return path if beside.startswith("..") else beside
