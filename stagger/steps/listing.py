"""Which files of a listing are a reader's input. A launch counts and names the others; no task imports this.

Other programs leave files that are not data beside the data: `_SUCCESS`, `_metadata`, `_delta_log/`, `.part.crc`. Their
names begin with `_` or `.`, and Spark, Hive and Arrow skip such names. So do we, unless the glob names them.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from operator import methodcaller

from stagger.errors import agreeing, counted
from stagger.pipeline.shard_table import ShardTable
from stagger.storage import Files
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

#: What the names of a listing, one after another between slashes, hold if one of them is odd.
ODD_PARTS = tuple(f"/{start}" for start in (*ODD_STARTS, "/")) + tuple(f"{ending}/" for ending in ENDINGS)

#: Names shown of each kind.
SHOWN = 3


@dataclass
class LeftOut:
    """The names that the glob matches and that are not input, by what they are: their number, and the first ones."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] += 1
        first = self.first.setdefault(reason, [])
        if len(first) < SHOWN:
            first.append(name)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        """A sentence such as `1 name is not input: folder markers (1): d/`; empty if nothing is left out."""
        if not self:
            return ""
        count = self.counts.total()
        kinds = "; ".join(f"{reason} ({self.counts[reason]}): {self._shown(reason)}" for reason in self.counts)
        how = ", unless glob names them (as glob: _*)" if self.counts.keys() - {MARKER} else ""
        return f"{count} name{'s are' if count > 1 else ' is'} not input{how}: {kinds}"

    def _shown(self, reason: str) -> str:
        more = self.counts[reason] - len(self.first[reason])
        return ", ".join(name or "the folder's own" for name in self.first[reason]) + (
            f" and {more} more" if more else ""
        )


def input_files(storage: Storage, path: str, glob: str, *, recursive: bool) -> tuple[ShardTable, LeftOut]:
    """The files of a folder that are input, sorted, from a single listing; and the names that are left out.

    Raises StaggerError for an input whose name is not UTF-8.
    """
    table, left_out = ShardTable(), LeftOut()
    wanted, named = matcher(glob), names_in(glob)
    folders: set[str] | None = set() if recursive and not is_local(path) else None
    for files in storage.listed(path, recursive=recursive):
        if folders is not None:
            folders.update(name.rpartition("/")[0] for name in files.names)
        if wanted is not None:
            files = chosen(files, list(map(wanted, files.names)))
        table.add(without_odd(files, named, left_out))
    table = table.in_order()
    if not is_local(path) and 0 in table.sizes:
        table = without_markers(storage, path, table, folders, left_out)
    return table, left_out


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
    fits = matcher(glob)
    seen = 0
    for below, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        if any(fits is None or fits(name) for name in names if not is_hidden(name)):
            return True
        seen += len(names) + 1
        if seen > FOLDERS_SEEN or len(below) > 4000:
            return False
    return False


def chosen(files: Files, selected: Sequence[object]) -> Files:
    """The files for which `selected` holds something true."""
    if all(selected):
        return files
    names, sizes, versions = files
    return Files(list(compress(names, selected)), list(compress(sizes, selected)), list(compress(versions, selected)))


def matcher(glob: str) -> Callable[[str], object] | None:
    """Whether a name matches the glob: its last part or, if the glob contains a `/`, its whole path. None if all do."""
    if glob == "*":
        return None
    if re.fullmatch(r"\*[^]*?[/]+", glob):
        return methodcaller("endswith", glob[1:])
    if "/" not in glob:
        match = re.compile(fnmatch.translate(glob)).match
        return lambda name: match(name.rpartition("/")[2])
    from fsspec.utils import glob_translate  # `*` stays within a folder, `**/` spans any number of them.

    return re.compile(str(glob_translate(glob))).match


def without_odd(files: Files, named: Sequence[Callable[[str], object]], left_out: LeftOut) -> Files:
    """The files without those that other programs leave beside the data, which are added to `left_out`."""
    together = f"/{'/'.join(files.names)}/"
    if not any(part in together for part in ODD_PARTS):
        return files
    selected = []
    for name, size in zip(files.names, files.sizes, strict=True):
        odd = "/_" in name or "/." in name or name.startswith(ODD_STARTS) or name.endswith(ODD_ENDINGS) or not name
        reason = why_not(name, size, named) if odd else ""
        if reason:
            left_out.add(reason, name)
        selected.append(not reason)
    return chosen(files, selected)


def names_in(glob: str) -> list[Callable[[str], object]]:
    """Matchers of those parts of the glob that name what is left out by default: as in a shell, by its first letter."""
    parts = [part for part in glob.split("/") if part.startswith(ODD_STARTS) or part.endswith(tuple(ENDINGS))]
    return [re.compile(fnmatch.translate(part)).match for part in parts]


def why_not(path: str, size: int, named: Iterable[Callable[[str], object]]) -> str:
    """The reason why a file is not input; empty if it is."""
    *folders, name = path.split("/")
    if not name or (not size and name.endswith("_$folder$")):
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
    storage: Storage, path: str, table: ShardTable, folders: Iterable[str] | None, left_out: LeftOut
) -> ShardTable:
    """The sorted files without objects of zero bytes that have keys below them: some tools make folders that way.

    `folders` are those of all files of the recursive listing; without them, a request for each empty object looks
    below it.
    """
    empty = [name for files in table.parts() for name, size in zip(files.names, files.sizes, strict=True) if not size]
    if folders is not None:
        markers = {start for folder in folders for start in with_parents(folder)}.intersection(empty)
    else:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(32) as threads:
            below = threads.map(lambda name: next(iter(storage.walk(f"{path}/{name}")), None), empty)
            markers = {name for name, first in zip(empty, below, strict=True) if first is not None}
    for name in sorted(markers):
        left_out.add(MARKER, name)
    kept = ShardTable()
    for files in table.parts() if markers else ():
        kept.add(chosen(files, [name not in markers for name in files.names]))
    return kept if markers else table


def with_parents(folder: str) -> list[str]:
    """A folder and those that it lies in.

    >>> with_parents("a/b")
    ['a/b', 'a']
    """
    return [folder, *(folder[:place] for place, letter in enumerate(folder) if letter == "/")]
