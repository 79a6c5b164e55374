"""Which files of a listing are a reader's input. A launch counts and names the others; no task imports this.

Other programs leave files that are not data beside the data: `_SUCCESS`, `_metadata`, `_delta_log/`, `.part.crc`. Their
names begin with `_` or `.`, and Spark, Hive and Arrow skip such names. So do we, unless the glob names them.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from stagger.errors import agreeing, counted
from stagger.storage import Entry
from stagger.storage.storage import Storage, is_local

#: What a name that is left out may be.
MARKER, CHECKSUM, UNFINISHED = "folder markers", "checksums", "unfinished copies"
HIDDEN = "names that begin with '_' or '.'"

#: Ending of a file's name -> what the file is (of Hadoop's and Spark's).
ENDINGS = {"_$folder$": MARKER, ".crc": CHECKSUM, "._COPYING_": UNFINISHED}

#: Starts and endings of names that `why_not` looks at; to look at all names would take longer than to list them.
ODD_STARTS = ("_", ".")
ODD_ENDINGS = ("/", *ENDINGS)

#: Folders, and files in each, that are looked at for files that are not read; and files beside which nobody looks.
FOLDERS_SEEN, MANY_FILES = 100, 100_000

#: Names shown of each kind.
SHOWN = 3


@dataclass
class LeftOut:
    """The names that the glob matches and that are not input, by what they are."""

    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        self.names.setdefault(reason, []).append(name)

    def __str__(self) -> str:
        """A sentence such as `1 name is not input: folder markers (1): d/`; empty if nothing is left out."""
        if not self.names:
            return ""
        count = sum(map(len, self.names.values()))
        kinds = "; ".join(f"{reason} ({len(names)}): {shown(names)}" for reason, names in self.names.items())
        how = ", unless glob names them (as glob: _*)" if self.names.keys() - {MARKER} else ""
        return f"{count} name{'s are' if count > 1 else ' is'} not input{how}: {kinds}"


def shown(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(name or "the folder's own" for name in names[:SHOWN]) + more


def input_files(storage: Storage, path: str, glob: str, *, recursive: bool) -> tuple[list[Entry], LeftOut]:
    """The files of a folder that are input, sorted, from a single listing; and the names that are left out."""
    found = list(storage.find(path, recursive=recursive))
    named = names_in(glob)
    left_out = LeftOut()
    files = []
    for entry in matching(found, glob):
        name = entry.name
        odd = "/_" in name or "/." in name or name.startswith(ODD_STARTS) or name.endswith(ODD_ENDINGS) or not name
        if odd and (reason := why_not(entry, named)):
            left_out.add(reason, name)
        else:
            files.append(entry)
    files.sort()
    if not is_local(path) and any(not entry.size for entry in files):
        files = without_markers(storage, path, files, found if recursive else None, left_out)
    return files, left_out


def unread_folders(path: str, glob: str, files: int) -> str:
    """A sentence about folders of a local folder whose files match, too, but are not read; empty if there are none.

    Looks at no more than FOLDERS_SEEN folders and as many files in each; not at all in a folder of MANY_FILES `files`.
    """
    if not is_local(path) or files > MANY_FILES or not os.path.isdir(path):
        return ""
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))
    found = [name for name in names[:FOLDERS_SEEN] if _has_match(f"{path}/{name}", glob)]
    if not found:
        return ""
    several = len(found) > 1
    return (
        f"{counted(len(found), 'folder')} in {path}, such as {found[0]}/, {agreeing(len(found), 'holds')}"
        f" files that match {glob!r}, too, and {'are' if several else 'is'} not read: recursive: true reads them"
    )


def _has_match(folder: str, glob: str) -> bool:
    seen = 0
    for below, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        entries = [Entry(name, 0) for name in names if not is_hidden(name)]
        if any(True for _ in matching(entries, glob)):
            return True
        seen += len(names) + 1
        if seen > FOLDERS_SEEN or len(below) > 4000:
            return False
    return False


def matching(found: list[Entry], glob: str) -> list[Entry]:
    """The entries whose name matches the glob: their own name or, if the glob contains a `/`, their whole path."""
    if glob == "*":
        return found
    if "/" not in glob:
        match = re.compile(fnmatch.translate(glob)).match
        return [entry for entry in found if match(entry.name.rpartition("/")[2])]
    from fsspec.utils import glob_translate  # `*` stays within a folder, `**/` spans any number of them.

    match = re.compile(str(glob_translate(glob))).match
    return [entry for entry in found if match(entry.name)]


def names_in(glob: str) -> list[Callable[[str], object]]:
    """Matchers of those parts of the glob that name what is left out by default: as in a shell, by its first letter."""
    parts = [part for part in glob.split("/") if part.startswith(ODD_STARTS) or part.endswith(tuple(ENDINGS))]
    return [re.compile(fnmatch.translate(part)).match for part in parts]


def why_not(entry: Entry, named: Iterable[Callable[[str], object]]) -> str:
    """The reason why a file is not input; empty if it is."""
    *folders, name = entry.name.split("/")
    if not name or (not entry.size and name.endswith("_$folder$")):
        return MARKER
    for part in (*folders, name):
        if is_hidden(part) and not any(match(part) for match in named):
            return HIDDEN
    ending = next((ending for ending in ENDINGS if ending != "_$folder$" and name.endswith(ending)), "")
    return ENDINGS[ending] if ending and not any(match(name) for match in named) else ""


def is_hidden(part: str) -> bool:
    """Whether a part of a path is hidden. `_year=2024` is a partition; an object's key may have the parts `.` and `..`.

    >>> [is_hidden(part) for part in ("_SUCCESS", ".git", "._a", "_year=2024", "..", "a_")]
    [True, True, True, False, False, False]
    """
    if part.startswith("_"):
        return "=" not in part
    return part.startswith(".") and part not in (".", "..")


def without_markers(
    storage: Storage, path: str, files: list[Entry], found: Iterable[Entry] | None, left_out: LeftOut
) -> list[Entry]:
    """The sorted `files` without objects of zero bytes that have keys below them: some tools make folders that way.

    `found` is the recursive listing; without it, a request for each empty object looks below it.
    """
    empty = [entry.name for entry in files if not entry.size]
    if found is not None:
        folders = {name[:place] for name in (entry.name for entry in found) for place in slashes(name)}
        markers = folders.intersection(empty)
    else:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(32) as threads:
            below = threads.map(lambda name: next(iter(storage.walk(f"{path}/{name}")), None), empty)
            markers = {name for name, first in zip(empty, below, strict=True) if first is not None}
    for name in sorted(markers):
        left_out.add(MARKER, name)
    return [entry for entry in files if entry.size or entry.name not in markers]


def slashes(name: str) -> list[int]:
    return [place for place, letter in enumerate(name) if letter == "/"]
