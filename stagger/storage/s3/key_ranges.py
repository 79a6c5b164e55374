"""A listing divided into ranges of keys that are read at the same time: which to ask, and where to divide. Pure.

The first range is the listing itself, page after page. Another range begins after a key that need not exist
(StartAfter), and ends where its right neighbour begins. So each key is in one range, wherever the divisions are.

First, the divisions climb: all keys so far begin with `part-0000`, so what comes after all those? `part-0001000`: what
comes after all keys that begin with `part-000`? Later, the range that has most left is halved, as far as the characters
of its keys tell. Both cost requests that bring nothing new, so their number is limited by that of the pages.
"""

from __future__ import annotations

import marshal
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import zstandard

from stagger.storage import ascending
from stagger.storage.s3.engine import PAGE_KEYS, Page
from stagger.storage.s3.key_space import KeySpace, common
from stagger.storage.s3.pages import EMPTY_PAGES

#: Pages for each division: a listing of n pages takes at most about n + n / 4 requests.
PAGES_PER_DIVISION = 4

#: Pages that a range must have left, by estimate, to be divided.
WORTH_PAGES = 3

#: zstd's level for pages that wait.
PACKED_LEVEL = 1

#: A range has at most this many times the keys left that it has had, by estimate.
FACTOR = 16.0


class Disorder(Exception):
    """The store does not list keys in their order, or not from a key on: only the first range can be relied on."""


class Shelf:
    """Pages that wait until the last one of a listing has come, in a sixth of their memory.

    They lie in one buffer: as many small ones would keep the memory between them from being used again.
    """

    def __init__(self) -> None:
        self._data = bytearray()

    def put(self, page: Page) -> slice:
        start = len(self._data)
        self._data += zstandard.compress(marshal.dumps(tuple(page)), PACKED_LEVEL)
        return slice(start, len(self._data))

    def get(self, place: slice) -> Page:
        return Page(*marshal.loads(zstandard.decompress(self._data[place])))  # noqa: S302 # What `put` has written.


@dataclass(eq=False)
class Range:
    """The keys after `start`, up to `end` (None: to the last). `last` is the greatest key or folder so far."""

    start: str
    end: str | None = None
    first: str = ""
    last: str = ""
    more: str = ""
    head: str = ""  # The first key or folder after `start`.
    beyond: str = ""  # The first key or folder after `end`.
    asked: bool = False
    done: bool = False
    keys: int = 0
    since: int = 0  # Keys since it was divided.
    left: float = 0.0  # Keys, by estimate.
    empty: int = 0
    tokens: set[str] = field(default_factory=set)
    pages: list[slice] = field(default_factory=list)
    shelf: Shelf = field(default_factory=Shelf)

    @property
    def begun(self) -> bool:
        return bool(self.more)

    def take(self, page: Page) -> None:
        """Add the range's next page. Raises Disorder when its names are not in order after those before."""
        least, greatest = span(page)
        if greatest:
            self._check(page, least)
            self.first, self.last = self.first or least, max(greatest, self.last)
            self.head = self.head or first_after(page, self.start)
        self.empty = 0 if greatest else self.empty + 1
        if page.more in self.tokens or self.empty > EMPTY_PAGES:
            raise Disorder
        self.tokens.add(page.more)
        self.pages.append(self.shelf.put(page))
        self.keys += len(page.names) + len(page.folders)
        self.since += len(page.names) + len(page.folders)
        self.more = page.more
        if self.end is not None and self.last > self.end:
            self.beyond = first_after(page, self.end)
        self.done = not page.more or bool(self.beyond)

    def _check(self, page: Page, least: str) -> None:
        """A folder that begins before the range may end in it, and is listed on its first page."""
        folder_around = not self.begun and page.folders[:1] == [least] and self.start.startswith(least)
        if not (ascending(page.names) and ascending(page.folders)) or (page.names and page.names[0] <= self.last):
            raise Disorder
        if least <= self.last and not folder_around:
            raise Disorder

    def taken(self) -> Iterator[Page]:
        """The pages so far."""
        return map(self.shelf.get, self.pages)

    def cut(self) -> Iterator[Page]:
        """The pages without the keys after `end`."""
        for page in self.taken():
            if self.end is not None and page.names and page.names[-1] > self.end:
                size = bisect_right(page.names, self.end)
                page = page._replace(names=page.names[:size], sizes=page.sizes[:size], versions=page.versions[:size])
            yield page


def span(page: Page) -> tuple[str, str]:
    """The least and the greatest name on a page, of keys and folders; empty if it has none."""
    names = page.names[:1] + page.names[-1:] + page.folders[:1] + page.folders[-1:]
    return min(names, default=""), max(names, default="")


def first_after(page: Page, name: str) -> str:
    """The first key or folder on a page in order that is greater than `name`; empty if there is none."""
    places = ((names, bisect_right(names, name)) for names in (page.names, page.folders))
    return min((names[place] for names, place in places if place < len(names)), default="")


class KeyRanges:
    """The ranges of one listing, in order, at most `most` of them asked for at the same time."""

    def __init__(self, prefix: str, most: int, begun: list[Page]) -> None:
        """`begun` are the first pages; there are more."""
        self.space = KeySpace(prefix)
        self.most = most
        self.pages = len(begun)
        self.divisions = 0
        whole = Range("")
        for page in begun:
            whole.take(page)
            self._learn(page)
        whole.pages.clear()
        self.ranges = [whole]
        self._open = [whole]  # Those with more to ask for.
        self._climb: str | None = whole.first[: common(whole.first, whole.last)]
        self._estimate(whole)

    def requests(self) -> list[Range]:
        """The ranges to ask for their next page now: with the token `more` or, if they have none yet, after `start`."""
        free = self.most - sum(each.asked for each in self._open)
        chosen = [each for each in self._open if not each.asked][:free]
        while len(chosen) < free and (new := self._divide()) is not None:
            chosen.append(new)
        for each in chosen:
            each.asked = True
        return chosen

    def take(self, source: Range, page: Page) -> None:
        """The answer to a request. Raises Disorder."""
        source.asked = False
        source.take(page)
        if source.done:
            self._open.remove(source)
        self.pages += 1
        self._learn(page)
        self._estimate(source)

    def check(self) -> None:
        """Raise Disorder unless each range, once all are read, goes on where the next begins: with the same key.

        Then all ranges together are the listing page after page, in whatever order the store lists. (A key that came or
        went at such a place meanwhile is also Disorder.)
        """
        for one, other in pairwise(self.ranges):
            if one.beyond != other.head:
                raise Disorder

    def cut(self) -> Iterator[Page]:
        """All pages in order, each key once."""
        for each in self.ranges:
            yield from each.cut()

    def _learn(self, page: Page) -> None:
        names = page.names
        for name in (names[0], names[len(names) // 2], names[-1]) if names else page.folders[-1:]:
            self.space.learn(name)

    def _estimate(self, each: Range) -> None:
        """Estimate the keys left in a range from those that it has had, and from the distances in the key space."""
        if each.done or not each.keys:
            each.left = 0.0
            return
        base = self.space.base(each.first, each.end)
        first, last, end = (self.space.value(name, base) for name in (each.first, each.last, each.end))
        by_distance = (end - last) / (last - first) if last > first else FACTOR
        each.left = max(1.0, each.keys * min(by_distance, FACTOR))

    def _divide(self) -> Range | None:
        """A new range, cut off another one."""
        if (self.divisions + 1) * PAGES_PER_DIVISION > self.pages:
            return None
        return self._climbed() if self._climb is not None else self._halved()

    def _climbed(self) -> Range | None:
        """The range after all keys that begin as all so far do. None while that before it is not known."""
        top, climb = self.ranges[-1], self._climb or ""
        if not top.keys and not top.done:
            return self._halved()
        start = self.space.beyond(climb[: common(climb, top.last)])
        if top.done or start is None:
            self._climb = None
            return self._halved()
        self._climb = climb[: common(climb, start)]
        return self._cut_off(top, start)

    def _halved(self) -> Range | None:
        """The second half of what the range with most left has left."""
        going = [each for each in self._open if each.left]
        worth = [each for each in going if each.left > WORTH_PAGES * PAGE_KEYS]
        if not worth and len(going) * 2 < self.most:  # One that has gone on for long will rather go on than end.
            worth = [each for each in going if each.since > WORTH_PAGES * PAGE_KEYS]
        for each in sorted(worth, key=lambda each: (each.left, each.since), reverse=True):
            open_end = self._climb is not None and each is self.ranges[-1]
            if not open_end and (middle := self.space.between(each.last, each.end)) is not None:
                return self._cut_off(each, middle)
        return None

    def _cut_off(self, each: Range, start: str) -> Range:
        new = Range(start, each.end, last=start, shelf=each.shelf)
        each.end, each.since = start, 0
        self.ranges.insert(self.ranges.index(each) + 1, new)
        self._open.append(new)
        self.divisions += 1
        self._estimate(each)
        return new
