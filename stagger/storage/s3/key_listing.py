"""Lists the keys that begin with a prefix: a short listing page after page, a long one in many places at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from queue import SimpleQueue
from threading import Thread
from typing import NamedTuple

from stagger.errors import StorageError
from stagger.storage import S3_CONNECTIONS
from stagger.storage.faults import fault_of
from stagger.storage.s3.engine import Page
from stagger.storage.s3.key_ranges import Disorder, KeyRanges, Range
from stagger.storage.s3.pages import Chain

#: Pages that are read one after another before others are read at the same time.
FIRST_PAGES = 2

#: How the names of the threads begin.
THREADS = "listing-"


class Requests(NamedTuple):
    """How to get a page: `ask` makes one request, for a token or after a key, and `call` retries what it is given."""

    ask: Callable[[str, str], Page]
    call: Callable[[Callable[[], Page]], Page]

    def page(self, more: str, after: str) -> Page:
        return self.call(lambda: self.ask(more, after))


def pages(path: str, prefix: str, requests: Requests) -> Iterator[Page]:
    """All pages, each key once; in the order of the keys if the store has one.

    Raises StorageError when the listing cannot be relied on (`Chain.take`), and what the requests raise.
    """
    chain = Chain(path)
    page = requests.page("", "")
    chain.take(page)
    begun = [page]
    yield page
    for page in islice(chain.rest(requests.page), FIRST_PAGES - 1):
        begun.append(page)
        yield page
    if chain.more and chain.ordered:
        yield from many_at_once(prefix, begun, chain, requests)
    yield from chain.rest(requests.page)


def many_at_once(prefix: str, begun: list[Page], chain: Chain, requests: Requests) -> Iterator[Page]:
    """The pages after those of `chain`; less, and `chain` at the last of them, if the store cannot list by ranges."""
    try:
        ranges = KeyRanges(prefix, S3_CONNECTIONS, begun)
    except Disorder:
        return
    try:
        read(ranges, requests)
    except Disorder:
        for page in ranges.ranges[0].taken():
            chain.take(page)
            yield page
    else:
        chain.more = ""
        yield from ranges.cut()


class Answer(NamedTuple):
    source: Range
    got: Page | BaseException


def read(ranges: KeyRanges, requests: Requests) -> None:
    """Read all ranges. Raises Disorder, and what the requests raise."""
    crew = Crew(requests)
    try:
        while True:
            for source in ranges.requests():
                crew.ask(source)
            if not crew.open:
                ranges.check()
                return
            answer = crew.answer()
            if isinstance(answer.got, BaseException):
                raise answer.got if answer.source is ranges.ranges[0] else unsupported(answer.got)
            ranges.take(answer.source, answer.got)
    finally:
        crew.dismiss()


def unsupported(error: BaseException) -> BaseException:
    """Disorder for a lasting error of the store: that of one that does not know StartAfter."""
    if isinstance(error, (StorageError, FileNotFoundError)) and fault_of(error) is None:
        return Disorder()
    return error


class Dismissed(Exception):
    """Nobody waits for this answer any more."""


class Crew:
    """Threads that ask for pages, as many as there are questions at the same time. They do not outlive the process."""

    def __init__(self, requests: Requests) -> None:
        self._answers: SimpleQueue[Answer] = SimpleQueue()
        self._requests = requests
        self._questions: SimpleQueue[Range | None] = SimpleQueue()
        self._threads = 0
        self.open = 0  # Questions without an answer.
        self._dismissed = False

    def ask(self, source: Range) -> None:
        self.open += 1
        if self.open > self._threads:
            self._threads += 1
            Thread(target=self._work, name=f"{THREADS}{self._threads}", daemon=True).start()
        self._questions.put(source)

    def answer(self) -> Answer:
        """The next answer; waits for it."""
        answer = self._answers.get()
        self.open -= 1
        return answer

    def dismiss(self) -> None:
        self._dismissed = True
        for _ in range(self._threads):
            self._questions.put(None)

    def _work(self) -> None:
        while (source := self._questions.get()) is not None:
            try:
                self._answers.put(Answer(source, self._requests.call(lambda: self._once(source))))
            except BaseException as error:  # Raised again by the thread that reads the answers.
                self._answers.put(Answer(source, error))

    def _once(self, source: Range) -> Page:
        if self._dismissed:
            raise Dismissed
        return self._requests.ask(source.more, source.start)
