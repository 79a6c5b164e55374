"""Steps that tests place beside their pipeline files, as the module my_steps."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

from stagger import stateless

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from stagger import Document

    Documents = Iterable[Document]


@stateless
def fail_on(
    data: Documents, rank: int, world_size: int, ranks: Sequence[int] = (), flag: str = ""
) -> Iterator[Document]:
    """Raises on some ranks, after some documents, until the file `flag` exists."""
    for count, document in enumerate(data):
        if rank in ranks and count == 20 and not os.path.exists(flag):
            raise ValueError(f"rank {rank} cannot go on")
        yield document


@stateless
def fail_once(
    data: Documents, rank: int, world_size: int, ranks: Sequence[int] = (), flag: str = ""
) -> Iterator[Document]:
    """Raises in the first attempt of some ranks, after some documents; creates the file `flag`-<rank> before."""
    for count, document in enumerate(data):
        if rank in ranks and count == 20 and not os.path.exists(f"{flag}-{rank}"):
            open(f"{flag}-{rank}", "w").close()
            raise ValueError(f"rank {rank} fails once")
        yield document


@stateless
def kill_on(
    data: Documents, rank: int, world_size: int, ranks: Sequence[int] = (), flag: str = ""
) -> Iterator[Document]:
    """Kills its process on some ranks, like the out-of-memory killer, until the file `flag` exists."""
    for count, document in enumerate(data):
        if rank in ranks and count == 20 and not os.path.exists(flag):
            os.kill(os.getpid(), signal.SIGKILL)
        yield document


@stateless
def hold(
    data: Documents, rank: int, world_size: int, ranks: Sequence[int] | None = None, flag: str = ""
) -> Iterator[Document]:
    """Waits after some documents until the file `flag` exists; creates the file `flag`-<rank> before."""
    for count, document in enumerate(data):
        if count == 20 and (ranks is None or rank in ranks):
            open(f"{flag}-{rank}", "w").close()
            while not os.path.exists(flag):
                time.sleep(0.01)
        yield document


@stateless
def dawdle(
    data: Documents, rank: int, world_size: int, ranks: Sequence[int] = (), flag: str = ""
) -> Iterator[Document]:
    """Processes documents slowly on some ranks; creates the file `flag`-<rank> when it begins."""
    for document in data:
        if rank in ranks:
            open(f"{flag}-{rank}", "w").close()
            time.sleep(0.1)
        yield document


def oversleep(
    data: Documents, rank: int, world_size: int, ranks: Sequence[int] = (), flag: str = ""
) -> Iterable[Document]:
    """Sleeps within one call in the first attempt at some ranks; creates the file `flag`-<rank> before."""
    if rank in ranks and not os.path.exists(f"{flag}-{rank}"):
        open(f"{flag}-{rank}", "w").close()
        time.sleep(600)
    return data


@stateless
def fail_from(data: Documents, rank: int, world_size: int, first: int, flag: str = "") -> Iterator[Document]:
    """Raises at the first document whose number is `first` or more, until the file `flag` exists."""
    for document in data:
        if int(document.id.rpartition("-")[2]) >= first and not os.path.exists(flag):
            raise ValueError("no further")
        yield document


@stateless
def linger(
    data: Documents, rank: int, world_size: int, first: int, seconds: float = 1, flag: str = ""
) -> Iterator[Document]:
    """Takes `seconds` for each document from number `first` on, and creates `flag`-<rank>, until `flag` exists."""
    for document in data:
        if int(document.id.rpartition("-")[2]) >= first and not os.path.exists(flag):
            open(f"{flag}-{rank}", "w").close()
            time.sleep(seconds)
        yield document


def note_node(data: Documents, rank: int, world_size: int, flag: str = "") -> Documents:
    """Creates a file named after the rank, the process's number and the number of processes (one per node)."""
    name = f"{flag}-{rank}-{os.environ['RANK']}-of-{os.environ['WORLD_SIZE']}"
    open(name, "w").close()
    return data


def need_memory(
    data: Documents, rank: int, world_size: int, ranks: Sequence[int] = (), mb: int = 0, flag: str = ""
) -> Iterator[Document]:
    """Allocates `mb` MB on some ranks, and waits 5 s."""
    held = bytearray(0)
    for count, document in enumerate(data):
        if rank in ranks and count == 20:
            held = bytearray(b"x") * (mb * 10**6)  # noqa: F841
            time.sleep(5)
        yield document


def swallow(data: Documents, rank: int, world_size: int) -> Iterator[Document]:
    """Ignores every exception."""
    iterator = iter(data)
    while True:
        try:
            yield next(iterator)
        except StopIteration:
            return
        except Exception:
            continue


@stateless
def shorter(data: Documents, rank: int, world_size: int) -> Iterator[Document]:
    """Yields only ten documents per shard once the file `short` exists."""
    for document in data:
        if not os.path.exists("short") or int(document.id.rpartition("-")[2]) % 50 < 10:
            yield document


@stateless
def first(data: Documents, rank: int, world_size: int, count: int = 1) -> Iterator[Document]:
    """Yields the first `count` documents, then stops."""
    for number, document in enumerate(data, 1):
        yield document
        if number == count:
            return


@stateless
def backwards(data: Documents, rank: int, world_size: int) -> Iterator[Document]:
    """Reads everything before it yields anything, and creates new documents."""
    from stagger import Document

    for document in reversed(list(data)):
        yield Document(document.text, document.id)


class Upper:
    def __init__(self, suffix: str = "") -> None:
        self.suffix = suffix

    def __call__(self, data: Documents, rank: int, world_size: int) -> Iterator[Document]:
        for document in data:
            document.text = document.text.upper() + self.suffix
            yield document


def large(data: None = None, rank: int = 0, world_size: int = 1, flag: str = "") -> Iterator[Document]:
    """A source of 110 MB. In its first attempt it writes its process id to the file `flag`, and then hangs."""
    from stagger import Document

    for i in range(110):
        yield Document("x" * 10**6, f"{i}")
        if i == 90 and not os.path.exists(flag):
            with open(flag + ".new", "w") as file:
                file.write(str(os.getpid()))
            os.rename(flag + ".new", flag)
            while True:
                time.sleep(0.01)


def numbers(data: None = None, rank: int = 0, world_size: int = 1, count: int = 10) -> Iterator[Document]:
    """A source without shards."""
    from stagger import Document

    for i in range(count):
        yield Document(f"{rank}-{i}", f"{rank}-{i}")


def prints(data: Documents, rank: int, world_size: int) -> Documents:
    """A step that prints in colour before it reads."""
    print("\x1b[31mprinted\x1b[0m", flush=True)
    yield from data


def is_even(document: Document) -> bool | str:
    """A filter of documents by the number in their ids."""
    return int(document.id.rpartition("-")[2]) % 2 == 0 or "odd"
