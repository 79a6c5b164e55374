"""Where a key is written: its file and line, or the option that sets it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from stagger.errors import StaggerError
from stagger.spec.yaml_file import Path
from stagger.storage.storage import absolute


@dataclass(frozen=True)
class Place:
    """A file and the lines of its keys, for messages."""

    file: str
    lines: Mapping[Path, int]
    elsewhere: Mapping[Path, str] = field(default_factory=dict)
    """The places, as `file:line`, of keys whose values come from another file: a profile's."""
    options: Mapping[Path, str] = field(default_factory=dict)
    """The keys that options of the command line set, and the option that sets each: `--set executor.time`."""
    shared: Collection[Path] = ()
    """The paths of values that aliases of YAML stand for."""
    python: bool = False
    """Whether the keys are arguments of an executor, and `file` its class."""

    def of(self, path: Path) -> str:
        """Format a place as `file:line: a.b.c`. A key that is not in the file gets the line of the key around it."""
        if (option := self.options.get(path)) is not None:
            return option
        where = self.line(path)
        if self.python and path[:1] == ("executor",):
            path = path[1:]
        name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        return f"{where}: {name}" if name else where

    def line(self, path: Path) -> str:
        """The place of a key as `file:line`, or the file alone when it has no key around `path`."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.options:
                return self.options[path[:length]]
        known = path
        while known and known not in self.lines and known not in self.elsewhere:
            known = known[:-1]
        if known in self.elsewhere:
            return self.elsewhere[known]
        return f"{self.file}:{self.lines[known]}" if known in self.lines and known else self.file


def absolute_at(run_dir: str, place: Place) -> str:
    """The run directory that a file names, made absolute. Raises StaggerError, with the place, when it is no path."""
    try:
        return absolute(run_dir)
    except StaggerError as error:
        raise StaggerError(f"{place.of(('run_dir',))}: {error}") from None
