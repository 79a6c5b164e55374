"""A listing, page by page: each key once, and never without an end."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator

from stagger.errors import StorageError
from stagger.storage import Entry
from stagger.storage.s3.engine import Page

#: Pages without a key or a folder that a listing may have in a row.
EMPTY_PAGES = 1000


def entries(path: str, ask: Callable[[str], Page]) -> Iterator[Entry]:
    """The objects on all pages. `ask` gets the token of a page, empty for the first.

    Raises StorageError when a key or a token comes twice, or when the listing goes on without keys.
    """
    seen, tokens, empty, more = Seen(), {""}, 0, ""
    while True:
        page = ask(more)
        for entry in page.entries:
            if not seen.add(entry.name):
                raise StorageError(f"{path}: the store's listing names {entry.name!r} twice; it cannot be relied on.")
            yield entry
        more, empty = page.more, 0 if page.entries or page.folders else empty + 1
        if not more:
            return
        if more in tokens:
            raise StorageError(f"{path}: the store's listing does not end: it names the next page {more!r} twice.")
        if empty > EMPTY_PAGES:
            raise StorageError(f"{path}: the store's listing does not end: {empty} pages in a row are empty.")
        tokens.add(more)


class Seen:
    """The names of a listing so far, to notice one that comes twice: 8 bytes each, as long as they are in order."""

    def __init__(self) -> None:
        self._last = ""
        self._hashes = array("q")
        self._unordered: set[int] | None = None

    def add(self, name: str) -> bool:
        """Whether `name` is new."""
        if self._unordered is None and name > self._last:
            self._last = name
            self._hashes.append(hash(name))
            return True
        if self._unordered is None:
            self._unordered = set(self._hashes)
        if hash(name) in self._unordered:
            return False
        self._unordered.add(hash(name))
        return True
