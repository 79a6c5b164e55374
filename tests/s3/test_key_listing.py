"""Long listings, read in many ranges of keys at once: the same as page after page, on a store of any keys."""

from __future__ import annotations

import random
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagger.errors import StorageError
from stagger.storage.s3 import key_listing
from stagger.storage.s3.engine import Page
from stagger.storage.s3.key_listing import Requests, pages
from stagger.storage.s3.key_ranges import KeyRanges, Range
from stagger.storage.s3.key_space import KeySpace


def in_utf16(key: str) -> bytes:
    return key.encode("utf-16-be")


def by_case(key: str) -> tuple[str, str]:
    return (key.swapcase(), key)


@dataclass
class Store:
    """A store of keys, in its own order, that answers as S3 does. A token is the last key of the page before."""

    keys: set[str]
    size: int = 3
    order: Callable[[str], Any] = str
    folders: bool = False
    knows_start: bool = True
    change: Callable[[Store], None] = lambda store: None
    asked: int = 0
    gate: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, prefix: str, more: str, after: str) -> Page:
        with self.gate:
            self.asked += 1
            self.change(self)
            start = more.removeprefix("token ") if more else after if self.knows_start else ""
            return self.page(prefix, start)

    def page(self, prefix: str, start: str) -> Page:
        found = sorted((key for key in self.keys if key.startswith(prefix)), key=self.order)
        begin = (
            next((i for i, key in enumerate(found) if self.order(key) > self.order(start)), len(found)) if start else 0
        )
        names: list[str] = []
        folders: list[str] = []
        for at, key in enumerate(found[begin:], begin):
            end = key.find("/", len(prefix)) if self.folders else -1
            if end >= 0 and key[: end + 1] in folders:
                last = at
                continue
            if len(names) + len(folders) == self.size:
                return self.answer(names, folders, f"token {found[last]}")
            folders.append(key[: end + 1]) if end >= 0 else names.append(key)
            last = at
        return self.answer(names, folders, "")

    def answer(self, names: list[str], folders: list[str], more: str) -> Page:
        sizes = [len(name) for name in names]
        versions = [f'"{hash(name)}"' for name in names]
        return Page(names, sizes, versions, more, folders)


def listed(store: Store, prefix: str = "") -> list[tuple[str, int, str]]:
    requests = Requests(lambda more, after: store.ask(prefix, more, after), lambda once: once())
    return [
        row
        for page in pages("s3://b", prefix, requests)
        for row in zip(page.names, page.sizes, page.versions, strict=True)
    ]


def plainly(store: Store, prefix: str = "") -> list[tuple[str, int, str]]:
    rows: list[tuple[str, int, str]] = []
    page = store.page(prefix, "")
    while True:
        rows += zip(page.names, page.sizes, page.versions, strict=True)
        if not page.more:
            return rows
        page = store.page(prefix, page.more.removeprefix("token "))


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges are divided at almost every page, so that small listings have many of them."""
    for name, value in {"PAGES_PER_DIVISION": 2, "WORTH_PAGES": 1, "PAGE_KEYS": 1}.items():
        monkeypatch.setattr(f"stagger.storage.s3.key_ranges.{name}", value)


#: Letters that sort differently by UTF-16 and by UTF-8, that end ranges, that are folders, and that URLs escape.
LETTERS = st.sampled_from(
    ["a", "b", "z", "0", "1", "9", "/", "~", "%", "+", " ", "é", "\ud7ff", "\ue000", "\uffff", "\U00010000"]
)
NAMES = st.text(LETTERS, min_size=1, max_size=6)
NUMBERED = st.integers(0, 2000).map(lambda number: f"part-{number:05d}")
NESTED = st.tuples(st.integers(0, 12), st.integers(0, 30)).map(lambda at: f"seg-{at[0]:03d}/part-{at[1]:04d}")
KEYS = st.one_of(*(st.sets(each, max_size=80) for each in (NAMES, NUMBERED, NESTED, st.text(min_size=1, max_size=4))))


@settings(max_examples=300, deadline=None)
@given(keys=KEYS, size=st.integers(1, 7), folders=st.booleans(), data=st.data())
def test_each_key_once_and_in_order_whatever_the_keys(
    keys: set[str], size: int, folders: bool, data: st.DataObject
) -> None:
    keys = {key for key in keys if key.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in key)}
    starts = sorted({key[:length] for key in keys for length in (0, 1, 4)} | {""})
    prefix = data.draw(st.sampled_from(starts))
    store = Store(keys, size, folders=folders)
    found = listed(store, prefix)
    assert found == plainly(store, prefix)
    assert [name for name, _, _ in found] == sorted((name for name, _, _ in found), key=str.encode)


@settings(max_examples=200, deadline=None)
@given(
    keys=KEYS,
    size=st.integers(1, 7),
    order=st.sampled_from([in_utf16, by_case, lambda key: key[::-1]]),
    folders=st.booleans(),
)
def test_a_store_with_an_order_of_its_own_is_listed_whole(
    keys: set[str], size: int, order: Callable[[str], Any], folders: bool
) -> None:
    keys = {key for key in keys if not any("\ud800" <= letter <= "\udfff" for letter in key)}
    store = Store(keys, size, order, folders)
    assert sorted(listed(store)) == sorted(plainly(store))


@settings(max_examples=100, deadline=None)
@given(keys=KEYS, size=st.integers(1, 7), folders=st.booleans())
def test_a_store_that_does_not_know_start_after_is_listed_page_after_page(
    keys: set[str], size: int, folders: bool
) -> None:
    keys = {key for key in keys if not any("\ud800" <= letter <= "\udfff" for letter in key)}
    store = Store(keys, size, folders=folders, knows_start=False)
    assert listed(store) == plainly(store)


@settings(max_examples=200, deadline=None)
@given(keys=st.sets(NUMBERED | NAMES, min_size=10, max_size=80), seed=st.integers(), size=st.integers(1, 7))
def test_keys_that_come_and_go_meanwhile_hide_no_other(keys: set[str], seed: int, size: int) -> None:
    draw = random.Random(seed)
    steady = {key for key in keys if draw.random() < 0.6}
    come_and_go = sorted(keys - steady)

    def change(store: Store) -> None:
        for key in draw.sample(come_and_go, len(come_and_go) // 3):
            store.keys ^= {key}

    found = [name for name, _, _ in listed(Store(set(keys), size, change=change))]
    assert steady <= set(found) <= keys
    assert all(one < other for one, other in pairwise(found))


def read_in_any_order(store: Store, draw: random.Random, most: int) -> tuple[list[str], set[str]]:
    """The keys, and where ranges began. Without threads: any of the open questions may be the next to be answered."""
    first = store.page("", "")
    if not first.more:
        return first.names, set()
    ranges = KeyRanges("", most, [first])
    waiting: list[tuple[Range, Page]] = []
    while True:
        waiting += [(each, store.ask("", each.more, each.start)) for each in ranges.requests()]
        assert len(waiting) <= most
        if not waiting:
            break
        ranges.take(*waiting.pop(draw.randrange(len(waiting))))
    ranges.check()
    starts = {each.start for each in ranges.ranges} - {""}
    return [*first.names, *(name for page in ranges.cut() for name in page.names)], starts


@settings(max_examples=200, deadline=None)
@given(keys=KEYS, seed=st.integers(), most=st.integers(1, 9))
def test_neither_the_order_of_answers_nor_keys_where_ranges_begin_matter(keys: set[str], seed: int, most: int) -> None:
    store = Store(keys)
    for _ in range(3):
        found, starts = read_in_any_order(store, random.Random(seed), most)
        assert found == sorted(store.keys)
        store.keys = store.keys | starts


def test_ranges_are_divided_in_these_tests() -> None:
    """The tests of small stores would prove nothing without divisions."""
    _, starts = read_in_any_order(Store({f"part-{number:05d}" for number in range(100)}), random.Random(0), 9)
    assert len(starts) > 5


@pytest.mark.parametrize("folders", [False, True])
@pytest.mark.parametrize("at", [5, 20, 60])
def test_disorder_that_begins_late_is_noticed(at: int, folders: bool) -> None:
    """Keys in order up to some page, and then in no order, within pages and between them."""
    keys = {f"part-{number:05d}{'/x' * (folders and number % 7 == 0)}" for number in range(100)}
    steady = set(sorted(keys)[:at])
    for order in (
        lambda key: key[::-1],
        lambda key: f"{int(key[5:10]) ^ 1:05d}",
        lambda key: f"{99999 - int(key[5:10])}",
    ):

        def late(key: str, order: Callable[[str], str] = order) -> tuple[bool, str]:
            return key not in steady, key if key in steady else order(key)

        store = Store(keys, order=late, folders=folders)
        assert sorted(listed(store)) == sorted(plainly(store))


@given(low=st.text(max_size=6), high=st.none() | st.text(max_size=6), seen=st.lists(st.text(max_size=6), max_size=5))
def test_a_division_lies_between_its_keys(low: str, high: str | None, seen: list[str]) -> None:
    space = KeySpace("")
    for name in (low, *seen):
        space.learn(name)
    if (high is None or low < high) and (middle := space.between(low, high)) is not None:
        assert low < middle
        assert high is None or middle < high
        assert max(middle) < "\ud800"
    if (after := space.beyond(low)) is not None:
        assert after > low + "\U0010ffff" or not after.startswith(low)


@pytest.fixture
def as_shipped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        for name, value in {"PAGES_PER_DIVISION": 4, "WORTH_PAGES": 3, "PAGE_KEYS": 10}.items():
            patch.setattr(f"stagger.storage.s3.key_ranges.{name}", value)
        yield


@pytest.mark.usefixtures("as_shipped")
@pytest.mark.parametrize(
    "key",
    ["part-{:07d}.jsonl.gz", "{:x}", "year=2024/month=01/day=01/part-{:05d}-c000.snappy", "{:032x}/0", "shard {}"],
)
def test_small_folders_take_few_requests_and_large_ones_a_quarter_more_at_most(key: str) -> None:
    for count, most in ((10, 1), (20, 2), (100, 13), (5000, 625)):
        store = Store({key.format(number) for number in range(count)}, size=10)
        assert len(listed(store)) == count
        assert store.asked <= most


@pytest.mark.usefixtures("as_shipped")
@pytest.mark.parametrize(
    "name",
    [
        lambda number: f"part-{number:07d}.jsonl.gz",
        lambda number: f"segment-{number // 50:05d}/part-{number:07d}",
        lambda number: f"segment-{number // 5000:03d}/part-{number % 5000:08d}",
        lambda number: f"{number * 2654435761 % 2**32:08x}",
        lambda number: f"crawl/{number // 2000}/{'ab'[number // 1000 % 2]}/{number}",
    ],
)
def test_a_large_folder_is_read_in_many_places_at_once(name: Callable[[int], str]) -> None:
    """In rounds of 16 requests at once, 1000 pages take less than 100 rounds."""
    store = Store({name(number) for number in range(10_000)}, size=10)
    rows = sorted(store.keys)

    def page(start: str) -> Page:
        at = bisect_right(rows, start)
        return store.answer(rows[at : at + 10], [], f"token {rows[at + 9]}" if at + 10 < len(rows) else "")

    first = page("")
    ranges, rounds = KeyRanges("", 16, [first]), 0
    while questions := ranges.requests():
        rounds += 1
        for each in questions:
            ranges.take(each, page(each.more.removeprefix("token ") or each.start))
    assert [*first.names, *(name for each in ranges.cut() for name in each.names)] == rows
    assert rounds < 100


def test_an_error_of_one_range_ends_the_listing_and_its_threads() -> None:
    store = Store({f"part-{number:04d}" for number in range(300)})

    def ask(more: str, after: str) -> Page:
        if store.asked > 30:
            raise StorageError("the store is gone") from ConnectionResetError()
        return store.ask("", more, after)

    before = threading.active_count()
    with pytest.raises(StorageError, match="the store is gone"):
        list(pages("s3://b", "", Requests(ask, lambda once: once())))
    for thread in [thread for thread in threading.enumerate() if thread.name.startswith(key_listing.THREADS)]:
        thread.join(10)
    assert threading.active_count() == before


def test_a_listing_that_is_left_early_asks_for_nothing_more() -> None:
    store = Store({f"part-{number:04d}" for number in range(300)})
    listing = pages("s3://b", "", Requests(lambda more, after: store.ask("", more, after), lambda once: once()))
    assert next(listing).names[0] == "part-0000"
    listing.close()  # type: ignore[attr-defined]
    assert store.asked == 1
