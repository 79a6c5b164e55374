"""A listing, page by page: each key once, and never without an end. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator

from stagger.errors import StorageError
from stagger.storage import ascending
from stagger.storage.s3.engine import Page

#: Pages without a key or a folder that a listing may have in a row.
EMPTY_PAGES = 1000

#: Asks for the page with this token (empty for the first), or for the page after this key.
Ask = Callable[[str, str], Page]


class Chain:
    """The pages of a listing one after another, each named by the one before: what every store can do.

    `ordered` is whether each key so far is greater than the one before it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._tokens = {""}
        self._empty = 0
        self._seen = Seen()
        self.more = ""

    @property
    def ordered(self) -> bool:
        return self._seen.ordered

    def take(self, page: Page) -> None:
        """Check the next page.

        Raises StorageError when a key or a token comes twice, or when the listing goes on without keys.
        """
        if (name := self._seen.add(page.names)) is not None:
            raise StorageError(f"{self._path}: the store's listing names {name!r} twice; it cannot be relied on.")
        self.more, self._empty = page.more, 0 if page.names or page.folders else self._empty + 1
        if not self.more:
            return
        if self.more in self._tokens:
            raise StorageError(
                f"{self._path}: the store's listing does not end: it names the next page {self.more!r} twice."
            )
        if self._empty > EMPTY_PAGES:
            raise StorageError(
                f"{self._path}: the store's listing does not end: {self._empty} pages in a row are empty."
            )
        self._tokens.add(self.more)

    def rest(self, ask: Ask) -> Iterator[Page]:
        """The pages after those that were taken."""
        while self.more:
            page = ask(self.more, "")
            self.take(page)
            yield page


class Seen:
    """The names of a listing so far, to notice one that comes twice: 8 bytes each, as long as they are in order."""

    def __init__(self) -> None:
        self._last = ""
        self._hashes = array("q")
        self._unordered: set[int] | None = None

    @property
    def ordered(self) -> bool:
        return self._unordered is None

    def add(self, names: list[str]) -> str | None:
        """The first of these names that is not new."""
        if not names:
            return None
        if self._unordered is None and names[0] > self._last and ascending(names):
            self._last = names[-1]
            self._hashes.extend(map(hash, names))
            return None
        if self._unordered is None:
            self._unordered = set(self._hashes)
        for name in names:
            if hash(name) in self._unordered:
                return name
            self._unordered.add(hash(name))
        return None
