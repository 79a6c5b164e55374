"""Which servers may load now, so that the shared store gives its bandwidth to the first copy of the model. Pure.

Servers that start together and load together share the store's bandwidth: all blocks arrive late, and at the same time.
If they load in the order of their claims, the servers that complete the first copy of the model are done when the
others begin. Both load everything in about the same time. Source: this project; docs/block-placement.md measures it.

The claims in the registry are the queue: no other file is needed. A server that dies gives up its slot when its lease
ends, like its blocks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

Slots = Literal["auto"] | int

#: A server that is next looks again after this many seconds; one with i turns ahead after 2^i times as many, up to
#: LONGEST_LOOK_S. With k slots about 2 k servers look per second, however many wait.
FIRST_LOOK_S, LONGEST_LOOK_S = 1.0, 15.0

#: Seconds after which a server loads although the servers ahead of it have not: one of them may hang for ever.
PATIENCE_S = 600.0


@dataclass(frozen=True)
class Loader:
    """A server that has not loaded all blocks of `span`, which it claimed with claim number `claim`."""

    claim: int
    server_id: str
    span: range

    @property
    def order(self) -> tuple[int, str]:
        """One claim may move several servers: those follow one another by their ids."""
        return self.claim, self.server_id


def ahead_of(loader: Loader, loaders: Iterable[Loader]) -> list[Loader]:
    """The servers that load by earlier claims, in order."""
    return sorted((other for other in loaders if other.order < loader.order), key=lambda other: other.order)


def turns_ahead(
    loader: Loader, ahead: Collection[Loader], slots: Slots, *, total_blocks: int, served: Collection[range]
) -> int:
    """How many times all slots have to be used before a server may load; 0 if it may load now.

    With `slots` = k, k servers load at a time: k is best floor(bandwidth of the store / bandwidth of a node).

    `auto` needs neither. While the servers ahead bring blocks that nobody serves yet, only those load that bring
    another such block: the first copy gets the whole store. Then as many load as together have the blocks of one copy,
    or of all copies that are served, if there are more: so their number doubles with each round, which costs little
    where the store is faster than all nodes. `served`: what each server serves now.

    >>> one, two, other = Loader(1, "a", range(4)), Loader(2, "b", range(4, 8)), Loader(3, "c", range(4))
    >>> [turns_ahead(other, [one, two], slots, total_blocks=8, served=[]) for slots in (1, 2, 3, "auto")]
    [2, 1, 0, 2]
    >>> turns_ahead(two, [one], "auto", total_blocks=8, served=[])
    0
    >>> turns_ahead(other, [one, two], "auto", total_blocks=8, served=[range(8), range(8)])
    0
    """
    if slots != "auto":
        return len(ahead) // slots
    missing = set(range(total_blocks)).difference(*served)
    brought = set().union(*(other.span for other in ahead)) & missing
    together = sum(len(other.span) for other in ahead)
    if brought:
        return 0 if missing.intersection(loader.span) - brought else 1 + together // total_blocks
    return together // max(total_blocks, sum(map(len, served)))


def look_delay(turns: int) -> float:
    """Seconds until a server that waits for `turns` turns looks again.

    >>> look_delay(1), look_delay(3), look_delay(64)
    (1.0, 4.0, 15.0)
    """
    return min(LONGEST_LOOK_S, FIRST_LOOK_S * 2.0 ** (min(turns, 10) - 1))
