"""Which files a stage may write: the names of its writers' outputs, as run.json keeps them."""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from functools import cached_property

from stagger.steps.listing import is_hidden
from stagger.storage.storage import is_local

#: Field of a template -> what takes its place, as a regular expression: a padded number, or a path.
FIELDS = {"{rank}": r"\d{5,}", "{part}": r"\d{5,}", "{number}": r"\d+", "{stem}": ".+", "{*}": "[^/]+"}

SAMPLES = {"rank": "00000", "part": "00000", "number": "0", "stem": "x", "*": "x"}


@dataclass(frozen=True)
class OutputNames:
    """The files that a writer may write below `folder`: those whose relative paths fit one of `templates`.

    A template is a path with the fields `{rank}`, `{part}`, `{number}`, `{stem}`, and `{*}` for one of the metadata.

    >>> names = OutputNames("/out", ["{rank}.jsonl.gz", "{stem}.txt"])
    >>> [names.fits(name) for name in ("00012.jsonl.gz", "12.jsonl.gz", "en/a.txt", "en/_a.txt")]
    [True, False, True, False]
    """

    folder: str
    templates: list[str]

    @property
    def recursive(self) -> bool:
        """Whether files may lie in folders below `folder`."""
        return any("{stem}" in template or "/" in template for template in self.templates)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(f"(?:{expression(template)})" for template in self.templates), re.DOTALL)

    @property
    def by_value(self) -> bool:
        """Whether names depend on the documents, so that no launch knows them."""
        return any("{*}" in template for template in self.templates)

    @property
    def samples(self) -> list[str]:
        """A path for each template, with a value for each field."""
        fill = functools.partial(re.sub, r"\{(rank|part|number|stem|\*)\}", lambda field: SAMPLES[field[1]])
        return [f"{self.folder.rstrip('/')}/{fill(template)}" for template in self.templates]

    def fits(self, name: str) -> bool:
        """Whether a path relative to `folder` is one of these names. Hidden names, which no reader reads, are none."""
        return self._pattern.fullmatch(name) is not None and not (
            self.recursive and any(map(is_hidden, name.split("/")))
        )


def expression(template: str) -> str:
    """The regular expression for a template."""
    parts = re.split(r"(\{(?:rank|part|number|stem|\*)\})", template)
    return "".join(FIELDS.get(part) or re.escape(part) for part in parts)


class Places:
    """Where files lie, whatever links lead to their folders. Looks at each folder once."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def folder(self, path: str) -> str:
        """The place of a folder."""
        if path not in self._folders:
            self._folders[path] = os.path.realpath(path) if is_local(path) else path.rstrip("/")
        return self._folders[path]

    def file(self, path: str) -> str:
        """The place of a file. A link to a file is a file of its own."""
        folder, _, name = path.rpartition("/")
        return f"{self.folder(folder)}/{name}"

    def overlap(self, one: OutputNames, other: OutputNames) -> bool:
        """Whether two writers, one of whose names depend on the documents, could write the same file."""
        pairs = ((one, other), (other, one))
        return (one.by_value or other.by_value) and any(
            (name := self.below(mine.folder, path)) is not None and mine.fits(name)
            for mine, theirs in pairs
            for path in theirs.samples[:1]
        )

    def below(self, folder: str, path: str) -> str | None:
        """The path of a file relative to a folder; None if it does not lie below it."""
        start, place = f"{self.folder(folder)}/", self.file(path)
        return place.removeprefix(start) if place.startswith(start) else None
